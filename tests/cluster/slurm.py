"""SLURM on the hosts of a lab: its controller on the first, a node on each other one. Needs slurmctld, slurmd and munge."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from lab import Lab, wait_for

TOOLS = ("slurmctld", "slurmd", "sbatch", "munged")
SETTINGS = """
ClusterName=lab
SlurmctldHost={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
KillWait=10
NodeName={nodes} CPUs={cpus} RealMemory=6000 State=UNKNOWN
PartitionName=lab Nodes=ALL Default=YES State=UP
"""


def lacking() -> str:
    """Why there can be no SLURM here; empty where there can."""
    lost = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"SLURM needs {', '.join(lost)}: apt-get install slurmctld slurmd slurm-client munge" if lost else ""


@dataclass
class Slurm:
    """A SLURM that is up while entered. Its daemons end with the lab's hosts."""

    lab: Lab
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.lab.folder / "slurm"

    def __enter__(self) -> Slurm:
        self.lab.folder.chmod(0o711)  # munge refuses a socket that others cannot reach
        controller, *nodes = self.lab.hosts
        (self.folder / "state").mkdir(parents=True)
        self.folder.chmod(0o755)
        names = ",".join(host.name for host in nodes)
        settings = SETTINGS.format(controller=controller.name, folder=self.folder, nodes=names, cpus=os.cpu_count())
        (self.folder / "slurm.conf").write_text(settings)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # read, and not used
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        files = {"key-file": key.name, "socket": "munge"} | {
            f"{name}-file": f"munge.{name}" for name in ("pid", "log", "seed")
        }
        options = " ".join(f"--{option}={self.folder}/{name}" for option, name in files.items())
        self._start(0, f"munged --foreground {options}")
        wait_for((self.folder / "munge").exists, 60, "munge")
        self._start(0, "slurmctld -D")
        for number, host in enumerate(nodes, 1):
            (self.folder / host.name).mkdir()
            self._start(number, "slurmd -D")
        idle = ["idle"] * len(nodes)
        wait_for(
            lambda: self.typed("sinfo --noheader --Node --format %T").split() == idle, 60, f"the nodes; see {self.folder}"
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait(30)

    def typed(self, command: str) -> str:
        """What a person gets who types this at the controller's host."""
        return self.attempt(command, check=True).stdout

    def attempt(self, command: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        done = self.lab.hosts[0].run(f"export SLURM_CONF={self.folder}/slurm.conf; {command}")
        assert not check or done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done

    def state(self, job: str) -> str:
        """A job's state, and how often it was put in line again: ``RUNNING 1``."""
        shown = self.typed(f"scontrol show job {job}")
        return " ".join(re.findall(r"\b(?:JobState|Restarts)=(\S+)", shown))

    def _start(self, number: int, words: str) -> None:
        command = f"export SLURM_CONF={self.folder}/slurm.conf; exec {words}"
        with (self.folder / f"{number}-{words.split()[0]}.out").open("wb") as out:
            host = self.lab.hosts[number]
            self.daemons.append(subprocess.Popen(host.words(command), stdout=out, stderr=subprocess.STDOUT))
