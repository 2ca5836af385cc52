"""`ray start --head`, then `ray job submit`: the same scripts on a running cluster, with Ray's token authentication on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_head import Head, ray_head

from raymed.data.prepared import Prepared

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("home"), cpus=3) as head:
        yield head


def said_by(head: Head, *job: str) -> str:
    """What a submitted job prints, once it has ended well."""
    done = head.submit("--working-dir", str(REPOSITORY), "--", "python", *job)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_submitted_search_runs_on_the_cluster_and_prints_where_its_report_is(
    head: Head, prepared: Prepared, tmp_path: Path
) -> None:
    job = ["jobs/tune_lung.py", "--data", prepared.folder.uri, "--trials", "2", "--max-epochs", "1"]
    job += ["--model.preset", "tiny", "--storage", str(tmp_path / "runs"), "--name", "submitted"]
    assert f"report: {tmp_path}/runs/submitted/report.html" in said_by(head, *job)
    assert "models:/raymed-lung@champion" in (tmp_path / "runs" / "submitted" / "report.html").read_text("utf-8")
    stranger = {name: value for name, value in head.environment.items() if not name.startswith("RAY")}
    refused = head.jobs(stranger | {"HOME": str(tmp_path)})
    assert refused.returncode != 0 and "uthenticat" in refused.stdout + refused.stderr, "a stranger could ask for jobs"


@pytest.mark.slow
def test_a_submitted_night_leaves_its_files_at_home_and_not_in_the_copy_that_ray_deletes(head: Head) -> None:
    said = said_by(head, "jobs/overnight.py", "--phantom.patients", "12", "--no_grid", "--epochs", "1")
    left = head.home / "raymed"
    assert f"summary: {left}/outputs/overnight_best_summary.txt" in said
    assert (left / "outputs" / "vision_bridge_overnight_best.pt").is_file()
    assert list((left / "runs").glob("*/report.html"))
