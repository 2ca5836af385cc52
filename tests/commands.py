"""Jobs as a person types them, in a process and a folder of their own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from forks import ROOT, run


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
    return run([str(ROOT / "jobs" / f"{name}.py"), *map(str, words)], folder, environment)


def done(name: str, folder: Path, *words: object) -> str:
    """What a job that ends well prints."""
    ended = job(name, folder, *words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
