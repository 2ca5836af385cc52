"""Quick processes are as ordinary ones: words, folder, environment, exit codes, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from forks import quick_python, run

TELL = """import os, sys
print(sys.argv[1:], os.getcwd(), os.environ["WORD"], oct(os.umask(0)), "torch" in sys.modules)
print("an error", file=sys.stderr)
sys.exit(7)"""


@pytest.mark.slow
def test_a_fork_has_its_words_folder_environment_and_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "tell.py"
    script.write_text(TELL)
    old = os.umask(0o027)
    try:
        ended = run([str(script), "a b", "c"], tmp_path, os.environ | {"WORD": "said"})
    finally:
        os.umask(old)
    assert ended.returncode == 7
    assert ended.stdout == f"['a b', 'c'] {tmp_path} said 0o27 True\n" and ended.stderr == "an error\n"


def begin(folder: Path, code: str) -> tuple[subprocess.Popen[str], int]:
    """A worker as Ray starts it, and the number that it has said."""
    worker = folder / "default_worker.py"
    worker.write_text(f"import os, sys, time; print(os.getpid(), flush=True); {code}")
    begun = subprocess.Popen([quick_python(), str(worker)], stdout=subprocess.PIPE, text=True)
    assert begun.stdout
    fork = int(begun.stdout.readline())
    assert fork != begun.pid, "there is no server any more"
    return begun, fork


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["the worker", "its group", "what Ray started"])
def test_what_ray_started_ends_with_the_worker_and_the_worker_with_it_and_no_other(kill: str, tmp_path: Path) -> None:
    """Ray kills a worker by its number or with its group, and one that has not said its number by what it started."""
    begun, fork = begin(tmp_path, "time.sleep(600)")
    if kill == "its group":
        os.killpg(os.getpgid(fork), signal.SIGKILL)
    else:
        os.kill(fork if kill == "the worker" else begun.pid, signal.SIGKILL)
    assert begun.wait(300) != 0
    deadline = time.monotonic() + 300
    while psutil.pid_exists(fork) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(fork)
    begun, _ = begin(tmp_path, "sys.exit(5)")
    assert begun.wait(300) == 5


@pytest.mark.slow
def test_forks_give_their_objects_other_numbers(tmp_path: Path) -> None:
    """Those of a process in which Ray has drawn one would give the same, and end with messages of Ray's bugs."""
    worker = tmp_path / "default_worker.py"
    code = "import sys; assert 'raymed.tuning.search' in sys.modules; import ray; print(ray.ObjectID.from_random())"
    worker.write_text(code)
    said = [subprocess.run([quick_python(), str(worker)], capture_output=True, text=True, check=True).stdout for _ in "ab"]
    assert said[0] != said[1]


@pytest.mark.slow
def test_without_its_server_it_is_an_ordinary_python(tmp_path: Path) -> None:
    alone = tmp_path / "python"
    alone.write_text(Path(quick_python()).read_text())
    alone.chmod(0o700)
    worker = tmp_path / "default_worker.py"
    worker.write_text("import sys; print('torch' in sys.modules)")
    assert subprocess.run([alone, worker], capture_output=True, text=True).stdout == "False\n"
