"""Jobs as a person types them, in a folder of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
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


def job(name: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run jobs/NAME.py to its end."""
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def done(name: str, folder: Path, *words: str) -> str:
    """What a job that ends well prints."""
    ended = job(name, folder, *words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
