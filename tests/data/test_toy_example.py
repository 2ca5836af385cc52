"""The toy example as the users' guide prints it: five pictures, a meta file elsewhere, and no patients."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raymed.data.prepare import expected_split
from raymed.data.settings import CorpusSettings, PrepareSettings
from raymed.data.sources import list_source
from raymed.data.sources.samples import list_samples
from raymed.data.split import SplitSettings
from raymed.data.survey import survey
from raymed.errors import UserError

META = Path("ViTP_configs", "ft_data_toy.json")
ENTRY = {
    "root": "data/toy_vt/images",
    "annotation": "data/toy_vt/annotations/train.jsonl",
    "data_augment": False,
    "repeat_time": 1,
    "length": 5,
    "max_dynamic_patch": 1,
}


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the guide's commands are typed in."""
    (tmp_path / "data/toy_vt/images/train").mkdir(parents=True)
    (tmp_path / "data/toy_vt/annotations").mkdir()
    (tmp_path / META).parent.mkdir()
    lines = []
    for number, label in enumerate("01010", start=1):
        image = f"train/image{number}.jpg"
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data/toy_vt/images" / image)
        turns = [{"from": "human", "value": "<image>\n<cls>: 0|1."}, {"from": "gpt", "value": label}]
        lines.append(json.dumps({"image": image, "conversations": turns}))
    (tmp_path / ENTRY["annotation"]).write_text("\n".join(lines) + "\n")
    (tmp_path / META).write_text(json.dumps({"toy_vt_cls": ENTRY}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_read_as_printed_and_says_what_it_took_for_granted(toy: Path) -> None:
    found = survey(META, PrepareSettings(), "lung")
    assert found.patients == {"normal": 3, "bacterial": 2} and found.slices == 5
    assert not found.listing.patients_known
    folder, *_, people, choices = found.listing.notes
    assert f"relative to the current folder, {toy}" in folder
    assert "no line names a patient, so each of the 5 pictures counts as a patient of its own" in people
    assert "0|1 (5 lines, such as train.jsonl:1)" in choices


def test_one_message_says_what_lets_five_pictures_train(toy: Path) -> None:
    with pytest.raises(UserError, match=r"pass --split\.weights 75/25/0 --split\.folds 0$"):
        survey_split(PrepareSettings())
    assert survey_split(PrepareSettings(split=SplitSettings("75/25/0", folds=0))) == {
        "bacterial": {"train": 1, "val": 1},
        "normal": {"train": 2, "val": 1},
    }


def survey_split(settings: PrepareSettings) -> dict[str, dict[str, int]]:
    return expected_split(survey(META, settings, "lung"), settings)


def test_pretraining_reads_it_too(toy: Path) -> None:
    listing, used = list_samples(META, CorpusSettings(), most=6)
    assert used["toy_vt_cls"]["lines"] == 5 and len(listing.studies) == 5
    assert "current folder" in listing.notes[0]


def test_the_meta_files_own_folder_comes_first(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toy / "meta.json").write_text((toy / META).read_text())
    monkeypatch.chdir(toy / "data")
    listing = list_source(toy / "meta.json", PrepareSettings())
    assert listing.root == toy and not any("current folder" in note for note in listing.notes)
    with pytest.raises(UserError, match=r"train\.jsonl in the meta file's folder .*ViTP_configs, nor in the current one"):
        list_source(toy / META, PrepareSettings())
