"""Names of patients stay with who wrote them: private files, keys outside of what is sent, cells that run nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from commands import ROOT, done
from hypothesis import given
from hypothesis import strategies as st
from pathspec import PathSpec
from PIL import Image
from ray._private.runtime_env.packaging import create_package

from raymed.data.pseudonyms import KEYS, Pseudonyms
from raymed.data.sources.table import read_cells
from raymed.data.split import read_split_file
from raymed.doctor.preflight import ARCHIVE
from raymed.errors import UserError
from raymed.spreadsheet import neutral, original, to_csv

SCRIPT = """
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from raymed.job.job import JobOptions, Outcome, run

@dataclass(frozen=True)
class Options(JobOptions):
    '''Options.'''

def main(options):
    options.folder.write("search/patients.csv", b"anna")
    sqlite3.connect(options.tracking.removeprefix("sqlite:///")).executescript("create table runs (id)")
    return Outcome("done", {})

run(Options, main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "file", "folder"), [([], 0o600, 0o700), (["--group-readable"], 0o640, 0o750)], ids=["alone", "group"]
)
def test_what_a_job_writes_is_for_its_user_or_for_the_group(
    words: list[str], file: int, folder: int, tmp_path: Path
) -> None:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), "--storage", str(tmp_path / "runs"), *words]
    subprocess.run(command, check=True, umask=0o022, env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)})
    written = [tmp_path / "runs", *(tmp_path / "runs").rglob("*")]
    assert {path.name for path in written} == {"runs", "search", "patients.csv", "mlflow.db"}
    for path in written:
        assert path.stat().st_mode & 0o777 == (folder if path.is_dir() else file), path


def test_machines_of_a_cluster_write_for_their_user_alone() -> None:
    for name in ("cluster.yaml", "cluster.local.yaml"):
        environment = next(
            line for line in yaml.safe_load((ROOT / name).read_text())["setup_commands"] if "raymed.env" in line
        )
        assert "umask 077" in environment, name


def checkout(folder: Path) -> Path:
    """The project as a person who cloned it has it."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    for file in (each for each in files if not each.startswith(("tests/", "docs/images"))):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    return folder


def test_what_is_sent_to_a_cluster_holds_no_key_and_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    here = checkout(tmp_path / "home" / "raymed")
    monkeypatch.chdir(here)
    documented = re.findall(r"--pseudonymise (\S+)", (ROOT / "docs" / "security.md").read_text())
    assert documented
    for place in documented:
        key = Pseudonyms.open(place)
        assert key.file.is_relative_to(Path(KEYS).expanduser()) and key.file.parent.stat().st_mode & 0o777 == 0o700
        key.table.write_text("patient,patient-0,Jane Doe")
    (here / "secret").mkdir()  # where the documents said before that it should lie
    (here / "secret" / "key").write_text("0" * 64)
    (here / "secret" / "key.table.csv").write_text("patient,patient-0,Jane Doe")

    package = tmp_path / "package.zip"
    create_package(".", package, include_gitignore=True)
    with zipfile.ZipFile(package) as archive:
        assert any(name.endswith("jobs/tune_lung.py") for name in archive.namelist())
        for name in archive.namelist():
            assert "secret" not in name and "keys" not in name
            assert b"Jane Doe" not in archive.read(name), name

    local = yaml.safe_load((here / "cluster.local.yaml").read_text())
    assert local["rsync_filter"] == [".gitignore"]
    assert set(local["file_mounts"].values()) == {".", "~/.ray/auth_token"}
    aws = yaml.safe_load((here / "cluster.yaml").read_text())
    assert set(aws["file_mounts"].values()) == {ARCHIVE, "~/.ray/auth_token"}  # of what is committed, by git itself
    ignored = PathSpec.from_lines("gitwildmatch", (here / ".gitignore").read_text().splitlines())
    assert ignored.match_file("secret/key.table.csv")


@pytest.mark.parametrize("mark", [".git", "raymed/systems"])
def test_a_key_in_a_checkout_is_refused_with_the_place_where_it_goes(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "clone" / mark).mkdir(parents=True)
    with pytest.raises(UserError, match=r"clone, which is sent to clusters.*~/\.raymed/keys/hospital"):
        Pseudonyms.open(tmp_path / "home" / "clone" / "secret" / "hospital")
    assert not (tmp_path / "home" / "clone" / "secret").exists()
    (tmp_path / "home" / ".git").mkdir()  # settings kept under version control are no checkout of the project
    Pseudonyms.open("~/.raymed/keys/hospital")


NAMES = ["=1+1", "+1", "-5", "@sum", "'=1", "''=1", "'", "'x", "plain"]


@given(st.text(alphabet="'=+-@\t\rx", max_size=6))
def test_a_cell_runs_nothing_and_is_read_as_it_was_written(text: str) -> None:
    assert not neutral(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert original(neutral(text)) == text


def test_a_table_of_patients_runs_nothing_and_its_patients_are_read_back(tmp_path: Path) -> None:
    table = pd.DataFrame({"patient_id": NAMES, "split": "train", "p_viral": -0.5})
    path = tmp_path / "patients.csv"
    path.write_bytes(to_csv(table))
    assert "-0.5" in path.read_text() and "'-0.5" not in path.read_text(), "numbers are no texts"
    cells = read_cells(path, {"patient_id": ("patient_id",)}, ("patient_id",), {}, {})
    assert [each["patient_id"] for _, each in cells] == NAMES
    assert set(read_split_file(path, NAMES)) == set(NAMES)


@pytest.mark.slow
def test_what_workers_of_a_job_s_own_ray_write_is_private_too(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / "source" / ("normal", "viral")[number % 2] / f"p{number}"
        folder.mkdir(parents=True)
        Image.fromarray(draw.integers(0, 255, (32, 32), np.uint8)).save(folder / "0.png")
    done("prepare_lung", tmp_path, "--source", "source", "--out", "out", "--image.size", "28")
    shards = list((tmp_path / "out" / "shards").iterdir())
    assert shards
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
