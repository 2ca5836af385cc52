"""Spacing, thickness and field of view: kept from the files, told by source and class, and what gives a class away."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from volume_files import CHEST, write_dicom

from raymed.data.geometry import fitted, mixed, spread
from raymed.data.image import ImageSettings
from raymed.data.labels import LabelTable
from raymed.data.prepare import prepare
from raymed.data.prepared import Manifest, Prepared
from raymed.data.record import INDEX
from raymed.data.settings import PrepareSettings
from raymed.data.sources import SourceSettings, list_source
from raymed.data.split import SplitSettings
from raymed.storage.folder import Folder

LABELS = LabelTable.of(["normal", "viral"])


def told(spacings: dict[str, list[float | None]], thickness: float | None = 2.0) -> Prepared:
    """Prepared data with an index and no shards: a row for each patient."""
    rows = [
        {
            "source": "h",
            "label": label,
            "patient": f"{name}-{number}",
            "pixel_spacing": spacing,
            "slice_thickness": thickness,
        }
        for label, name in enumerate(spacings)
        for number, spacing in enumerate(spacings[name])
    ]
    manifest = Manifest(**dict.fromkeys(field.name for field in fields(Manifest)) | {"labels": LABELS.to_dict()})
    return Prepared(Folder.at("/nowhere"), manifest, pa.Table.from_pylist(rows, schema=INDEX))


def test_the_spread_is_told_by_source_and_class() -> None:
    lines = spread(told({"normal": [0.6, 0.7, 0.8], "viral": [0.7, None, 0.9]}))
    assert lines == [
        "h, normal (3 patients): pixel spacing 0.7 mm (0.6 to 0.8); slice thickness 2 mm (2 to 2); field of view unknown",
        "h, viral (3 patients): pixel spacing 0.8 mm (0.7 to 0.9, 1 unknown); slice thickness 2 mm (2 to 2); "
        "field of view unknown",
    ]


def test_a_scanner_that_goes_with_a_class_is_told() -> None:
    apart = {"normal": [0.6, 0.61, 0.62, 0.63, 0.64], "viral": [0.8, 0.81, 0.82, 0.83, 0.6]}
    warned = [line for line in spread(told(apart)) if line.startswith("warning")]
    assert not warned, "four of five apart is below the limit"
    apart["viral"][-1] = 0.84
    warned = [line for line in spread(told(apart)) if line.startswith("warning")]
    assert [line.split(" from")[0] for line in warned] == [
        "warning: pixel spacing alone tells normal",
        "warning: pixel spacing alone tells viral",
    ]


def test_pictures_without_sizes_tell_nothing() -> None:
    assert spread(told({"normal": [None], "viral": [None]}, thickness=None)) == []


def test_pictures_that_squash_would_change_are_told(tmp_path: Path) -> None:
    for number, size in enumerate([(300, 150), (40, 32), (40, 40)]):
        Image.new("L", size).save(tmp_path / f"{number}.png")
    listing = list_source(tmp_path, SourceSettings(format="classes", labelled=False))
    (squashed,) = fitted(listing, ImageSettings(size=448))
    assert squashed == (
        "1 of 3 pictures that were looked at are far from square, e.g. 300 x 150, and squash stretches them to 448 x 448: "
        "--image.resize pad keeps their shape"
    )
    assert fitted(listing, ImageSettings(size=448, resize="pad")) == []
    write_dicom(tmp_path / "film" / "a.dcm", np.zeros((30, 10), np.int16), 0, Modality="DX")
    (film,) = fitted(list_source(tmp_path / "film", SourceSettings()), ImageSettings())
    assert film.startswith("1 of 1")


def test_pictures_that_lose_much_by_being_made_smaller_are_counted(tmp_path: Path) -> None:
    for number, size in enumerate([633, 634, 900]):
        Image.new("L", (size, size)).save(tmp_path / f"{number}.png")
    listing = list_source(tmp_path, SourceSettings(format="classes", labelled=False))
    assert fitted(listing, ImageSettings(size=448)) == [
        "2 of 3 pictures that were looked at are much larger than 448 x 448, e.g. 900 x 900, and are made smaller, not cut "
        "into tiles: a larger --image.size keeps more of them"
    ]
    assert fitted(listing, ImageSettings(size=896)) == []


@pytest.mark.slow
def test_what_is_left_out_of_a_hospitals_export_is_listed_and_no_damage(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for place, (label, name) in enumerate(
        (label, f"{label}{number}") for label in ("normal", "viral") for number in range(3)
    ):
        folder, series = tmp_path / "in" / label / name, f"1.2.{place}"
        header = {"series": series, "PatientID": name, "PixelSpacing": [0.7, 0.7], "SliceThickness": 2}
        for at, plane in enumerate(CHEST):
            write_dicom(folder / f"{at}", plane + random.integers(0, 20, plane.shape), 8.0 * at, at, **header)
        for scout in range(2):
            kind = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "PatientID": name}
            write_dicom(folder / f"scout{scout}", CHEST[0], 0, series=f"{series}.9", **kind)
    split = SplitSettings("34/33/33", folds=0)
    settings = PrepareSettings(image=ImageSettings(size=28), split=split, near_duplicates="warn")
    result = prepare(tmp_path / "in", str(tmp_path / "out"), settings)
    manifest, index = result.prepared.manifest, result.prepared.index
    assert (manifest.quarantined, manifest.passed_over, index.num_rows) == (0, 12, 30)
    assert Path(tmp_path / "out" / "quarantine.jsonl").read_text().count('"expected": true') == 12
    assert index["pixel_spacing"].to_pylist() == pytest.approx([0.7] * 30)
    assert spread(result.prepared)[0].startswith("in, normal (3 patients): pixel spacing 0.7 mm")
    assert Prepared.open(str(tmp_path / "out")).digest == manifest.digest
    again = prepare(tmp_path / "in", str(tmp_path / "out"), settings)
    assert (again.new, again.kept, again.prepared.digest) == (0, 6, manifest.digest)


@pytest.mark.parametrize(("sizes", "told"), [((20, 24), True), ((20, 20), False)])
def test_a_folder_of_many_pictures_of_several_sizes_may_be_of_several_patients(
    tmp_path: Path, sizes: tuple[int, int], told: bool
) -> None:
    for number in range(20):
        path = tmp_path / "hospital" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (20, sizes[number // 10])).save(path)
    for number, side in enumerate(sizes):  # two views of one patient
        (tmp_path / "P1").mkdir(exist_ok=True)
        Image.new("L", (20, side)).save(tmp_path / "P1" / f"{number}.png")
    note = mixed(list_source(tmp_path, SourceSettings(labelled=False)))
    assert bool(note) == told and (not told or ("1 of 2 studies" in str(note) and "hospital (20)" in str(note)))
