"""The command as a person types it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

JOB = Path(__file__).parents[3] / "jobs" / "prepare_lung.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOB), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / "source" / ("normal", "viral")[number % 2] / f"p{number}"
        folder.mkdir(parents=True)
        Image.fromarray(draw.integers(0, 255, (32, 32), dtype=np.uint8)).save(folder / "0.png")
    return tmp_path / "source"


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(source: Path, tmp_path: Path):
    done = run(
        "--source",
        source,
        "--out",
        tmp_path / "out",
        "--dry-run",
        "--json",
        "--image.size",
        28,
        "--source.format",
        "folders",
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["patients"] == {name: {"test": 1, "train": 1, "val": 1} for name in ("normal", "viral")}
    assert data["slices"] == 6
    assert not (tmp_path / "out").exists()


def test_an_unknown_label_ends_with_code_2_and_one_line(source: Path, tmp_path: Path):
    (source / "viral").rename(source / "flu")
    done = run("--source", source, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "'flu' (3)" in done.stderr
    assert "Traceback" not in done.stderr
