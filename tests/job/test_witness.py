"""A job that is ended at once leaves a word all the same: what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

JOB = '''
"""End."""
import os, signal, sys
from dataclasses import dataclass
from raymed.errors import UserError
from raymed.job.job import JobOptions, Outcome, run

@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Options.

    Attributes:
        end: How it ends.
    """
    end: str

def main(options: Options) -> Outcome:
    if options.end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if options.end == "left":
        os._exit(1)  # as Ray's core does, below Python
    if options.end == "refused":
        raise UserError("not so")
    return Outcome("done", {})

run(Options, main)
'''


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "code", "speaks"), [("killed", -9, True), ("left", 1, True), ("refused", 2, False), ("well", 0, False)]
)
def test_only_a_job_that_cannot_speak_itself_is_spoken_for(end: str, code: int, speaks: bool, tmp_path: Path) -> None:
    (tmp_path / "end.py").write_text(JOB)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "end.py", "--end", end]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == code
    assert ("ended at once" in done.stderr) is speaks
    assert (f"the same command goes on: python end.py --end {end}\n" in done.stderr) is speaks
