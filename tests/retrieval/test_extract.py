"""Features of real files: one for each good picture, the same however they are computed, found again after a kill."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import InternVLVisionConfig
from volume_files import CHEST, write_dicom, write_nifti

from raymed.data.image import ImageSettings
from raymed.data.prepared import Prepared
from raymed.data.sources import Slice, SourceSettings, Study, load_study
from raymed.errors import UserError
from raymed.models.backbones import make_backbone
from raymed.models.features import FeatureExtractor, FeatureSettings
from raymed.models.vision_tower import VisionTower
from raymed.retrieval import extract as extract_module
from raymed.retrieval import parts as parts_module
from raymed.retrieval.extract import Work, extract
from raymed.retrieval.features import MANIFEST, Features, write_npz
from raymed.retrieval.gallery import Gallery, RetrievalSettings
from raymed.retrieval.metrics import judge
from raymed.retrieval.parts import Part, prepared_parts, source_listing, source_parts
from raymed.retrieval.pictures import Pictures
from raymed.retrieval.query import query

SIZE = 28
CONFIG = InternVLVisionConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=SIZE, attention_bias=True
)
DATA = {"kind": "classes", "root": ""}


@pytest.fixture(scope="module")
def work() -> Work:
    torch.manual_seed(0)
    config = InternVLVisionConfig(**CONFIG.to_dict() | {"initializer_range": 0.2, "layer_scale_init_value": 1.0})
    tower = VisionTower(config, make_backbone(config, SIZE).state_dict(), {}, "made")
    return Work(tower, FeatureSettings(sweep=2), ImageSettings(size=SIZE))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "PICTURES", 4)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of pictures of several sizes, one of them broken."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for label in ("sick", "well"):
        (root / label).mkdir()
        for number in range(5):
            pixels = draw.integers(0, 256, (30 + number, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    (root / "sick" / "broken.png").write_bytes(b"no picture")
    return root


def parts_of(images: Path, work: Work) -> list[Part]:
    return source_parts(source_listing(images, SourceSettings()), "source", work.image)[0]


def test_every_good_picture_has_the_feature_it_has_alone(
    images: Path, work: Work, small_parts: None, tmp_path: Path
) -> None:
    parts = parts_of(images, work)
    assert sum(len(part.rows) for part in parts) == 11 and max(len(part.rows) for part in parts) <= 4 and len(parts) > 2
    manifest, kept = extract(work, parts, DATA, str(tmp_path), micro_batch=3)
    assert (sum(manifest.shards.values()), kept) == (10, 0)
    assert [each["where"] for each in manifest.refused] == ["sick/broken.png"]
    found = Features.open(str(tmp_path))
    assert (found.layers, len(found), set(found.labels)) == ([1, 2], 10, {"sick", "well"})
    assert set(found.patients) == {None}, "the file names say nothing of patients"
    extractor = FeatureExtractor(work.tower, work.settings)
    for row, name in enumerate(found.ids):
        listing = source_listing(images / name, SourceSettings(labelled=False))
        (picture,) = source_parts(listing, "source", work.image)[0][0].load(map)
        alone = extract_module.compute(extractor, [picture], 1, torch.device("cpu"))  # type: ignore[list-item]
        for place, layer in enumerate(found.layers):
            np.testing.assert_allclose(found.vectors[layer][row], alone[place, 0], atol=1e-5)


def test_a_killed_run_computes_only_what_is_missing(
    images: Path, work: Work, small_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(images, work)
    whole, _ = extract(work, parts, DATA, str(tmp_path / "whole"))
    written: list[str] = []
    write = extract_module.Worker.write

    def dying(self: extract_module.Worker, name: str, part: Part, decoded: object) -> object:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        return write(self, name, part, decoded)  # type: ignore[arg-type]

    monkeypatch.setattr(extract_module.Worker, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        extract(work, parts, DATA, str(tmp_path / "killed"))
    assert not (tmp_path / "killed" / MANIFEST).exists(), "unfinished features must not look finished"
    monkeypatch.setattr(extract_module.Worker, "write", write)
    manifest, kept = extract(work, parts, DATA, str(tmp_path / "killed"))
    assert (manifest, kept) == (whole, 2)
    for name in whole.shards:
        assert (tmp_path / "killed/shards" / name).read_bytes() == (tmp_path / "whole/shards" / name).read_bytes()
    assert extract(work, parts, DATA, str(tmp_path / "killed"))[1] == len(parts)
    fewer, _ = extract(work, parts[1:], DATA, str(tmp_path / "killed"))
    assert sorted(path.name for path in (tmp_path / "killed/shards").iterdir()) == sorted(fewer.shards)


def test_features_of_another_model_layer_or_size_are_refused(images: Path, work: Work, tmp_path: Path) -> None:
    parts = parts_of(images, work)
    extract(work, parts, DATA, str(tmp_path / "a"))
    others = {
        "layers": replace(work, settings=FeatureSettings()),
        "model": replace(work, tower=replace(work.tower, state={k: 2 * v for k, v in work.tower.state.items()})),
        "pictures": replace(work, tower=work.tower.resized(42), image=ImageSettings(size=42)),
    }
    for name, other in others.items():
        with pytest.raises(UserError, match=f"other features.*{name}"):
            extract(other, parts, DATA, str(tmp_path / "a"))
        resized = source_parts(source_listing(images, SourceSettings()), "source", other.image)[0]
        extract(other, resized, DATA, str(tmp_path / name))
        with pytest.raises(UserError, match=f"cannot be compared: .*{name}"):
            Features.open(str(tmp_path / name)).require_like(Features.open(str(tmp_path / "a")))


def test_prepared_data_give_their_patients_and_class_names(prepared: Prepared, work: Work, tmp_path: Path) -> None:
    parts = prepared_parts(prepared, "test")
    data = {"kind": "prepared", "root": prepared.folder.uri, "split": "test"}
    extract(replace(work, image=prepared.image), parts, data, str(tmp_path))
    found = Features.open(str(tmp_path))
    expected = prepared.columns(prepared.rows("test"), ["id", "patient", "label"])
    assert (found.ids == expected["id"]).all() and (found.patients == expected["patient"]).all()
    assert found.labels.tolist() == [prepared.labels.names[label] for label in expected["label"]]
    row = 3
    (record,) = prepared.read(prepared.rows("test")[[row]])
    shown = Pictures(found).read(row)
    assert shown is not None and np.array_equal(shown, record.images[0].pixels)


def test_an_npz_goes_there_and_back_and_one_of_another_program_is_read(images: Path, work: Work, tmp_path: Path) -> None:
    extract(work, parts_of(images, work), DATA, str(tmp_path / "f"))
    found = Features.open(str(tmp_path / "f"))
    write_npz(found, tmp_path / "f.npz", str(images))
    again = Features.open(str(tmp_path / "f.npz"))
    assert again.manifest == found.manifest and (again.labels == found.labels).all()
    np.testing.assert_array_equal(again.vectors[2], found.vectors[2])
    paths = ["C:\\data\\train\\sick\\a.png", "data/train/well/b.png"]
    np.savez(tmp_path / "other.npz", features=np.eye(2), image_paths=paths)
    other = Features.open(str(tmp_path / "other.npz"))
    assert other.labels.tolist() == ["sick", "well"] and other.manifest is None
    np.savez(tmp_path / "pickled.npz", features=np.eye(2), image_paths=np.array(paths, dtype=object))
    with pytest.raises(UserError, match="cannot read"):
        Features.open(str(tmp_path / "pickled.npz"))


def test_a_manifest_cannot_lead_out_of_its_folder(images: Path, work: Work, tmp_path: Path) -> None:
    extract(work, parts_of(images, work), DATA, str(tmp_path))
    content = json.loads((tmp_path / MANIFEST).read_text())
    content["shards"] = {"../elsewhere.parquet": 1}
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError, match="outside"):
        Features.open(str(tmp_path))


def test_a_picture_asked_about_is_treated_as_the_gallery_was(images: Path, work: Work, tmp_path: Path) -> None:
    extract(work, parts_of(images, work), DATA, str(tmp_path))
    gallery = Features.open(str(tmp_path))
    assert gallery.manifest is not None
    asked, _ = query(images / "well" / "2.png", SourceSettings(), gallery, work.tower)
    place = gallery.ids.tolist().index("well/2.png")
    np.testing.assert_allclose(asked.vectors[2][0], gallery.vectors[2][place], atol=1e-5)
    assert asked.patients.tolist() == [None]
    with pytest.raises(UserError, match="no picture"):
        query(images / "sick" / "broken.png", SourceSettings(), gallery, work.tower)
    with pytest.raises(UserError, match="not the ViT"):
        other = replace(gallery, manifest=replace(gallery.manifest, key="another"))
        query(images / "well" / "2.png", SourceSettings(), other, work.tower)


@pytest.mark.slow
def test_two_workers_write_what_one_writes(
    images: Path, work: Work, small_parts: None, cluster: None, tmp_path: Path
) -> None:
    parts = parts_of(images, work)
    alone, _ = extract(work, parts, DATA, str(tmp_path / "1"))
    together, _ = extract(work, parts, DATA, str(tmp_path / "2"), workers=2)
    assert together == alone
    one, two = (Features.open(str(tmp_path / name)) for name in "12")
    assert (one.ids == two.ids).all()
    np.testing.assert_allclose(one.vectors[2], two.vectors[2], atol=1e-5)


@pytest.mark.real
@pytest.mark.skipif("RAYMED_REAL_DATA" not in os.environ, reason="RAYMED_REAL_DATA names no folder of real images")
def test_real_slices_find_their_own_patient_unless_that_is_excluded(work: Work, tmp_path: Path) -> None:
    """Three patients of three diagnoses: neighbours that are right are slices of the same patient, which prove nothing."""
    table = Path(os.environ["RAYMED_REAL_DATA"]) / "lung_ct" / "labels.csv"
    parts = source_parts(source_listing(table, SourceSettings()), "source", work.image)[0]
    extract(work, parts, {"kind": "csv", "root": str(table.parent)}, str(tmp_path))
    slices = Features.open(str(tmp_path))
    tops = {}
    for exclude in ("picture", "patient"):
        gallery = Gallery(slices, 2, RetrievalSettings(exclude=exclude))  # type: ignore[arg-type]
        tops[exclude] = judge(gallery, slices, gallery.search(slices, 3), [1], bootstrap=10)
    assert tops["picture"].top[1].value > 0.9 and tops["picture"].unanswerable == 0
    assert tops["patient"].top[1].value == 0 and tops["patient"].unanswerable == len(slices) == 77


@pytest.mark.parametrize("names", [("{label}/{patient}/{slice}.png"), ("{label}/{patient}/ct/{slice}.png")])
def test_patients_in_class_folders_are_asked_about_as_they_were_extracted(names: str, work: Work, tmp_path: Path) -> None:
    draw, root = np.random.default_rng(0), tmp_path / "images"
    for label in ("sick", "well"):
        for patient in range(2):
            for place in range(2):
                path = root / names.format(label=label, patient=f"{label}-{patient}", slice=place)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).save(path)
    extract(work, parts_of(root, work), DATA, str(tmp_path / "out"))
    gallery = Features.open(str(tmp_path / "out"))
    asked, _ = query(root, SourceSettings(), gallery, work.tower)
    assert asked.patients.tolist() == gallery.patients.tolist()
    found = Gallery(gallery, 2, RetrievalSettings()).search(asked, 1)
    assert (gallery.patients[found.rows[:, 0]] != asked.patients).all()


def test_an_npz_of_a_sweep_can_be_asked(images: Path, work: Work, tmp_path: Path) -> None:
    extract(work, parts_of(images, work), DATA, str(tmp_path / "out"))
    write_npz(Features.open(str(tmp_path / "out")), tmp_path / "gallery.npz", str(images))
    gallery = Features.open(str(tmp_path / "gallery.npz"))
    asked, _ = query(images / "well" / "2.png", SourceSettings(), gallery, work.tower)
    nearest = Gallery(gallery, gallery.layers[-1], RetrievalSettings(exclude="none")).search(asked, 1)
    assert gallery.ids[nearest.rows[0, 0]].endswith("2.png") and nearest.distances[0, 0] < 1e-3


@pytest.mark.parametrize("wrong", [{"micro_batch": 0}, {"workers": 0}, {"workers": -1}])
def test_nothing_at_a_time_and_nobody_to_do_it_are_refused(images: Path, work: Work, tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        extract(work, parts_of(images, work), DATA, str(tmp_path), **wrong)


def test_the_slices_of_a_series_prove_their_units_together(tmp_path: Path) -> None:
    for at, plane in enumerate(CHEST):
        write_dicom(tmp_path / f"{at}", np.full_like(plane, 40) if at == 2 else plane, 8.0 * at)  # a slice without air
    listing = source_listing(tmp_path, SourceSettings(labelled=False))
    (part,) = source_parts(listing, "source", ImageSettings(16))[0]
    assert all(isinstance(picture, np.ndarray) for picture in part.load(map))


def test_a_slice_of_a_volume_is_read_again_by_its_place_alone(tmp_path: Path) -> None:
    listing = source_listing(write_nifti(tmp_path / "P1.nii", "RSA"), SourceSettings(labelled=False))
    (part,) = source_parts(listing, "source", ImageSettings(16))[0]
    row = part.rows[1]
    piece = Slice(row["id"], row["path"], row["frame"], 0, row["path"])
    ((_, again),) = load_study(listing.root, Study("P1", "", None, "", (piece,), ""), ImageSettings(16))
    assert np.array_equal(again, part.load(map)[1])


def test_a_new_picture_near_the_front_is_the_work_of_one_part(
    images: Path, work: Work, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Parts that were counted off would all begin one picture later."""
    studies = [(f"p{number:04d}/s", 20 if number % 7 == 0 else 1) for number in range(2000)]
    whole = list(parts_module.packed(studies))
    assert max(sum(piece.stop - piece.start for piece in part) for part in whole) <= parts_module.PICTURES

    def names(studies: list[tuple[str, int]]) -> set[tuple[tuple[str, int], ...]]:
        return {tuple((studies[piece.number][0], piece.stop) for piece in part) for part in parts_module.packed(studies)}

    assert len(names(sorted([*studies, ("p0003x/s", 1)])) - names(studies)) <= 3
    assert len(names(studies[:5] + studies[6:]) - names(studies)) <= 3
    assert next(parts_module.packed([("large/s", 300)])) == [parts_module.Piece(0, 0, 128)]

    monkeypatch.setattr(parts_module, "PICTURES", 4)
    own = Path(shutil.copytree(images, tmp_path / "images"))
    extract(work, parts_of(own, work), DATA, str(tmp_path / "out"))
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(own / "sick" / "0a.png")
    _, kept = extract(work, parts_of(own, work), DATA, str(tmp_path / "out"))
    assert len(parts_of(own, work)) - kept <= 2
