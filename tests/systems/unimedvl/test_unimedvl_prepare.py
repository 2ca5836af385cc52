"""Data sets of a configuration, prepared with real Ray from real files: what is stored, measured, refused and read again."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from raymed.data.leak import guard
from raymed.data.phantom import PhantomSettings
from raymed.data.prepared import Prepared
from raymed.data.split import SplitSettings
from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.bounds import check_bounds
from raymed.systems.unimedvl.mixture import PackingSettings
from raymed.systems.unimedvl.mixture_config import MixtureConfig
from raymed.systems.unimedvl.packs import encode_sample
from raymed.systems.unimedvl.phantoms import prepare_phantoms
from raymed.systems.unimedvl.prepare import prepare_sequences
from raymed.systems.unimedvl.prepare_settings import SequenceSettings
from raymed.systems.unimedvl.sequence import from_messages
from raymed.systems.unimedvl.settings import PRESETS, TINY
from raymed.systems.unimedvl.tokens import TextTokens

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

SETTINGS = SequenceSettings(split=SplitSettings("2/1/1", folds=0), max_quarantine="50%")
VIT = {"image_stride": 14, "max_image_size": 56, "min_image_size": 28}
VAE = {"image_stride": 8, "max_image_size": 64, "min_image_size": 32}
JOB = Path(__file__).parents[3] / "jobs" / "prepare_unimedvl.py"


def picture(path: Path, seed: int, width: int, height: int, alpha: bool = False) -> None:
    values = np.clip(gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 2) * 400 + 120, 0, 255)
    image = Image.fromarray(values.astype(np.uint8))
    if alpha:
        image = image.convert("RGBA")
        image.putalpha(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eight patients: a question and an edit each, pictures of two shapes; and lines that cannot be used."""
    folder = tmp_path / "source"
    for number in range(8):
        picture(folder / "images" / f"a{number}.png", number, 80, 40)
        picture(folder / "images" / f"b{number}.png", 50 + number, 48, 48)
    picture(folder / "images" / "clear.png", 99, 40, 40, alpha=True)
    picture(folder / "images" / "wide.png", 98, 4200, 40)
    (folder / "images" / "torn.png").write_bytes((folder / "images" / "a0.png").read_bytes()[:300])
    questions, edits = [], []
    for number in range(8):
        named: dict[str, Any] = {"patient_id": f"P{number}"}
        images = [{"path": f"a{number}.png"}]
        asked = {"main_task_type": "image_understanding", "input_img": images, "message": turns("<image>What?", "A lung.")}
        questions.append(named | asked)
        drawn = {"main_task_type": "image_to_image", "input_img": images, "output_img": [{"path": f"b{number}.png"}]}
        edits.append(named | drawn | {"message": turns("<image>Draw.", "Here.<image>")})
    for name in ("clear.png", "wide.png", "torn.png"):
        line = {"main_task_type": "image_understanding", "patient_id": "P0", "message": turns(f"<image>{name}?", "Yes.")}
        questions.append(line | {"input_img": [{"path": name}]})
    for name, known in (("questions", questions), ("edits", edits)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n\n" for line in known))
    keys = {"questions": "SftJSONLIterableDataset_Ver1", "edits": "MedicalImageEditingIterableDataset_ver1"}
    config: dict[str, Any] = {"dataset_info": {}}
    for name, key in keys.items():
        config["dataset_info"][key] = {name: {"data_dir": "images", "jsonl_path": f"{name}.jsonl"}}
        arguments = {"image_transform_args": VAE, "vit_image_transform_args": VIT}
        config[key] = {"dataset_names": {name: [name]}, "weight": 1, **arguments}
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return path


def prepare(source: Path, out: Path, **changes: Any) -> Prepared:
    return prepare_sequences(MixtureConfig.read(source), str(out), replace(SETTINGS, **changes)).prepared


def test_records_hold_their_sequence_their_pictures_and_their_length(source, tmp_path) -> None:
    data = prepare(source, tmp_path / "data")
    grids, tokens = PRESETS[TINY].grids, TextTokens.bytes()
    check_bounds(data, grids)
    records = data.read(data.rows("all"))
    costs = data.columns(data.rows("all"), ["cost"])["cost"]
    assert len(records) == 17
    for record, cost in zip(records, costs, strict=True):
        sequence = encode_sample(record, grids, tokens)
        assert len(sequence.positions) == cost
        kinds = [element.kind for element in from_messages(record.messages)]
        sizes = {(image.role, image.place): image.pixels.shape[:2] for image in record.images}
        if "target" in kinds:
            assert kinds == ["vae", "vit", "human", "gpt", "target"]
            assert sizes == {("output", 0): (32, 64), ("input", 0): (28, 56), ("output", 1): (48, 48)}
        else:
            assert kinds == ["vit", "human", "gpt"] and list(sizes) == [("input", 0)]
    patients, splits = (data.index[name].to_pylist() for name in ("patient", "split"))
    assert len(set(zip(patients, splits, strict=True))) == len(set(patients)) == 8
    guard(data.index)
    drawn = PackingSettings(256, 320, 256).draw(data, [data.rows("train")], 0, 0)
    assert sorted(row for pack in drawn.packs for row in pack)


def test_transparency_is_white_and_bad_pictures_are_quarantined_by_line(source, tmp_path) -> None:
    data = prepare(source, tmp_path / "data")
    clear = next(record for record in data.read(data.rows("all")) if "clear.png?" in record.messages[1].text)
    assert clear.images[0].pixels.min() == 255
    refused = [json.loads(line) for line in (tmp_path / "data" / "quarantine.jsonl").read_text().splitlines()]
    reasons = {line["where"]: line["reason"] for line in refused}
    assert set(reasons) == {"questions.jsonl:19", "questions.jsonl:21"}
    assert "4200x40 pixels: sides must be below 4096" in reasons["questions.jsonl:19"]
    assert "picture 1 of 1: damaged or truncated" in reasons["questions.jsonl:21"]


def test_only_what_changed_is_read_again_and_weights_are_not_pixels(source, tmp_path) -> None:
    first = prepare(source, tmp_path / "data")
    config = json.loads(source.read_text())
    config["SftJSONLIterableDataset_Ver1"]["weight"] = 3
    source.write_text(json.dumps(config))
    again = prepare_sequences(MixtureConfig.read(source), str(tmp_path / "data"), SETTINGS)
    assert again.new == 0 and again.prepared.digest != first.digest
    assert again.prepared.manifest.settings["groups"]["SftJSONLIterableDataset_Ver1/questions"]["weight"] == 3.0
    config["SftJSONLIterableDataset_Ver1"]["vit_image_transform_args"]["max_image_size"] = 42
    source.write_text(json.dumps(config))
    assert prepare_sequences(MixtureConfig.read(source), str(tmp_path / "data"), SETTINGS).new > 0


def test_too_many_lines_that_cannot_be_used_are_an_error(source, tmp_path) -> None:
    with pytest.raises(UserError, match=r"2 of 19 records cannot be used, more than max_quarantine 5.0%"):
        prepare(source, tmp_path / "data", max_quarantine="5%")


def test_a_class_of_the_users_own_is_prepared_by_workers_that_lack_its_module(source, tmp_path, monkeypatch) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "picture_last_datasets.py").write_text(
        "from raymed.systems.unimedvl.registry import dataset_class\n"
        "from raymed.systems.unimedvl.sequence import Element\n\n\n"
        "def texts(sample):\n    return [Element('gpt', text) for text in sample.texts('gpt')]\n\n\n"
        "@dataset_class('PictureLast')\n"
        "def picture_last(sample):\n    return [*texts(sample), Element('vit', place=0)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    config = json.loads(source.read_text())
    questions = "SftJSONLIterableDataset_Ver1"
    config["dataset_info"] = {"PictureLast": config["dataset_info"][questions]}
    source.write_text(json.dumps({"dataset_info": config["dataset_info"], "PictureLast": config[questions]}))
    made = MixtureConfig.read(source, "picture_last_datasets")
    data = prepare_sequences(made, str(tmp_path / "data"), SETTINGS).prepared
    kinds = {tuple(each.kind for each in from_messages(record.messages)) for record in data.read(data.rows("all"))}
    assert kinds == {("gpt", "vit")}


def test_phantoms_are_made_prepared_and_kept(tmp_path) -> None:
    storage = Folder.at(tmp_path)
    data = prepare_phantoms(storage, PhantomSettings(patients=8, size=64, difficulty=0.2))
    check_bounds(data, PRESETS[TINY].grids)
    assert (
        data.manifest.quarantined == 0
        and len(data.rows("val"))
        and data.columns(data.rows("all"), ["cost"])["cost"].max() <= 256
    )
    assert prepare_phantoms(storage, PhantomSettings(patients=8, size=64, difficulty=0.2)).digest == data.digest


def test_the_job_checks_lines_without_writing_and_exits_with_2_where_some_are_wrong(source, tmp_path) -> None:
    lines = (source.parent / "edits.jsonl").read_text()
    (source.parent / "edits.jsonl").write_text(lines + '{"main_task_type": "nonsense"}\n')
    command = [sys.executable, str(JOB), "--dataset-config-file", str(source), "--out", str(tmp_path / "data"), "--dry-run"]
    done = subprocess.run([*command, "--storage", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "edits.jsonl:17: main_task_type is 'nonsense'" in done.stdout
    assert not (tmp_path / "data").exists()
