"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket

PORTS = range(20_000, 32_000)  # above those that Ray deals out; below those that outgoing connections are given


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that no outgoing connection takes while a server is starting."""
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"none of the ports {PORTS} is free")
