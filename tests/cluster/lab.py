"""Several machines on one: network, process and mount namespaces, joined by a bridge that leads nowhere else.

Every host has its own address, host name, process table, home folder, /tmp/ray and /dev/shm, so that `ray stop` and a power
cut stay inside it. All see the same files otherwise, as machines with shared storage do. Needs root, iproute2, rsync and
openssh-server. A host's first process is its power supply: when it ends, everything in the host ends.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

BRIDGE = "raymed-lab"
NETWORK = "10.77.0"
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "ssh-keygen", "rsync", "/usr/sbin/sshd")

Found = TypeVar("Found")


def missing() -> str:
    """Why there can be no lab here; empty where there can."""
    if os.geteuid() != 0:
        return "a lab of namespaces needs root"
    lost = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"a lab needs {', '.join(lost)}: apt-get install iproute2 openssh-server rsync" if lost else ""


@dataclass
class Host:
    """One machine of the lab."""

    name: str
    address: str
    home: Path
    power: subprocess.Popen[bytes]

    def run(self, command: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """What a person types at this machine, in a login shell."""
        return subprocess.run(self.words(command), capture_output=True, text=True, timeout=timeout)

    def words(self, command: str) -> list[str]:
        """The words of a command that runs `command` at this machine."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        settings = [f"HOME={self.home}", f"PATH={path}", "LANG=C.UTF-8", "TERM=dumb", "RAY_AUTH_MODE=token"]
        inside = ["nsenter", "--target", str(self.first_process), "--mount", "--uts", "--net", "--pid", "--wd=/"]
        # what enters a host ends with the process that entered it
        return [*inside, "setpriv", "--pdeathsig", "KILL", "env", "-i", *settings, "bash", "-c", command]

    @property
    def first_process(self) -> int:
        """The number that the first process of the host has outside of it."""
        children = Path(f"/proc/{self.power.pid}/task/{self.power.pid}/children").read_text().split()
        return int(children[0])

    def running(self, words: str) -> bool:
        """Whether a process with these words in its command line runs here."""
        return self.run(f"pgrep -f {shlex.quote(words)}").returncode == 0

    def cut_power(self) -> None:
        """Everything here ends at once; nobody is told, not even by a refused connection."""
        self.cut_cable()
        os.kill(self.first_process, signal.SIGKILL)
        self.power.wait(30)

    def cut_cable(self) -> None:
        """The machine goes on, but reaches nobody."""
        _ip("link", "set", f"{self.name}-cable", "down")


class Lab:
    """Hosts ``h0``, ``h1``, ...; all can be reached by ssh with the key in each home folder. Use it in a ``with``."""

    def __init__(self, folder: Path, hosts: int) -> None:
        self.folder = folder
        self._count = hosts
        self.hosts: list[Host] = []

    def __enter__(self) -> Lab:
        self._remove()
        self.folder.mkdir(parents=True, exist_ok=True)
        key = self.folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        try:
            _ip("link", "add", BRIDGE, "type", "bridge")
            _ip("link", "set", BRIDGE, "up")
            for number in range(self._count):
                self._plug_in(number)
                self.hosts.append(self._switch_on(number))
            for host in self.hosts:
                self._await_ssh(host)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for host in self.hosts:
            if host.power.poll() is None:
                host.cut_power()
        self._remove()

    def replace(self, number: int) -> None:
        """Put a fresh machine in the place of one: the same address, and nothing on its disk."""
        self.hosts[number] = self._switch_on(number)
        _ip("link", "set", f"h{number}-cable", "up")
        self._await_ssh(self.hosts[number])

    def _plug_in(self, number: int) -> None:
        name = f"h{number}"
        _ip("netns", "add", name)
        _ip("link", "add", f"{name}-cable", "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", f"{name}-cable", "master", BRIDGE, "up")
        _ip("-n", name, "address", "add", f"{NETWORK}.{number + 1}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        # Ray finds its own address by the route to elsewhere; on the bridge nobody answers for that.
        _ip("-n", name, "route", "add", "default", "dev", "eth0")

    def _switch_on(self, number: int) -> Host:
        name, address = f"h{number}", f"{NETWORK}.{number + 1}"
        disk = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        home = disk / "home"
        (home / ".ssh").mkdir(parents=True)
        for file in ("key", "key.pub"):
            shutil.copy(self.folder / file, home / ".ssh" / file.replace("key", "id_ed25519"))
        shutil.copy(self.folder / "key.pub", home / ".ssh" / "authorized_keys")
        power = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", name),  # no host outlives its lab
                *("unshare", "--pid", "--mount", "--uts", "--fork", "--mount-proc", "--kill-child"),
                *("bash", "-ec", self._boot(name, address, disk)),
            ],
            stdout=(disk / "log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        return Host(name, address, home, power)

    def _boot(self, name: str, address: str, disk: Path) -> str:
        """What a host does when it is switched on."""
        others = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
        names = [f"{NETWORK}.{number + 1} h{number}" for number in range(self._count)]
        (disk / "passwd").write_text("\n".join([f"root:*:0:0:root:{disk}/home:/bin/bash", *others]) + "\n")
        (disk / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names]) + "\n")
        (disk / "ray").mkdir()
        options = {
            "ListenAddress": address,
            "HostKey": self.folder / "key",
            "AuthorizedKeysFile": ".ssh/authorized_keys",
            "PidFile": "none",
            "UsePAM": "no",
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "PrintMotd": "no",
        }
        settings = " ".join(f"-o {shlex.quote(f'{option}={value}')}" for option, value in options.items())
        return f"""
            mount --make-rprivate /
            mount -t tmpfs -o size=8g tmpfs /dev/shm
            mkdir -p /tmp/ray /run/sshd
            cd {shlex.quote(str(disk))}
            mount --bind ray /tmp/ray
            mount --bind passwd /etc/passwd
            mount --bind hosts /etc/hosts
            hostname {name}
            export HOME="$PWD/home"
            exec /usr/sbin/sshd -D -e -f /dev/null {settings}
        """

    def _await_ssh(self, host: Host) -> None:
        deadline = time.monotonic() + 30
        while not (_booted(host) and host.running("sshd: /usr/sbin/sshd")):
            if host.power.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{host.name} does not start: {(host.home.parent / 'log').read_text()}")
            time.sleep(0.1)

    def _remove(self) -> None:
        """Take away what this or an earlier lab left."""
        for number in range(self._count):
            if Path(f"/run/netns/h{number}").exists():
                subprocess.run(["ip", "netns", "delete", f"h{number}"], check=False)
            subprocess.run(["ip", "link", "delete", f"h{number}-cable"], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", BRIDGE], check=False, capture_output=True)


def _booted(host: Host) -> bool:
    return bool(Path(f"/proc/{host.power.pid}/task/{host.power.pid}/children").read_text().split())


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def wait_for(happened: Callable[[], Found], seconds: float, what: str) -> Found:
    """What is there once it is: something that is true.

    Raises:
        AssertionError: it is not there in time.
    """
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.5)
    return found
