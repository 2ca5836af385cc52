"""Pseudonyms: nothing of an original name gets out, and the owner can go back."""

from __future__ import annotations

import csv
import io
import json
import os
import runpy
import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from raymed.data.image import ImageSettings
from raymed.data.prepare import PrepareSettings, prepare
from raymed.data.pseudonyms import Pseudonyms
from raymed.data.sources import SourceSettings
from raymed.data.split import SplitSettings
from raymed.data.survey import survey
from raymed.errors import UserError
from raymed.storage.folder import Folder

REPOSITORY = Path(__file__).parent.parent.parent
CLASSES = ("normal", "bacterial", "viral", "pneumocystis")
NAMES = [f"Doe^Jane^{number:02d}" for number in range(12)]


@pytest.fixture
def pseudonyms(tmp_path: Path) -> Pseudonyms:
    return Pseudonyms.open(tmp_path / "owner" / "key", Folder.at(tmp_path / "out"))


@given(st.lists(st.text(min_size=1), unique=True, max_size=50))
def test_different_names_have_different_pseudonyms_that_do_not_hold_them(names: list[str]) -> None:
    known = Pseudonyms(Path("key"), b"0" * 32)
    made = {known.patient(name) for name in names}
    assert len(made) == len(names)
    assert made.isdisjoint({Pseudonyms(Path("key"), b"1" * 32).patient(name) for name in names})


def test_a_key_that_cannot_be_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, says in (("", "is a folder"), ("file/key", "cannot be written")):
        with pytest.raises(UserError, match=says):
            Pseudonyms.open(tmp_path / place)


def test_a_key_is_made_once_and_is_for_its_owner_alone(tmp_path: Path, pseudonyms: Pseudonyms) -> None:
    assert pseudonyms.file.stat().st_mode & 0o777 == 0o600
    assert Pseudonyms.open(pseudonyms.file, Folder.at(tmp_path / "out")) == pseudonyms
    pseudonyms.file.chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        Pseudonyms.open(pseudonyms.file, Folder.at(tmp_path / "out"))


def test_a_key_among_the_prepared_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keep it with the originals"):
        Pseudonyms.open(tmp_path / "out" / "key", Folder.at(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_key_is_refused_and_not_overwritten(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("not a key")
    other.chmod(0o600)
    with pytest.raises(UserError, match="no key"):
        Pseudonyms.open(other, Folder.at(tmp_path / "out"))
    assert other.read_text() == "not a key"


def test_texts_that_name_their_patient_are_refused(tmp_path: Path, pseudonyms: Pseudonyms) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image> Is Jane-7 well? <cls>: 0|1|2|3."}, {"from": "gpt", "value": "0"}]
    line = {"image": "a.png", "patient_id": "Jane-7", "conversations": turns}
    (tmp_path / "lines.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="name their patient"):
        pseudonyms.rename(survey(tmp_path / "lines.jsonl", SourceSettings(), "lung"))


def test_names_with_commas_and_signs_come_back_as_the_kind_of_file_asks(tmp_path: Path, pseudonyms: Pseudonyms) -> None:
    (tmp_path / "in" / "normal" / "Doe, J & Co").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "in" / "normal" / "Doe, J & Co" / "0.png")
    (study,) = pseudonyms.rename(survey(tmp_path / "in", SourceSettings(), "lung")).studies
    job = runpy.run_path(str(REPOSITORY / "jobs" / "reidentify.py"))
    table = job["reidentified"](f"patient_id,decision\n{study.patient},normal\n", ".csv", pseudonyms)
    assert list(csv.reader(io.StringIO(table))) == [["patient_id", "decision"], ["Doe, J & Co", "normal"]]
    assert job["reidentified"](f"<b>{study.patient}</b>", ".html", pseudonyms) == "<b>Doe, J &amp; Co</b>"


def test_notes_on_a_source_stay_but_for_the_names_in_them(tmp_path: Path, pseudonyms: Pseudonyms) -> None:
    """All were dropped: who prepared data under pseudonyms did not hear what was left out."""
    (tmp_path / "in" / "normal" / "Jane").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "in" / "normal" / "Jane" / "0.png")
    (tmp_path / "in" / "normal" / "Jane" / "Jane.txt").write_text("well")
    found = survey(tmp_path / "in", SourceSettings(), "lung")
    assert found.listing.notes == ("1 files that are not pictures were left out: normal/Jane/Jane.txt",)
    assert pseudonyms.rename(found).listing.notes == ("1 files that are not pictures were left out",)
    told = replace(found, listing=replace(found.listing, notes=("Jane's scan is squashed", *found.listing.notes)))
    assert pseudonyms.rename(told).listing.notes == (
        "1 files that are not pictures were left out",
        "notes that may hold names, and are not repeated here: 1 (--dry-run shows them)",
    )


def test_pseudonyms_lead_back_only_with_the_right_table(tmp_path: Path, pseudonyms: Pseudonyms) -> None:
    (tmp_path / "in" / "normal" / "Jane").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "in" / "normal" / "Jane" / "0.png")
    found = pseudonyms.rename(survey(tmp_path / "in", SourceSettings(), "lung"))
    text = f"patient_id,decision\n{found.studies[0].patient},normal\n"
    assert pseudonyms.reveal(text) == "patient_id,decision\nJane,normal\n"
    assert pseudonyms.table.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match="another key"):
        pseudonyms.reveal("patient-0123456789abcdef")


def write_source(folder: Path) -> None:
    """DICOM series of twelve patients whose names stand in folders and headers; one file is broken, one link is refused."""
    draw = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        place = folder / CLASSES[number % 4] / name
        place.mkdir(parents=True)
        series = generate_uid()
        for position in range(2):
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
            dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = name, name, "19700101"
            dataset.InstitutionName, dataset.Modality, dataset.SeriesInstanceUID = "St. Elsewhere", "CT", series
            dataset.InstanceNumber, dataset.ImagePositionPatient = position, [0, 0, position]
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            dataset.Rows = dataset.Columns = 32
            dataset.PixelSpacing = [0.75, 0.75]
            dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
            dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
            dataset.PixelData = draw.integers(-1200, 100, (32, 32), dtype=np.int16).tobytes()
            pydicom.dcmwrite(place / f"{name}-{position}.dcm", dataset)
        if number == 3:
            broken = place / f"{name}-1.dcm"
            broken.write_bytes(broken.read_bytes()[:-1000])
            (place / f"{name}-2.dcm").write_bytes(b"")


def content(folder: Path) -> str:
    """Everything in a folder that can be read: names, texts, and every value of every table."""
    parts = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            table = path.suffix == ".parquet"
            text = repr(pq.read_table(path).to_pylist()) if table else path.read_bytes().decode("utf-8", "replace")
            parts.append(f"{path.relative_to(folder)}\n{text}\n")
            if table:
                parts.append(repr(pq.read_metadata(path)))
    return "\n".join(parts)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_no_original_name_appears_in_prepared_data_and_the_owner_can_go_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_source(tmp_path / "in")
    out, key = tmp_path / "out", tmp_path / "owner" / "key"
    settings = PrepareSettings(
        image=ImageSettings(size=32), split=SplitSettings(folds=0), max_quarantine="20%", pseudonymise=str(key)
    )
    result = prepare(tmp_path / "in", str(out), settings)
    assert (result.new, result.prepared.manifest.quarantined) == (12, 2)
    assert result.prepared.manifest.modalities == {"CT": 23}
    assert set(result.prepared.index["pixel_spacing"].to_pylist()) == {0.75}
    everything = content(out) + caplog.text
    series = {header.SeriesInstanceUID for header in map(pydicom.dcmread, sorted((tmp_path / "in").rglob("*-0.dcm")))}
    for original in [*NAMES, *series, "Doe", "Jane", "19700101", "Elsewhere", str(tmp_path), key.read_text().strip()]:
        assert original not in everything
    again = prepare(tmp_path / "in", str(out), settings)
    assert (again.new, again.kept, again.prepared.digest) == (0, 12, result.prepared.digest)
    patients = sorted(set(result.prepared.index["patient"].to_pylist()))
    (tmp_path / "patients.csv").write_text("patient_id\n" + "\n".join(patients) + "\n")
    command = [sys.executable, str(REPOSITORY / "jobs" / "reidentify.py"), str(tmp_path / "patients.csv"), str(key)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "RAYMED_STORAGE": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    named = (tmp_path / "owner" / "patients.csv").read_text().splitlines()[1:]
    assert sorted(named) == NAMES


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_split_file_speaks_of_patients_by_their_own_names(tmp_path: Path) -> None:
    write_source(tmp_path / "in")
    lines = [f"{name},{('train', 'val', 'test')[number // 4]}" for number, name in enumerate(NAMES)]
    (tmp_path / "splits.csv").write_text("patient_id,split\n" + "\n".join(lines) + "\n")
    split = SplitSettings(folds=0, file=str(tmp_path / "splits.csv"))
    key = tmp_path / "key"
    settings = PrepareSettings(image=ImageSettings(size=32), split=split, max_quarantine="20%", pseudonymise=str(key))
    prepared = prepare(tmp_path / "in", str(tmp_path / "out"), settings).prepared
    known = Pseudonyms.open(key, prepared.folder)
    of = dict(zip(prepared.index["patient"].to_pylist(), prepared.index["split"].to_pylist(), strict=True))
    assert of == {known.patient(name): ("train", "val", "test")[number // 4] for number, name in enumerate(NAMES)}


def test_a_patient_without_a_picture_is_in_the_table_and_under_no_name_of_his_own(tmp_path: Path) -> None:
    (tmp_path / "in" / "normal" / "Jane").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "in" / "normal" / "Jane" / "0.png")
    (tmp_path / "in" / "normal" / "Doe").mkdir()
    pseudonyms = Pseudonyms.open(tmp_path / "owner" / "key")
    (refusal,) = pseudonyms.rename(survey(tmp_path / "in", SourceSettings(), "lung")).listing.refusals
    assert "Doe" not in repr(refusal)
    assert pseudonyms.reveal(f"{refusal.patient}") == "Doe"


def test_two_first_uses_of_a_key_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[Pseudonyms] = []
    draw = secrets.token_hex

    def draw_late(length: int) -> str:
        """Another process makes the key while this one is about to."""
        if not others:
            others.append(Pseudonyms(tmp_path / "none", b""))
            others[0] = Pseudonyms.open(tmp_path / "key")
        return draw(length)

    monkeypatch.setattr("raymed.data.pseudonyms.secrets.token_hex", draw_late)
    first = Pseudonyms.open(tmp_path / "key")
    assert first.key_name == others[0].key_name == Pseudonyms.open(tmp_path / "key").key_name
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_key_is_written_out_before_it_has_its_name_and_its_name_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a power cut takes leaves pseudonyms that nobody can undo."""
    kept: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: kept.append(Path(f"/proc/self/fd/{file}").readlink().name))
    link = Path.hardlink_to
    monkeypatch.setattr(Path, "hardlink_to", lambda path, to: kept.append("named") or link(path, to))  # type: ignore[func-returns-value]
    Pseudonyms.open(tmp_path / "key")
    assert kept[0].startswith("key.") and kept[1:] == ["named", tmp_path.name]


def test_the_table_of_a_key_keeps_what_others_write_meanwhile(tmp_path: Path) -> None:
    pseudonyms = Pseudonyms.open(tmp_path / "key")
    (tmp_path / "in" / "normal" / "Jane").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "in" / "normal" / "Jane" / "0.png")
    found = survey(tmp_path / "in", SourceSettings(), "lung")
    with ThreadPoolExecutor() as pool:
        with FileLock(f"{pseudonyms.table}.lock"):
            waiting = pool.submit(pseudonyms.rename, found)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            john = f"kind,pseudonym,original\npatient,{pseudonyms.patient('John')},John\n"
            pseudonyms.table.write_text(john, encoding="utf-8")
        waiting.result(timeout=30)
    assert pseudonyms.reveal(f"{pseudonyms.patient('Jane')} {pseudonyms.patient('John')}") == "Jane John"
