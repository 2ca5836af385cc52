"""Jobs as a person types them, in a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


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
