"""What must be there before a batch file waits in SLURM's line: what is found out later is found out hours later."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from raymed.doctor import checks
from raymed.doctor.finding import Finding
from raymed.errors import UserError
from raymed.storage.folder import Folder

SAVING_SECONDS = 130  # that a search takes at most to save its runs' checkpoints, once it is told to end
PLACEHOLDER = "YOUR-FOLDER"


def is_batch_file(path: Path) -> bool:
    """Whether a file is for SLURM, and not one of Ray's cluster files."""
    return checks.read_text(path).startswith("#!")


def look(batch_file: Path) -> Iterator[Finding]:
    """Everything that a batch file like ``cluster.slurm`` needs, seen from where it is submitted.

    Raises:
        UserError: the file cannot be read.
    """
    text = checks.read_text(batch_file)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", text, re.MULTILINE))
    yield _environment()
    yield from _storage(batch_file, text)
    yield _signal(options.get("signal", ""))
    missing = [f"--{name}" for name in ("cpus-per-task", "mem", "requeue") if name not in options]
    if missing:
        yield Finding("options", "wrong", f"{batch_file} lacks {', '.join(missing)}: take them from the project's file")
    yield _allocation(batch_file)


def _environment() -> Finding:
    if Path(".venv/bin/activate").exists():
        return Finding("environment", "ok", f"{Path.cwd()}/.venv; every machine has to see this folder")
    return Finding("environment", "wrong", f"{Path.cwd()} has no .venv: `make setup`, in a folder that every machine sees")


def _storage(batch_file: Path, text: str) -> Iterator[Finding]:
    stated = re.search(r"^export RAYMED_STORAGE=(\S+)", text, re.MULTILINE)
    if stated is None:
        yield Finding("storage", "wrong", f"{batch_file} sets no RAYMED_STORAGE")
        return
    if PLACEHOLDER in stated[1]:
        line = text[: stated.start()].count("\n") + 1
        yield Finding(
            "storage", "wrong", f"{batch_file}: fill in line {line} ({stated[1]}): a folder that every machine sees"
        )
        return
    try:
        Folder.at(stated[1]).check_writable()
    except (UserError, OSError) as error:
        yield Finding("storage", "wrong", str(error))
        return
    yield Finding("storage", "ok", f"{stated[1]} can be written here; every machine has to see it")


def _signal(stated: str) -> Finding:
    """Whether a search is told of the allocation's end, and early enough."""
    told = re.fullmatch(r"B:USR1@(\d+)", stated)
    if told is None:
        return Finding("end", "wrong", "no --signal=B:USR1@180: at the allocation's end runs would lose what they did last")
    if int(told[1]) < SAVING_SECONDS:
        return Finding("end", "wrong", f"--signal={stated}: runs take up to {SAVING_SECONDS} s to save their checkpoints")
    return Finding("end", "ok", f"runs are told {told[1]} s before, and save a checkpoint; the job then goes on in line")


def _allocation(batch_file: Path) -> Finding:
    """What SLURM itself says of the file, without putting it in line."""
    if shutil.which("sbatch") is None:
        return Finding("SLURM", "wrong", "sbatch is not here: run this where jobs are submitted")
    asked = subprocess.run(["sbatch", "--test-only", str(batch_file), "true"], capture_output=True, text=True)
    lines = [line.removeprefix("sbatch: ") for line in asked.stderr.splitlines() if line.strip()]
    if asked.returncode:
        return Finding("SLURM", "wrong", "; ".join(lines) or f"sbatch ends with {asked.returncode}")
    return Finding("SLURM", "ok", lines[-1] if lines else "takes the file")
