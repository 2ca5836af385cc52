"""Data, folds and texts that the CLIP options describe."""

import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raymed.data.image import ImageSettings
from raymed.data.leak import guard
from raymed.errors import UserError
from raymed.job.command_line import parse
from raymed.models.settings import ClipModelSettings
from raymed.systems.clip.options import SMALL, ClipOptions, TrainClip

SIZES = {"正常": 13, "肺炎": 9}


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> ClipOptions:
    """Class folders in which every second picture is of the patient of the one before."""
    home, draw = tmp_path_factory.mktemp("options"), np.random.default_rng(0)
    lines = ["image,patient_id"]
    for name, count in SIZES.items():
        (home / "images" / name).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 255, (30, 30), dtype=np.uint8)
            Image.fromarray(pixels).save(home / "images" / name / f"{number:02d}.png")
            lines.append(f"{name}/{number:02d}.png,{name}-{number // 2}")
    (home / "patients.csv").write_text("\n".join(lines), "utf-8")
    towers = ClipModelSettings("tiny", None, "characters")
    found = ClipOptions(data=str(home / "images"), storage=str(home), size=20, n_splits=3, model=towers)
    return replace(found, source=replace(found.source, patients=str(home / "patients.csv")))


def places(options: ClipOptions) -> dict[str, list[tuple[str, int, str]]]:
    """Patient -> (class, fold, split) of each of its images."""
    prepared = options.prepared()
    found = defaultdict(list)
    for row in prepared.index.to_pylist():
        found[row["patient"]].append((prepared.labels.names[row["label"]], row["fold"], row["split"]))
    for fold in range(options.n_splits):
        guard(prepared.index, fold)
    return dict(found)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_folds_share_no_patient_and_hold_every_class_in_equal_parts(options):
    found = places(options)
    assert len(found) == 7 + 5
    assert all(len({fold for _, fold, _ in images}) == 1 for images in found.values()), "a patient is in two folds"
    counts = Counter((images[0][0], images[0][1]) for images in found.values())
    for name in SIZES:
        sizes = [counts[name, fold] for fold in range(3)]
        assert max(sizes) - min(sizes) <= 1, "patients of a class are divided evenly"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_what_was_settled_when_data_were_prepared_is_not_passed_over(options):
    prepared = options.prepared().folder.uri
    with pytest.raises(UserError, match="--source, --folds cannot be followed"):
        replace(options, data=prepared, folds="stratified").prepared()
    with pytest.raises(UserError, match="--split cannot be followed by phantom patients"):
        ClipOptions(split="60/40/0").prepared()

    @dataclass(frozen=True, kw_only=True)
    class Searched(ClipOptions):
        split: str = "75/15/15"

    assert Searched(data=prepared, size=options.size).prepared().folder.uri == prepared


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_plain_stratified_folds_divide_images_whoever_they_are_of(options):
    found = places(replace(options, folds="stratified"))
    assert len(found) == sum(SIZES.values())
    for name, count in SIZES.items():
        sizes = Counter(images[0][1] for images in found.values() if images[0][0] == name)
        assert max(sizes.values()) - min(sizes.values()) <= 1
        train = sum(images[0][2] == "train" for images in found.values() if images[0][0] == name)
        assert train == round(0.8 * count)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_images_that_cannot_be_used_are_counted_aloud_and_none_becomes_black(options, tmp_path, caplog):
    folder = Path(shutil.copytree(options.data, tmp_path / "images"))
    (folder / "正常" / "99.png").write_bytes(b"no picture")
    other = replace(options, data=str(folder), source=replace(options.source, patients=None))
    prepared = other.prepared()
    with caplog.at_level("INFO", "raymed"):
        other.log_data_summary(prepared)
    assert f"{sum(SIZES.values())} images of {sum(SIZES.values())} patients in 2 classes" in caplog.text
    assert "1 images cannot be used" in caplog.text and "--patients" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_folds_that_cannot_be_are_errors_that_say_what_to_change(options):
    prepared = options.prepared()
    options.check_folds(prepared)
    with pytest.raises(UserError, match=r"'肺炎' has 5 patients"):
        replace(options, n_splits=6).check_folds(prepared)
    with pytest.raises(UserError, match="at least 2 folds"):
        replace(options, n_splits=1).check_folds(prepared)
    with pytest.raises(UserError, match="prepared with 3 folds, not 4"):
        replace(options, n_splits=4).check_folds(prepared)
    other = replace(options, data=prepared.folder.uri, size=40, source=ClipOptions().source)
    with pytest.raises(UserError, match="prepared at 22 pixels"):
        other.prepared()


def test_folds_larger_than_a_class_are_named_before_a_picture_is_read(options, tmp_path):
    same = {name: getattr(options, name) for name in ("data", "size", "model", "source")}
    folds = TrainClip(storage=str(tmp_path / "runs"), use_cv=True, n_splits=6, **same)
    with pytest.raises(UserError, match=r"'肺炎' has 5 patients\. Change --n-splits"):
        folds.prepared()
    assert not (tmp_path / "runs").exists()


def test_without_data_only_what_is_at_its_default_is_made_small():
    words = ["--model.image_encoder", "resnet18", "--model.temperature", "0.07"]
    small = parse(ClipOptions, words)
    assert (small.model.image_encoder, small.model.text_encoder, small.size) == ("resnet18", "characters", SMALL["size"])
    assert parse(ClipOptions, ["--data", "images"]).model.text_encoder == "bert-base-chinese"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"class_texts": {"正常": "胸片", "肺炎": "胸片"}}, r"'胸片' stands for '正常' and again for '肺炎'"),
        ({"class_texts": {"正常": "清晰", "肺结核": "空洞"}}, "肺结核"),
        ({"text_template": "胸片"}, "class_name"),
        ({"class_texts": {"肺炎": "阴影" * 100}}, r"肺炎.*202 tokens.*128"),
        ({"model": ClipModelSettings("resnet19", None, "characters")}, "resnet19"),
        ({"model": ClipModelSettings("tiny")}, "bert-base-chinese"),
    ],
)
def test_texts_and_towers_that_do_not_fit_are_named_before_a_picture_is_read(options, changes, named, tmp_path):
    towers = {"model": ClipModelSettings("tiny", None, "characters")} | changes
    with pytest.raises(UserError, match=named):
        replace(options, storage=str(tmp_path), **towers).prepared()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_sixteen_bit_pictures_and_more_bad_ones_are_taken_where_the_job_is_told_so(options, tmp_path):
    """What the messages name, --image.sixteen_bit and --max-quarantine, this job has too."""
    folder, draw = Path(shutil.copytree(options.data, tmp_path / "images")), np.random.default_rng(1)
    Image.fromarray(draw.integers(0, 4096, (30, 30)).astype(np.uint16)).save(folder / "正常" / "deep.png")
    for number in range(2):
        (folder / "肺炎" / f"bad{number}.png").write_bytes(b"no picture")
    other = replace(options, data=str(folder), source=replace(options.source, patients=None))
    with pytest.raises(UserError, match="--max-quarantine"):
        other.prepared()
    told = [*("--max-quarantine", "20%", "--image.sixteen_bit", "bits,12", "--size", "20", "--data", str(folder))]
    given = parse(ClipOptions, told)
    prepared = replace(other, image=given.image, max_quarantine=given.max_quarantine).prepared()
    assert prepared.manifest.quarantined == 2 and prepared.image.sixteen_bit == "bits,12"
    assert prepared.size == 22, "a tenth more to crop from"


def test_the_size_of_pictures_is_said_in_one_way(options):
    with pytest.raises(UserError, match=r"image\.size is 300: give --size"):
        replace(options, image=ImageSettings(size=300)).prepared()
