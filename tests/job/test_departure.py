"""A signal means the same in every phase of a job: it is gone within the deadline, and has said how to go on."""

import json
import os
import signal
import subprocess
import sys

import pytest

JOB = '''
"""Judge."""
import atexit, signal, sys, threading, time
from dataclasses import dataclass
from raymed.job import departure
from raymed.job.departure import kept_handlers
from raymed.job.job import JobOptions, Outcome, run

@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Options.

    Attributes:
        hang: Whether the way out hangs.
    """
    hang: bool = False

def main(options: Options) -> Outcome:
    with kept_handlers():  # what Ray does as it starts
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    if options.hang:
        atexit.register(threading.Event().wait)  # a library's shutdown
        departure.DEADLINE = 0.5
    print("judging", flush=True)
    time.sleep(60)
    return Outcome("judged", {})

def stubborn() -> None:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("still", flush=True)
        time.sleep(60)

departure.DEADLINE = 0.5 if "--hang" in sys.argv else 3000  # what does not hang needs none
run(Options, main)
'''


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("hang", [[], ["--hang"]])
def test_a_job_that_is_told_to_stop_while_it_judges_leaves_within_the_deadline_and_says_how_to_go_on(tmp_path, number, hang):
    (tmp_path / "judge.py").write_text(JOB)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "judge.py", *hang, "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    job = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes, text=True)
    for line in job.stderr:
        if line == "judging\n":
            break
    job.send_signal(number)
    said = job.stderr.read()
    assert job.wait(20) == 130, said
    how = f"stopped. To go on from the last checkpoint: python judge.py{' --hang' if hang else ''} --json"
    assert f"{how}\n" in said
    assert "Traceback" not in said
    assert json.loads(job.stdout.read()) == {"error": how, "exit_code": 130}, "one object, whatever ended it"


@pytest.mark.slow
def test_a_job_that_is_told_twice_ends_at_once_with_its_object(tmp_path):
    (tmp_path / "judge.py").write_text(JOB.replace("time.sleep(60)", "stubborn()", 1))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    job = subprocess.Popen([sys.executable, "judge.py", "--json"], cwd=tmp_path, env=environment, **pipes, text=True)
    for line in job.stderr:
        if line in ("judging\n", "still\n"):
            job.send_signal(signal.SIGINT)
        if line == "still\n":
            break
    assert job.wait(20) == 130
    assert json.loads(job.stdout.read())["error"].startswith("stopped. To go on from the last checkpoint: python judge.py")


@pytest.mark.slow
def test_a_job_whose_search_was_told_to_stop_leaves_within_the_deadline_too(tmp_path):
    """`Interrupt` has had the signal then, and its own deadline ends with the search."""
    (tmp_path / "search.py").write_text(JOB.replace("time.sleep(60)", "raise KeyboardInterrupt"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "search.py", "--hang"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 130 and "stopped. To go on from the last checkpoint" in done.stderr
