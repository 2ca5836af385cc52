"""Which slices of a volume a report is about, what its bytes mean, and volumes that cannot be used."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from volume_files import CHEST, SIDE, shown, write_nifti, write_series

from raymed.data.image import ImageError, ImageSettings
from raymed.errors import UserError
from raymed.systems.mamba_vlm.intensity import Intensity
from raymed.systems.mamba_vlm.slices import Reading, SliceSettings, read_pictures

LUNG = Reading(ImageSettings(size=SIDE, window="lung"))
MINMAX = Reading(ImageSettings(size=SIDE, window="minmax"))


def pixels(path: Path, mask: Path | None = None, reading: Reading = LUNG) -> list[np.ndarray]:
    return [image.pixels[:, :, 0] for image in read_pictures(path, mask, reading).images if image.role == "input"]


def write_mask(path: Path, *positions: int, codes: str = "LPS", corner: int = 4) -> Path:
    """A mask that marks `corner` rows and columns on some slices, one more of each on the next."""
    mask = np.zeros(CHEST.shape, np.int16)
    for more, position in enumerate(positions):
        mask[position, : corner + more, : corner + more] = 1
    return write_nifti(path, codes, hu=mask)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SPL", "AIR"])
def test_the_centre_slice_is_axial_however_the_volume_is_stored(tmp_path: Path, codes: str) -> None:
    [middle] = pixels(write_nifti(tmp_path / "v.nii.gz", codes))
    assert np.array_equal(middle, shown(CHEST)[len(CHEST) // 2])


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SPL"])
def test_the_slice_is_the_one_where_the_mask_is_largest_and_the_mask_lies_as_the_picture(tmp_path: Path, codes: str) -> None:
    volume, mask = write_nifti(tmp_path / "v.nii.gz", codes), write_mask(tmp_path / "m.nii.gz", 3, 4, codes=codes)
    result = read_pictures(volume, mask, LUNG)
    picture, marked = (next(image for image in result.images if image.role == role) for role in ("input", "mask"))
    assert np.array_equal(picture.pixels[:, :, 0], shown(CHEST)[4])
    assert marked.place == picture.place and np.array_equal(np.unique(marked.pixels), [0, 255])
    assert marked.pixels[:5, :5].all() and marked.pixels.astype(bool).sum() == 25


@pytest.mark.parametrize(("count", "positions"), [(1, [0]), (3, [0, 1, 2]), (5, [0, 1, 2, 3, 4])])
def test_neighbours_stay_within_the_volume(tmp_path: Path, count: int, positions: list[int]) -> None:
    volume, mask = write_nifti(tmp_path / "v.nii"), write_mask(tmp_path / "m.nii", 0)
    chosen = pixels(volume, mask, replace(LUNG, slices=SliceSettings(count=count)))
    assert np.array_equal(np.stack(chosen), shown(CHEST)[positions])


def test_more_neighbours_than_slices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"5 slices, fewer than slices\.count 6"):
        pixels(write_nifti(tmp_path / "v.nii"), None, replace(LUNG, slices=SliceSettings(count=6)))


def test_a_mask_that_marks_nothing_leaves_the_centre_unless_a_mask_is_demanded(tmp_path: Path) -> None:
    volume, mask = write_nifti(tmp_path / "v.nii"), write_mask(tmp_path / "m.nii")
    assert np.array_equal(pixels(volume, mask)[0], shown(CHEST)[2])
    demanding = replace(LUNG, slices=SliceSettings("mask"))
    with pytest.raises(ImageError, match="nothing in the mask"):
        pixels(volume, mask, demanding)
    with pytest.raises(ImageError, match="no mask"):
        pixels(volume, None, demanding)
    with_mask = write_mask(tmp_path / "m2.nii", 0)
    assert np.array_equal(pixels(volume, with_mask, replace(LUNG, slices=SliceSettings("centre")))[0], shown(CHEST)[2])


def test_a_mask_of_another_shape_or_laid_otherwise_is_refused(tmp_path: Path) -> None:
    volume = write_nifti(tmp_path / "v.nii")
    small = write_nifti(tmp_path / "small.nii", hu=np.ones((3, SIDE, SIDE), np.int16))
    with pytest.raises(ImageError, match=r"the mask's shape is \(16, 16, 3\), and the picture's \(16, 16, 5\)"):
        pixels(volume, small)
    turned = write_nifti(tmp_path / "turned.nii", "RAS", hu=np.ones(CHEST.shape, np.int16))
    with pytest.raises(ImageError, match="the mask's axes point to RAS, and the picture's to LPS"):
        pixels(volume, turned)


def test_volumes_that_cannot_be_shown_are_refused_with_the_reason(tmp_path: Path) -> None:
    holed = CHEST.astype(np.float32)
    holed[2, 3, 3] = np.nan
    with pytest.raises(ImageError, match="NaN or infinite values"):
        pixels(write_nifti(tmp_path / "nan.nii", hu=holed))
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 3), np.int16), np.diag([2, 2, 2, 1])), tmp_path / "four.nii")
    with pytest.raises(ImageError, match=r"its shape is \(4, 4, 4, 3\); only single volumes"):
        pixels(tmp_path / "four.nii")
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    with pytest.raises(ImageError, match="not a readable NIfTI file"):
        pixels(tmp_path / "empty.nii.gz")
    with pytest.raises(ImageError, match="the file does not exist"):
        pixels(tmp_path / "none.nii.gz")
    flat = write_nifti(tmp_path / "flat.nii", hu=np.zeros(CHEST.shape, np.int16))
    with pytest.raises(ImageError, match="every value is 0"):
        pixels(flat, None, MINMAX)


def test_minmax_takes_any_unit_and_each_slice_its_own_least_and_greatest(tmp_path: Path) -> None:
    other_unit = (CHEST.astype(np.float32) + 2000) / 1e4
    path = write_nifti(tmp_path / "v.nii", hu=other_unit)
    [picture] = pixels(path, None, MINMAX)
    plane = other_unit[2]
    expected = (plane - plane.min()) / (plane.max() - plane.min())
    assert np.abs(picture / 255 - expected).max() < 1 / 200
    with pytest.raises(ImageError, match="not in Hounsfield units"):
        pixels(path, None, LUNG)


def test_a_series_in_a_folder_is_a_volume_along_its_anatomy(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    assert np.array_equal(pixels(tmp_path / "series")[0], shown(CHEST)[2])
    write_series(tmp_path / "series" / "second", series="1.2.4")
    with pytest.raises(ImageError, match="a folder of 2 series"):
        pixels(tmp_path / "series")
    (tmp_path / "none").mkdir()
    with pytest.raises(ImageError, match="no DICOM files"):
        pixels(tmp_path / "none")


def test_a_picture_in_colour_becomes_grey_and_its_mask_must_be_of_its_size(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "c.png")
    Image.fromarray(np.full((SIDE, SIDE), 255, np.uint8)).save(tmp_path / "m.png")
    result = read_pictures(tmp_path / "c.png", tmp_path / "m.png", LUNG)
    assert [image.pixels.shape for image in result.images] == [(SIDE, SIDE, 1)] * 2
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(ImageError, match=r"the mask's shape is \(8, 8\)"):
        pixels(tmp_path / "c.png", tmp_path / "small.png")


def test_bytes_under_the_plans_are_what_nnunet_was_trained_on_to_a_256th_of_its_range(tmp_path: Path) -> None:
    intensity = Intensity.of_plans(
        {"scheme": "CTNormalization", "percentile_00_5": -990.0, "percentile_99_5": -10.0, "mean": -700.0, "std": 150.0}, "e"
    )
    reading = Reading(ImageSettings(size=SIDE, window=intensity.window), hounsfield=True)
    [picture] = pixels(write_nifti(tmp_path / "v.nii"), None, reading)
    expected = (CHEST[2].clip(-990, -10) + 700.0) / 150
    close = torch.from_numpy(picture.copy())
    assert np.abs(intensity.normalised(close).numpy() - expected).max() <= 980 / 255 / 150 + 1e-4
    Image.fromarray(CHEST[2].astype(np.uint8)).save(tmp_path / "p.png")
    with pytest.raises(ImageError, match="no Hounsfield units, which the encoder's plans want"):
        pixels(tmp_path / "p.png", None, reading)


def test_plans_that_say_nothing_or_name_an_unknown_normalisation_are_errors() -> None:
    for values, reason in ((None, "say nothing"), ({"scheme": "Odd"}, "'Odd'"), ({"scheme": "CTNormalization"}, "lack")):
        with pytest.raises(UserError, match=reason):
            Intensity.of_plans(values, "encoder.json")


def test_zscore_makes_each_picture_of_mean_zero_and_deviation_one() -> None:
    normalised = Intensity("zscore").normalised(torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8).repeat(2, 1, 1))
    assert torch.allclose(normalised.mean((-2, -1)), torch.zeros(2), atol=1e-6)
    assert torch.allclose(normalised.std((-2, -1), correction=0), torch.ones(2), atol=1e-5)
