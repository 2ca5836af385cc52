"""Jobs as a person types them, in a process and a folder of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent


def script(name: str) -> ModuleType:
    """The module of jobs/NAME.py, whose options can be parsed and whose `main` can be called."""
    spec = importlib.util.spec_from_file_location(f"job_{name}", ROOT / "jobs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


def job(
    name: str, folder: Path, *words: object, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run jobs/NAME.py to its end.

    Args:
        folder: where it is typed.
        environment: instead of this process's.
    """
    return forked([str(ROOT / "jobs" / f"{name}.py"), *map(str, words)], folder, environment)


def forked(
    command: list[str], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a file of Python, with its words, in a process that need not import the large libraries first."""
    variables = {**(os.environ if environment is None else environment), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as streams:
        outputs = [str(Path(streams, stream)) for stream in ("stdout", "stderr")]
        server = _forks()
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps([command, str(folder), variables, outputs]) + "\n")
        server.stdin.flush()
        try:
            code = int(server.stdout.readline())
        except BaseException:  # a test's time is over: the answer that is still to come is no other job's
            _forks.cache_clear()
            raise
        return subprocess.CompletedProcess(command, code, *(Path(path).read_text("utf-8") for path in outputs))


@cache
def _forks() -> subprocess.Popen[str]:
    """A process that has imported what jobs import for seconds, and of which each job is a fork."""
    command = [sys.executable, str(Path(__file__).with_name("forks.py"))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def done(name: str, folder: Path, *words: object) -> str:
    """What a job that ends well prints."""
    ended = job(name, folder, *words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
