"""Records of reports with random pictures."""

from __future__ import annotations

import numpy as np

from raymed.data.record import Image, Message, Record

SIZE = 32


def records(count: int = 3, mask: bool = False) -> list[Record]:
    """Reports of several lengths; with `mask`, all but the first have one."""
    draw = np.random.default_rng(0)
    made = []
    for number in range(count):
        images = [Image("input", 0, draw.integers(0, 256, (SIZE, SIZE, 1), dtype=np.uint8))]
        if mask and number:
            images.append(Image("mask", 0, np.full((SIZE, SIZE, 1), 255, np.uint8)))
        messages = [Message("human", "What is there?"), Message("gpt", "a nodule " * (number + 1))]
        name = f"r{number}"
        made.append(Record(name, f"p{number}", name, 0, None, "made", tuple(images), tuple(messages)))
    return made
