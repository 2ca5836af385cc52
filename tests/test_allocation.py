"""What a batch file for SLURM lacks is found before it waits in line. `sbatch` is a program here."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from raymed.doctor.allocation import SAVING_SECONDS, is_batch_file, look
from raymed.job.departure import DEADLINE
from raymed.tuning.interrupt import PATIENCE_SECONDS

REPOSITORY = Path(__file__).parents[1]
FILE = REPOSITORY / "cluster.slurm"
TAKES = "echo 'sbatch: Job 7 to start at 2026-11-29T22:00:00 using 16 processors on nodes h[1-2]' >&2"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose batch file is filled in, on a machine with SLURM."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    (tmp_path / "storage").mkdir()
    (tmp_path / "cluster.slurm").write_text(FILE.read_text().replace("/mnt/YOUR-FOLDER", str(tmp_path / "storage")))
    slurm(tmp_path, TAKES)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def slurm(folder: Path, answer: str) -> None:
    program = folder / "sbatch"
    program.write_text(f'#!/bin/bash\necho "$*" > {folder}/asked\n{answer}\n')
    program.chmod(0o755)


def wrong(file: Path) -> Mapping[str, str]:
    return {each.subject: each.text for each in look(file) if each.state == "wrong"}


def test_a_file_that_is_filled_in_is_tried_by_slurm_and_put_in_no_line(folder: Path) -> None:
    findings = list(look(Path("cluster.slurm")))
    assert {each.state for each in findings} == {"ok"}
    assert findings[-1].text.startswith("Job 7 to start at")
    assert (folder / "asked").read_text() == "--test-only cluster.slurm true\n"


def test_what_is_not_filled_in_or_not_there_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = FILE.read_text().splitlines()
    place = next(number for number, line in enumerate(lines, 1) if "YOUR-FOLDER" in line)
    assert f"fill in line {place} (/mnt/YOUR-FOLDER)" in wrong(FILE)["storage"]
    (folder / ".venv" / "bin" / "activate").unlink()
    slurm(folder, "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    found = wrong(Path("cluster.slurm"))
    assert found.keys() == {"environment", "SLURM"} and "make setup" in found["environment"]
    assert found["SLURM"] == "error: invalid partition specified: gpu"
    monkeypatch.setenv("PATH", "/nowhere")
    assert "where jobs are submitted" in wrong(Path("cluster.slurm"))["SLURM"]


@pytest.mark.parametrize(("stated", "reason"), [("B:USR1@60", "take up to 130 s"), ("TERM@300", "lose what they did last")])
def test_a_search_that_is_told_too_late_or_not_at_all_is_found_out(folder: Path, stated: str, reason: str) -> None:
    file = folder / "cluster.slurm"
    file.write_text(file.read_text().replace("B:USR1@180", stated))
    assert reason in wrong(file)["end"]


def test_the_doctor_knows_how_long_a_search_takes_to_leave() -> None:
    assert SAVING_SECONDS == PATIENCE_SECONDS + DEADLINE


def test_the_file_parses_and_is_told_from_a_cluster_file_of_rays() -> None:
    assert subprocess.run(["bash", "-n", FILE]).returncode == 0
    assert is_batch_file(FILE) and not is_batch_file(REPOSITORY / "cluster.yaml")
