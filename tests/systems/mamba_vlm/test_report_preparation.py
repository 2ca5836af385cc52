"""Reports prepared with real Ray from real files: what is stored, refused, split and read again; no noise replaces any."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from volume_files import CHEST, SIDE, shown, write_nifti

from raymed.data.image import ImageSettings
from raymed.data.phantom import PhantomSettings
from raymed.data.split import SplitSettings
from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.phantoms import prepare_phantom_reports
from raymed.systems.mamba_vlm.radfm import WHOLE
from raymed.systems.mamba_vlm.report_files import ReportFiles
from raymed.systems.mamba_vlm.report_settings import ReportSettings
from raymed.systems.mamba_vlm.reports import prepare_reports

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

REAL = os.environ.get("RAYMED_REAL_DATA")
SETTINGS = ReportSettings(
    image=ImageSettings(size=SIDE), split=SplitSettings("2/1/1", folds=0), normalize="window", max_quarantine="40%"
)


def chest(number: int) -> np.ndarray:
    return (CHEST + np.random.default_rng(number).integers(0, 200, CHEST.shape)).astype(np.int16)


def volumes(folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        write_nifti(folder / f"P{number}_20260101_0000.nii.gz", hu=chest(number))


def table(folder: Path, name: str, numbers: range) -> Path:
    lines = [f"P{number}_20260101_0000.nii.gz,What is seen?,Report {number}." for number in numbers]
    (folder / name).write_text("\n".join(["image_path,question,answer", *lines, ""]))
    return folder / name


def test_a_volume_that_cannot_be_read_is_in_the_quarantine_and_not_in_the_data(tmp_path: Path) -> None:
    volumes(tmp_path, 8)
    (tmp_path / "P3_20260101_0000.nii.gz").write_bytes(b"no volume")
    result = prepare_reports(ReportFiles({WHOLE: table(tmp_path, "all.csv", range(8))}), str(tmp_path / "out"), SETTINGS)
    prepared = result.prepared
    records = prepared.read(prepared.rows("all"))
    assert [record.patient for record in records] == [f"P{number}" for number in range(8) if number != 3]
    [line] = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert (line["patient"], line["where"], line["reason"]) == ("P3", "all.csv:5", "not a readable NIfTI file")
    assert prepared.manifest.left_out == {"P3": "not a readable NIfTI file"}
    assert [turn.text for turn in records[0].messages] == ["What is seen?", "Report 0."]
    assert np.array_equal(records[0].images[0].pixels[:, :, 0], shown(chest(0))[2])
    assert prepared.manifest.settings["intensity"]["scheme"] == "unit"
    again = prepare_reports(ReportFiles({WHOLE: tmp_path / "all.csv"}), str(tmp_path / "out"), SETTINGS)
    assert (again.new, again.prepared.digest) == (0, prepared.digest)


def test_two_files_are_the_split_and_identical_pixels_across_them_are_an_error(tmp_path: Path) -> None:
    volumes(tmp_path, 6)
    files = ReportFiles({"train": table(tmp_path, "train.csv", range(4)), "val": table(tmp_path, "val.csv", range(4, 6))})
    prepared = prepare_reports(files, str(tmp_path / "out"), SETTINGS).prepared
    assert {record.patient for record in prepared.read(prepared.rows("val"))} == {"P4", "P5"}
    (tmp_path / "P5_20260101_0000.nii.gz").write_bytes((tmp_path / "P0_20260101_0000.nii.gz").read_bytes())
    with pytest.raises(UserError, match=r"(?s)P0.*P5"):
        prepare_reports(files, str(tmp_path / "out"), SETTINGS)


def test_under_pseudonyms_no_file_of_the_prepared_data_names_a_patient_and_the_split_stays(tmp_path: Path) -> None:
    volumes(tmp_path / "source", 6)
    source = tmp_path / "source"
    files = ReportFiles({"train": table(source, "train.csv", range(4)), "val": table(source, "val.csv", range(4, 6))})
    settings = replace(SETTINGS, pseudonymise=str(tmp_path / "keys" / "hospital.key"))
    prepared = prepare_reports(files, str(tmp_path / "out"), settings).prepared
    assert [len(prepared.rows(split)) for split in ("train", "val")] == [4, 2]
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(f"P{number}_2026".encode() in content for content in written for number in range(6))


def test_phantom_reports_are_prepared_through_the_same_files_that_users_have(tmp_path: Path) -> None:
    phantom = PhantomSettings(patients=12, size=32, slices=(4, 4), difficulty=0.1)
    settings = replace(SETTINGS, image=ImageSettings(size=32), max_quarantine="0%")
    prepared = prepare_phantom_reports(Folder.at(tmp_path), phantom, settings)
    records = prepared.read(prepared.rows("all"))
    assert len(records) == 12
    assert {record.patient for record in records} == {f"phantom_{number:04d}" for number in range(12)}
    for record in records:
        roles = [image.role for image in record.images]
        assert roles == (["input"] if "clear" in record.messages[1].text else ["input", "mask"])
    assert len(prepared.manifest.settings["prompts"]) == 3
    assert prepare_phantom_reports(Folder.at(tmp_path), phantom, settings).digest == prepared.digest


@pytest.mark.real
@pytest.mark.skipif(REAL is None, reason="RAYMED_REAL_DATA names no real images")
def test_real_captions_are_prepared_by_patient(tmp_path: Path) -> None:
    root = Path(str(REAL))
    settings = replace(SETTINGS, root=str(root), normalize="minmax", max_quarantine="5%")
    prepared = prepare_reports(ReportFiles({WHOLE: root / "captions" / "captions.csv"}), str(tmp_path), settings).prepared
    assert prepared.index.num_rows + prepared.manifest.quarantined == 231
    assert sum(prepared.manifest.patients["unlabelled"].values()) >= 118
