"""A corpus, prepared with real Ray from real files: what is stored, measured, refused, split and read again."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from raymed.data import corpus_yield
from raymed.data.corpus import CorpusSettings, prepare_corpus
from raymed.data.image import ImageSettings
from raymed.data.leak import guard
from raymed.data.packing import MixtureSettings
from raymed.data.phantom import PhantomSettings
from raymed.data.phantom_notes import prepare_notes
from raymed.data.prepared import Prepared
from raymed.data.split import SplitSettings
from raymed.data.tiles import cut, stretch
from raymed.errors import UserError
from raymed.models.internvl_text import byte_tokenizer, encode_turns, tokenizer_digest
from raymed.storage.folder import Folder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

REAL = os.environ.get("RAYMED_REAL_DATA")
SIZE = 28
SETTINGS = CorpusSettings(image=ImageSettings(size=SIZE), split=SplitSettings("2/1/1", folds=0), max_quarantine="30%")
COLOUR = "p0.png"


def picture(seed: int, width: int = 40, height: int = 40) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.clip(gaussian_filter(draw.normal(size=(height, width)), 2) * 400 + 120, 0, 255).astype(np.uint8)


def sample(image: object, question: str, answer: str = "Clear.", **more: object) -> str:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps({"conversations": turns, **({"image": image} if image else {}), **more})


def lines_of(patients: int) -> list[str]:
    """A caption of a wide picture for each patient; and for some two pictures, or none."""
    lines = [sample(f"p{n}.png", "Describe<image>", f"Patient number {n}.", patient_id=f"P{n}") for n in range(patients)]
    lines.append(sample(["p0.png", "p0b.png"], "<image>\n<image>\nCompare.", patient_id="P0"))
    lines.append(sample(None, "What is a lung?", patient_id="P1"))
    return lines


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eight patients, ten samples, and a meta file that shows them twice."""
    images = tmp_path / "source" / "images"
    images.mkdir(parents=True)
    for number in range(9):
        Image.fromarray(picture(number, width=80)).save(images / f"p{number}.png")
    Image.fromarray(np.stack([picture(50 + c, width=80) for c in range(3)], axis=-1)).save(images / COLOUR)
    Image.fromarray(picture(100, height=90)).save(images / "p0b.png")
    (images.parent / "lines.jsonl").write_text("\n".join(lines_of(8)) + "\n", "utf-8")
    entry = {"root": "images", "annotation": "lines.jsonl", "data_augment": True, "repeat_time": 2, "max_dynamic_patch": 4}
    (images.parent / "meta.json").write_text(json.dumps({"chest": entry}), "utf-8")
    return images.parent / "meta.json"


def test_samples_are_stored_as_they_are_written_with_their_tiles_and_measured(source: Path, tmp_path: Path) -> None:
    result = prepare_corpus(source, str(tmp_path / "out"), SETTINGS)
    prepared = Prepared.open(str(tmp_path / "out"))
    records = {record.id: record for record in prepared.read(prepared.rows("all"))}
    assert len(records) == 10 and result.prepared.digest == prepared.digest
    assert set(prepared.index["split"].to_pylist()) == {"train", "val", "test"}
    tokenizer = byte_tokenizer()
    settings = prepared.manifest.settings
    assert settings["tokenizer"] == tokenizer_digest(tokenizer) and settings["datasets"]["chest"]["data_augment"] is True
    images = source.parent / "images"
    costs = dict(zip(prepared.index["id"].to_pylist(), prepared.index["cost"].to_pylist(), strict=True))
    for record in records.values():
        shapes = [(image.role, image.place, image.pixels.shape) for image in record.images]
        if record.messages[0].text == "Describe<image>":
            channels = 3 if record.patient == "P0" else 1
            assert shapes == [("input", 0, (SIZE, 2 * SIZE, channels)), ("thumbnail", 0, (SIZE, SIZE, channels))]
            stored = np.asarray(Image.open(images / f"p{record.patient[1:]}.png")).reshape(40, 80, channels)
            np.testing.assert_array_equal(record.images[0].pixels, stretch(stored, 2 * SIZE, SIZE))
            assert cut(record.images[0].pixels, SIZE).shape == (2, SIZE, SIZE, 3)
            tiles = [3]
        elif "Compare" in record.messages[0].text:  # two tiles each
            assert [shape[:2] for shape in shapes] == [("input", 0), ("thumbnail", 0), ("input", 1), ("thumbnail", 1)]
            assert record.images[2].pixels.shape == (2 * SIZE, SIZE, 1)
            tiles = [3, 3]
        else:
            assert record.images == () and record.messages[0].text == "What is a lung?"
            tiles = []
        assert costs[record.id] == len(encode_turns(tokenizer, record.messages, tiles)[0])
    pixels = sum(image.pixels.size for record in records.values() for image in record.images)
    assert prepared.pixel_bytes(prepared.rows("all")) == pixels
    assert sorted(corpus_yield.tile_counts(prepared).tolist()) == [0, *(8 * [3]), 6]
    drawn = MixtureSettings().draw(prepared, [prepared.rows("train")], 0, 0)
    assert f"an epoch: {sum(map(len, drawn.packs))} samples to train on" in corpus_yield.lines(prepared)[1]
    assert sorted(row for each in drawn.packs for row in each) == sorted(2 * prepared.rows("train").tolist())


def test_only_what_changed_is_read_again_and_patients_keep_their_split(source: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    first = prepare_corpus(source, out, SETTINGS)
    again = prepare_corpus(source, out, SETTINGS)
    assert (again.new, again.kept, again.prepared.digest) == (0, 8, first.prepared.digest)
    (source.parent / "lines.jsonl").write_text("\n".join(lines_of(9)[1:]), "utf-8")  # P0 loses a line, P8 comes
    changed = prepare_corpus(source, out, SETTINGS)
    assert (changed.new, changed.kept) == (2, 7)
    places = [each.prepared.index.select(["patient", "split"]).to_pylist() for each in (first, changed)]
    splits = [{row["patient"]: row["split"] for row in rows} for rows in places]
    assert splits[1] == splits[0] | {"P8": splits[1]["P8"]}
    fresh = prepare_corpus(source, str(tmp_path / "fresh"), SETTINGS)
    shown = [sorted(each.prepared.index.select(["id", "digest", "cost"]).to_pylist(), key=str) for each in (changed, fresh)]
    assert shown[0] == shown[1]
    longer = prepare_corpus(source, out, replace(SETTINGS, max_tokens=4000))
    assert longer.kept == 0, "samples that were measured against another length are taken over"


def test_samples_that_cannot_be_used_are_quarantined_by_line_and_reason(source: Path, tmp_path: Path) -> None:
    images = source.parent / "images"
    (images / "p1.png").write_bytes((images / "p1.png").read_bytes()[:60])
    with (source.parent / "lines.jsonl").open("a", encoding="utf-8") as file:
        file.write(sample(None, "Why?", "x" * 5000, patient_id="P1") + "\n")
    out = str(tmp_path / "out")
    result = prepare_corpus(source, out, SETTINGS)
    lines = [json.loads(line) for line in Folder.at(out).read("quarantine.jsonl").decode().splitlines()]
    reasons = {line["where"]: line["reason"] for line in lines}
    assert reasons.keys() == {"lines.jsonl:2", "lines.jsonl:11"} and result.prepared.index.num_rows == 9
    assert reasons["lines.jsonl:2"].startswith("picture 1 of 1: ") and "p1.png" not in reasons["lines.jsonl:2"]
    assert "more than max_tokens 4096" in reasons["lines.jsonl:11"]
    with pytest.raises(UserError, match="max_quarantine"):
        prepare_corpus(source, str(tmp_path / "strict"), replace(SETTINGS, max_quarantine="5%"))
    assert not Folder.at(tmp_path / "strict").exists("manifest.json")


def test_a_picture_that_two_patients_share_in_any_place_is_found(source: Path, tmp_path: Path) -> None:
    lines = [*lines_of(8), sample(["p3.png", "p5.png"], "<image><image>", patient_id="P3")]
    (source.parent / "lines.jsonl").write_text("\n".join(lines), "utf-8")
    with pytest.raises(UserError, match=r"identical pixels.*P3.*P5|identical pixels.*P5.*P3"):
        prepare_corpus(source, str(tmp_path / "out"), SETTINGS)
    nameless = [line.replace('"patient_id"', '"unused"') for line in lines]
    (source.parent / "lines.jsonl").write_text("\n".join(nameless), "utf-8")
    prepared = prepare_corpus(source, str(tmp_path / "out"), SETTINGS).prepared
    rows = prepared.index.select(["patient", "group", "split"]).to_pylist()
    both = [row for row in rows if row["patient"] in ("images/p3.png", "images/p5.png")]
    assert len(both) == 3 and len({(row["group"], row["split"]) for row in both}) == 1
    moved = prepared.index.to_pylist()
    for row in moved:
        row["group"] = row["patient"]
        if row["patient"] == "images/p5.png":
            row["split"] = "val" if both[0]["split"] != "val" else "test"
    with pytest.raises(UserError, match="identical pixels"):
        guard(type(prepared.index).from_pylist(moved, schema=prepared.index.schema))


def test_names_are_replaced_and_a_text_that_names_its_patient_is_refused(source: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, pseudonymise=str(tmp_path / "key"))
    prepared = prepare_corpus(source, str(tmp_path / "out"), settings).prepared
    assert all(patient.startswith("patient-") for patient in prepared.index["patient"].to_pylist())
    manifest = Folder.at(tmp_path / "out").read("manifest.json").decode()
    assert str(tmp_path) not in manifest and "lines.jsonl" not in manifest
    assert len(prepared.read(prepared.rows("all"))) == 10
    with (source.parent / "lines.jsonl").open("a", encoding="utf-8") as file:
        file.write(sample(None, "How is P4?", patient_id="P4") + "\n")
    with pytest.raises(UserError, match=r"lines\.jsonl:11: the text names its patient"):
        prepare_corpus(source, str(tmp_path / "out"), settings)


def test_a_text_that_names_its_patient_is_refused_where_the_path_names_the_patient_too(tmp_path: Path) -> None:
    patients = ("anna", "lines", "otto")
    for number, patient in enumerate(patients):
        (tmp_path / patient).mkdir()
        Image.fromarray(picture(number)).save(tmp_path / patient / "1.png")
    named = replace(SETTINGS, pseudonymise=str(tmp_path / "key"), patient_regex="([^/]+)/")
    lines = tmp_path / "lines.jsonl"
    lines.write_text(sample("anna/1.png", "<image>How is anna?") + "\n", "utf-8")
    with pytest.raises(UserError, match=r"lines\.jsonl:1: the text names its patient"):
        prepare_corpus(lines, str(tmp_path / "out"), named)
    lines.write_text("\n".join(sample(f"{patient}/1.png", "<image>How are they?") for patient in patients), "utf-8")
    with pytest.raises(UserError, match="named like patients, whose names would stay: lines"):
        prepare_corpus(lines, str(tmp_path / "out"), named)


def test_phantom_patients_come_with_notes_that_agree_with_their_disease(tmp_path: Path) -> None:
    phantom = PhantomSettings(patients=8, size=64, slices=(6, 8))
    prepared = prepare_notes(Folder.at(tmp_path), phantom, replace(SETTINGS, split=SplitSettings("3/1/0", folds=0)))
    records = prepared.read(prepared.rows("all"))
    assert len(records) == 32
    reports = {record.patient: record.messages[1].text for record in records if len({i.place for i in record.images}) == 3}
    assert len(reports) == 8
    words = ("clear", "bacterial", "viral", "Pneumocystis")
    assert all(words[number % 4] in reports[f"phantom_{number:04d}"] for number in range(8))
    assert all("% of the lungs" in text for number, text in enumerate(reports.values()) if number % 4)


def test_the_job_prepares_and_says_what_it_would_do(source: Path, tmp_path: Path) -> None:
    def job(*more: str) -> dict:
        command = [sys.executable, "jobs/prepare_vitp.py", "--source", str(source), "--out", str(tmp_path / "out"), "--json"]
        given = ["--image.size", str(SIZE), "--split.weights", "2/1/1", *more]
        return json.loads(subprocess.run([*command, *given], check=True, capture_output=True, text=True).stdout)

    dry = job("--dry-run")
    assert dry["samples"] == 10 and not (tmp_path / "out").exists()
    assert dry["datasets"]["chest"]["repeat_time"] == 2


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="RAYMED_REAL_DATA is not set")
def test_real_captions_are_prepared_by_patient(tmp_path: Path) -> None:
    table = Path(REAL or "") / "captions" / "captions.csv"
    settings = CorpusSettings(root=REAL, image=ImageSettings(size=56), split=SplitSettings("70/15/15", folds=0))
    prepared = prepare_corpus(table, str(tmp_path / "out"), settings).prepared
    assert prepared.index.num_rows + prepared.manifest.quarantined == 231
    assert len(set(prepared.index["patient"].to_pylist())) > 100
