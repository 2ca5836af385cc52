"""The doctor must name what is wrong and what to do, and its bundle must not carry patients away."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import install, write_prepared
from safetensors.torch import load_file, save_file

from raymed.data.labels import LabelTable
from raymed.data.prepared import Prepared
from raymed.doctor import checks as doctor
from raymed.doctor.finding import Finding
from raymed.doctor.support_bundle import frames_only, masked, write_bundle
from raymed.models import classifiers
from raymed.models.settings import ModelSettings
from raymed.storage.folder import Folder
from raymed.tracking.tracker import Tracker

JOBS = Path(__file__).parents[1] / "jobs"


def states(findings: list[Finding]) -> dict[str, str]:
    return {each.subject: each.state for each in findings}


def test_this_machine_can_train() -> None:
    found = states(list(doctor.machine()))
    assert {found[name] for name in ("Python", "packages", "optimizer", "attention", "faiss")} == {"ok"}


def findings_of(found: Iterator[Finding]) -> dict[str, Finding]:
    return {each.subject: each for each in found}


def test_on_a_gpu_it_says_what_computes_and_what_is_missing_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    found = findings_of(doctor.kernels())
    assert found["optimizer"].state == "ok" and "fused" in found["optimizer"].text
    assert found["attention"].state == "ok" and "its kernel for varying lengths" in found["attention"].text
    assert found["faiss"].state == "missing" and "raymed[gpu]" in found["faiss"].text


def test_two_packages_of_faiss_are_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path, "faiss-gpu", "1.15.1")
    monkeypatch.syspath_prepend(tmp_path)
    finding = findings_of(doctor.kernels())["faiss"]
    assert finding.state == "wrong" and "pip uninstall -y faiss-cpu faiss-gpu" in finding.text


def test_a_gpu_that_this_build_of_torch_cannot_use_is_wrong_and_not_just_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nvidia-smi").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = doctor.accelerators()
    assert finding.state == "wrong" and "build for CPUs" in finding.text


def test_a_cluster_that_does_not_answer_is_told_from_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert states(list(doctor.ray_cluster()))["Ray"] == "ok"
    (finding,) = (each for each in doctor.ray_cluster() if each.subject == "Ray")
    assert finding.state == "missing" and "ray start --head" in finding.text


def test_the_address_that_a_killed_ray_left_behind_is_no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Jobs do not look there; whoever had set no RAY_ADDRESS was told to unset it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for address, state in ((None, "ok"), ("auto", "missing")):
        if address:
            monkeypatch.setenv("RAY_ADDRESS", address)
        else:
            monkeypatch.delenv("RAY_ADDRESS", raising=False)
        assert states(list(doctor.ray_cluster()))["Ray"] == state


def test_a_storage_that_cannot_be_written_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert states(list(doctor.storage(Folder.at(tmp_path / "file" / "runs")))) == {"storage": "wrong"}
    assert states(list(doctor.storage(Folder.at(tmp_path / "runs"))))["storage"] == "ok"
    assert not (tmp_path / "runs").exists(), "looking leaves nothing behind"


def test_a_model_folder_without_configuration_is_wrong_and_a_preset_builds(tmp_path: Path) -> None:
    labels = LabelTable.open("lung")
    assert states(list(doctor.model(ModelSettings(path=str(tmp_path)), labels, 56))) == {"model": "wrong"}
    assert states(list(doctor.model(ModelSettings(preset="tiny"), labels, 56))) == {"model": "ok", "checkpoints": "ok"}


def test_an_internvl_is_built_with_all_its_weights_and_a_cut_one_is_wrong(tmp_path: Path) -> None:
    labels, folder = LabelTable.open("lung"), tmp_path / "internvl"
    folder.mkdir()
    classifiers.build(ModelSettings(preset="internvl-tiny"), labels.codes, 56).export(folder)  # type: ignore[operator]
    finding = next(doctor.model(ModelSettings(path=str(folder)), labels, 56))
    assert finding.state == "ok" and "every weight fits" in finding.text
    state = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in state.items() if "layer.1." not in name}, folder / "model.safetensors")
    assert states(list(doctor.model(ModelSettings(path=str(folder)), labels, 56))) == {"model": "wrong"}


def test_lost_shards_and_leaks_are_found(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "data", patients=8)
    assert states(list(doctor.data(str(tmp_path / "data")))) == {"data": "ok", "splits": "ok"}
    (tmp_path / "data" / "shards" / "part-0.parquet").unlink()
    (finding, _) = doctor.data(str(tmp_path / "data"))
    assert finding.state == "wrong" and "part-0.parquet" in finding.text
    assert pq.read_table(tmp_path / "data" / "index.parquet").num_rows == prepared.index.num_rows
    assert states(list(doctor.data(str(tmp_path)))) == {"data": "wrong"}


def test_a_tracking_server_that_is_down_is_wrong(tmp_path: Path) -> None:
    assert doctor.tracking("http://127.0.0.1:9").state == "wrong"
    assert doctor.tracking(f"sqlite:///{tmp_path}/mlflow.db").state == "ok"


def test_a_traceback_keeps_places_and_loses_every_message() -> None:
    text = """Traceback (most recent call last):
  File "/x/raymed/data/leak.py", line 40, in guard
    raise UserError(f"patient {name}")
raymed.errors.UserError: patient Zhang San is in train and test
  Zhang San: slices 1 to 3
Zhang San

During handling of the above exception, another exception occurred:

KeyError: 'Zhang San'
"""
    kept = frames_only(text)
    assert "Zhang" not in kept
    assert kept.splitlines()[1:] == [
        '  File "/x/raymed/data/leak.py", line 40, in guard',
        "raymed.errors.UserError",
        "KeyError",
    ]


def test_the_bundle_names_no_patient(tmp_path: Path, prepared: Prepared) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker.open(uri, "raymed-lung")
    tracker.run("a", "a", tags={"raymed.command": "python jobs/tune_lung.py"}, params={"train": {"lr": 0.1}})
    findings = [*doctor.data(prepared.folder.uri), Finding("data", "wrong", "p003 is in train and test")]
    write_bundle(tmp_path / "b.zip", findings, "python jobs/tune_lung.py", prepared.folder.uri, uri)
    with zipfile.ZipFile(tmp_path / "b.zip") as bundle:
        texts = {name: bundle.read(name).decode() for name in bundle.namelist()}
    assert json.loads(texts["manifest.json"])["digest"] == prepared.digest
    record = json.loads(texts["record.json"])
    assert record["patient"] == "x000" and record["images"] == [["input", 0, [28, 28, 1]]]
    assert json.loads(texts["runs.json"])[0]["params"] == {"train.lr": "0.1"}
    assert "torch==" in texts["packages.txt"]
    patients = {str(patient) for patient in prepared.columns(prepared.rows("all"), ["patient"])["patient"]}
    assert [name for name, text in texts.items() for patient in patients if patient in text] == []


def test_a_text_is_masked_but_for_what_a_helper_has_to_see() -> None:
    text = "Jane, 47: 双肺\n<image>\n<cls>: 0|1|2|3. Born 1970?"
    assert masked(text) == "xxxx, 00: xx\n<image>\n<cls>: 0|1|2|3. xxxx 0000?"


@pytest.mark.slow
def test_what_made_a_mistake_is_kept_for_the_bundle(tmp_path: Path) -> None:
    """The message is for a person; the places in the code, of its cause too, are for whoever helps."""
    code = (
        "from raymed.errors import UserError\nfrom raymed.job.job import JobOptions, run\n"
        "def main(options):\n    try:\n        {}['key']\n    except KeyError as error:\n"
        "        raise UserError('no key') from error\nrun(JobOptions, main)\n"
    )
    (tmp_path / "job.py").write_text(code)
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(JOBS.parent)}
    done = subprocess.run([sys.executable, str(tmp_path / "job.py")], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.strip() == "error: no key"
    (kept,) = tmp_path.glob("raymed-*/traceback-*.txt")
    frames = frames_only(kept.read_text())
    assert "KeyError" in frames and "UserError" in frames and "in main" in frames and "no key" not in frames


def test_a_folder_that_a_job_removes_meanwhile_does_not_end_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("raymed-a", "raymed-b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "traceback-1.txt").write_text("KeyError: 'x'")
    scan = os.scandir

    def removed(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "raymed-a":
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "scandir", removed)
    write_bundle(tmp_path / "b.zip", [], "x", None, None)
    with zipfile.ZipFile(tmp_path / "b.zip") as bundle:
        assert bundle.read("tracebacks.txt").decode() == "traceback-1.txt\nKeyError"


def test_a_damaged_manifest_is_a_finding_and_the_bundle_is_written_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    findings = list(doctor.data(str(tmp_path)))
    write_bundle(tmp_path / "b.zip", findings, "x", str(tmp_path), f"sqlite:///{tmp_path}/mlflow.db")
    assert states(findings) == {"data": "wrong"} and zipfile.is_zipfile(tmp_path / "b.zip")


@pytest.mark.slow
def test_the_job_says_what_to_mend_and_speaks_json(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(JOBS / "doctor.py"),
        "--storage",
        str(tmp_path / "runs"),
        "--data",
        str(tmp_path),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    answer = json.loads(done.stdout)
    assert answer["ready"] is False
    assert [each["subject"] for each in answer["findings"] if each["state"] == "wrong"] == ["data"]


@pytest.mark.slow
def test_remote_storage_without_a_tracking_address_is_a_finding_among_the_others(tmp_path: Path) -> None:
    command = [sys.executable, str(JOBS / "doctor.py"), "--storage", "mock://bucket/runs", "--bundle", "support.zip"]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "wrong   MLflow" in done.stdout and "--tracking-uri" in done.stdout
    assert "ok      Python" in done.stdout and (tmp_path / "support.zip").is_file()
