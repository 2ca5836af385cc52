"""Class folders: the guide's layout, with patients where they are known, and every bad layout named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raymed.data.image import ImageSettings
from raymed.data.prepare import PrepareSettings, prepare
from raymed.data.prepared import Prepared
from raymed.data.sources import Listing, Refusal, SourceSettings, list_source, load_study
from raymed.data.split import SplitSettings
from raymed.data.survey import survey
from raymed.errors import UserError

CLASSES = SourceSettings(format="classes")


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 24), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(["肺炎/a.png", "肺炎/b.JPG", "正常/a.jpeg", "正常/c.bmp", "正常/d.png"]):
        picture(tmp_path / "images" / name, seed)
    return tmp_path / "images"


def patients(listing: Listing) -> dict[str, list[str]]:
    return {study.patient: [piece.path for piece in study.slices] for study in listing.studies}


def test_every_image_is_its_own_patient_and_classes_are_sorted_by_their_folder(folder: Path) -> None:
    found = survey(folder, CLASSES, "source")
    assert found.labels.names == ["正常", "肺炎"]
    assert {study.label for study in found.studies} == {"正常", "肺炎"}
    assert patients(found.listing) == {name: [name] for name in _names(folder)}
    assert "every image counts as a patient" in found.listing.notes[-1]


def _names(folder: Path) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in folder.glob("*/*")]


def test_pictures_of_every_kind_that_can_be_read_are_taken(folder: Path) -> None:
    for name in ("正常/e.tif", "正常/g.TIFF", "肺炎/f.webp"):
        picture(folder / name, 9)
    listing = list_source(folder, CLASSES)
    assert len(listing.studies) == 8 and len(listing.notes) == 1


def test_deeper_folders_and_other_files_are_left_out_and_said(folder: Path) -> None:
    picture(folder / "正常" / "deeper" / "x.png")
    (folder / "正常" / "notes.txt").write_text("x")
    listing = list_source(folder, CLASSES)
    assert len(listing.studies) == 5
    assert "1 files that are no images" in listing.notes[0] and "正常/notes.txt" in listing.notes[0]
    left = "1 images that do not lie directly in a class folder were left out; move them up to use them: 正常/deeper"
    assert listing.notes[1] == left


def test_a_table_names_patients_by_path_or_by_a_name_that_is_unique(folder: Path) -> None:
    lines = ["image,patient_id", "正常/a.jpeg,P1", "肺炎/a.png,P2", "b.JPG,P2", "c.bmp,P1", "d.png,P3", "other.png,P9"]
    table = folder.parent / "patients.csv"
    table.write_text("\n".join(lines), "utf-8")
    listing = list_source(folder, SourceSettings(patients=str(table)))
    assert listing.format == "classes" and listing.patients_known
    assert patients(listing) == {
        "P1": ["正常/a.jpeg", "正常/c.bmp"],
        "P2": ["肺炎/a.png", "肺炎/b.JPG"],
        "P3": ["正常/d.png"],
    }


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["image,patient_id", "正常/a.jpeg,P1"], r"no line for 4 images.*d\.png"),
        (["image,patient", "a.jpeg,P1", "a.jpeg,P2"], r"patients\.csv:3.*'P2'.*'P1'"),
        (["image", "a.jpeg"], "patient_id"),
    ],
)
def test_a_table_that_misses_or_contradicts_is_an_error(folder: Path, lines: list[str], named: str) -> None:
    table = folder.parent / "patients.csv"
    table.write_text("\n".join(lines), "utf-8")
    with pytest.raises(UserError, match=named):
        list_source(folder, SourceSettings(format="classes", patients=str(table)))


def test_a_name_that_two_classes_use_must_be_written_with_its_class(folder: Path) -> None:
    picture(folder / "肺炎" / "d.png")
    table = folder.parent / "patients.csv"
    table.write_text("image,patient_id\nd.png,P1\n", "utf-8")
    with pytest.raises(UserError, match=r"d\.png stands for .*<class>/<image>"):
        list_source(folder, SourceSettings(patients=str(table)))


def test_a_regex_names_patients_and_must_match_everywhere(folder: Path) -> None:
    listing = list_source(folder, SourceSettings(format="classes", patient_regex=r"/([^/]+)[.]"))
    assert set(patients(listing)) == {"a", "b", "c", "d"}
    with pytest.raises(UserError, match="does not match"):
        list_source(folder, SourceSettings(format="classes", patient_regex=r"/(a)[.]"))


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (["正常/a.png"], "only the class folder '正常'"),
        (["a.png"], "no folder"),
        (["normal/a.png", "Normal/b.png", "viral/c.png"], "'Normal' and 'normal'"),
        (["v1.2/a.png", "viral/c.png"], r"dot: v1\.2"),
        (["normal/a.png", "viral/deeper/c.png"], "no images .* viral"),
    ],
)
def test_folders_that_are_no_classes_are_named(tmp_path: Path, folders: list[str], named: str) -> None:
    for name in folders:
        picture(tmp_path / name)
    with pytest.raises(UserError, match=named):
        list_source(tmp_path, CLASSES)


def test_an_unreadable_image_is_refused_and_never_black(folder: Path) -> None:
    (folder / "正常" / "e.png").write_bytes(b"no picture")
    listing = list_source(folder, CLASSES)
    study = next(study for study in listing.studies if study.patient == "正常/e.png")
    (loaded,) = load_study(listing.root, study, ImageSettings(size=16))
    assert isinstance(loaded[1], Refusal) and "not a readable picture" in loaded[1].reason


def test_without_labels_every_picture_below_is_taken(folder: Path) -> None:
    picture(folder / "正常" / "deeper" / "x.png")
    assert len(list_source(folder, SourceSettings(format="classes", labelled=False)).studies) == 6
    single = list_source(folder / "正常" / "d.png", SourceSettings(format="classes", labelled=False))
    assert patients(single) == {"d.png": ["d.png"]}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_copies_within_a_class_stay_in_one_fold_and_copies_in_two_classes_are_an_error(tmp_path: Path) -> None:
    for seed in range(24):
        picture(tmp_path / "in" / ("ab"[seed % 2]) / f"{seed}.png", seed)
    picture(tmp_path / "in" / "a" / "copy.png", 0)
    settings = PrepareSettings(
        format="classes", labels="source", image=ImageSettings(size=24), split=SplitSettings("80/20/0", folds=3)
    )
    prepared = prepare(tmp_path / "in", str(tmp_path / "out"), settings).prepared
    rows = {row["patient"]: (row["split"], row["fold"]) for row in prepared.index.to_pylist()}
    assert rows["a/copy.png"] == rows["a/0.png"]
    picture(tmp_path / "in" / "b" / "copy.png", 0)
    with pytest.raises(UserError, match=r"two classes: .*a/0\.png.*b/copy\.png"):
        prepare(tmp_path / "in", str(tmp_path / "out"), settings)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_where_no_patient_is_known_nothing_says_that_no_patient_is_in_two_splits(tmp_path: Path) -> None:
    for seed in range(24):
        picture(tmp_path / "in" / ("ab"[seed % 2]) / f"{seed // 4}{'ab'[seed % 2]}_{seed}.png", seed)
    image, split = ImageSettings(size=24), SplitSettings("50/50/0", folds=0)
    settings = PrepareSettings(format="classes", labels="source", image=image, split=split)
    result = prepare(tmp_path / "in", str(tmp_path / "out"), settings)
    assert "whether a patient is, nobody knows" in str(result.guard) and "no patient" not in str(result.guard)
    assert not Prepared.open(str(tmp_path / "out")).manifest.patients_known
    known = replace(settings, patient_regex=r"(\d+[ab])_\d+\.png")
    result = prepare(tmp_path / "in", str(tmp_path / "known"), known)
    assert "no patient, study or picture" in str(result.guard)
    assert Prepared.open(str(tmp_path / "known")).manifest.patients_known
