"""Values in DICOM files: Hounsfield units are proved, not believed, padding is air, X-rays go through their own window."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder
from pydicom.uid import (
    HTJ2K,
    DigitalXRayImageStorageForPresentation,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from volume_files import CHEST, SIDE, shown, write_dicom, write_nifti, write_series

from raymed.data.image import ImageError, ImageSettings
from raymed.data.sources import Refusal, SourceSettings, list_source, load_study, read_whole

SETTINGS = ImageSettings(size=SIDE)
UNLABELLED = SourceSettings(labelled=False)


def loaded(path: Path, settings: ImageSettings = SETTINGS) -> list[np.ndarray | str]:
    listing = list_source(path, UNLABELLED)
    return [
        result.reason if isinstance(result, Refusal) else result[..., 0]
        for study in listing.studies
        for _, result in load_study(listing.root, study, settings)
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"RescaleIntercept": 0}, "hardly a value below -200"),
        ({"RescaleSlope": 0}, "do not give Hounsfield"),
        ({"RescaleSlope": -1}, "do not give Hounsfield"),
        ({"RescaleSlope": "1e38"}, "NaN or infinite"),
        ({"RescaleSlope": 1000}, "values up to"),
        ({"RescaleSlope": "0.0001"}, "hardly a value above -200"),
        ({"RescaleIntercept": "1e30"}, "do not give Hounsfield"),
        ({"RescaleType": "OD"}, "values are in OD"),
        ({"RescaleSlope": None}, "Hounsfield units are unknown"),
    ],
)
def test_a_series_of_another_scale_is_refused_slice_by_slice(tmp_path: Path, changes: dict, reason: str) -> None:
    write_series(tmp_path, **changes)
    results = loaded(tmp_path)
    assert len(results) == len(CHEST) and all(isinstance(result, str) and reason in result for result in results), results
    with pytest.raises(ImageError, match=reason):
        read_whole(next(tmp_path.iterdir()), SETTINGS)


@pytest.mark.parametrize("units", ["HU", "hu", " HU ", "US", ""])
def test_units_are_accepted_however_they_are_written_where_the_values_fit(tmp_path: Path, units: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(tmp_path, RescaleType=units)
    assert np.array_equal(np.stack(loaded(tmp_path)), shown(CHEST))


def test_a_slice_without_air_is_kept_in_a_series_with_it(tmp_path: Path) -> None:
    chest = CHEST.copy()
    chest[2] = 40
    for at, plane in enumerate(chest):
        write_dicom(tmp_path / f"{at}", plane, 8.0 * at)
    assert np.array_equal(np.stack(loaded(tmp_path)), shown(chest))


def test_a_slice_that_is_rescaled_unlike_its_neighbours_proves_its_units_alone(tmp_path: Path) -> None:
    write_series(tmp_path)
    write_dicom(tmp_path / "IM0003", CHEST[2], -300 + 16.0, 3, RescaleIntercept=0)
    write_dicom(tmp_path / "IM0004", CHEST[1], -300 + 8.0, 4, RescaleIntercept=-1020)
    results = loaded(tmp_path)
    assert [isinstance(result, str) for result in results] == [False, False, True, False, False]
    assert np.array_equal(results[1], shown(CHEST[1] + 4))


@pytest.mark.parametrize(
    ("stored", "changes"),
    [
        (63536, {"PixelPaddingValue": 63536}),
        (63536, {"PixelPaddingValue": -2000, "PixelRepresentation": 1}),  # the pixels are read as signed
        (63536, {"PixelRepresentation": 1}),  # -2000, declared nowhere
        (65000, {"PixelPaddingValue": 60000, "PixelPaddingRangeLimit": 65535}),
    ],
)
def test_padding_becomes_air(tmp_path: Path, stored: int, changes: dict) -> None:
    chest = CHEST.copy()
    chest[:, :3, :3] = -1000
    for at, plane in enumerate(chest):
        values = (plane.astype(np.int32) + 1024).astype(np.uint16)
        values[:3, :3] = stored
        write_dicom(tmp_path / f"{at}", plane, 8.0 * at, PixelData=values.tobytes(), **changes)
    assert np.array_equal(np.stack(loaded(tmp_path)), shown(chest))


@pytest.mark.parametrize("changes", [{"PixelPaddingValue": -2000}, {}])
def test_padding_is_no_air(tmp_path: Path, changes: dict) -> None:
    values = np.random.default_rng(0).integers(100, 3000, CHEST[0].shape).astype(np.int16)
    values[:3] = -2000
    write_series(tmp_path, PixelData=values.tobytes(), PixelRepresentation=1, RescaleIntercept=0, **changes)
    assert all("hardly a value below -200" in str(result) for result in loaded(tmp_path))


def test_another_scale_that_reaches_below_air_in_a_few_voxels_is_refused(tmp_path: Path) -> None:
    scan = np.random.default_rng(0).integers(3500, 12000, CHEST.shape).astype(np.int16)  # as an interpolated MR
    scan[:, :1, :2] = -600
    results = loaded(write_nifti(tmp_path / "mr.nii", hu=scan))
    assert all("which only metal has" in str(result) for result in results)


def test_padding_with_a_value_of_tissue_is_not_guessed_about(tmp_path: Path) -> None:
    chest = CHEST.copy()
    chest[1, 5, 5] = 41
    for at, plane in enumerate(chest):
        write_dicom(tmp_path / f"{at}", plane, 8.0 * at, PixelPaddingValue=41 + 1024)
    results = loaded(tmp_path)
    assert [isinstance(result, str) for result in results] == [False, True, False, False, False]
    assert "PixelPaddingValue stands for 41" in results[1]


def test_values_that_are_declared_nowhere_and_no_body_has_are_refused(tmp_path: Path) -> None:
    values = (CHEST[0].astype(np.int32) + 1024).astype(np.uint16)
    values[:3] = 63536
    write_dicom(tmp_path / "a", CHEST[0], 0, PixelData=values.tobytes())
    assert "values up to 62512" in loaded(tmp_path)[0]


def test_padding_of_a_volume_is_air_and_infinite_voxels_are_refused(tmp_path: Path) -> None:
    chest = CHEST.astype(np.float32)
    chest[:, :3, :3] = -8192
    air = CHEST.copy()
    air[:, :3, :3] = -1000
    assert np.array_equal(np.stack(loaded(write_nifti(tmp_path / "padded.nii", hu=chest))), shown(air))
    for value in (np.inf, -np.inf):
        holes = CHEST.astype(np.float32)
        holes[3, 5, 5] = value
        results = loaded(write_nifti(tmp_path / f"{value}.nii", hu=holes))
        assert [place for place, result in enumerate(results) if isinstance(result, str)] == [3], results


def test_a_volume_whose_slope_leads_nowhere_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "P1.nii")
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([1e30, 0], np.float32).tobytes()  # scl_slope and scl_inter
    path.write_bytes(content)
    results = loaded(path)
    assert len(results) == len(CHEST) and all("values up to" in str(result) for result in results), results[0]


COMPRESSED = [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless]
COMPRESSED += [HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K]
FILM = np.linspace(200, 3800, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
XRAY = {
    "SOPClassUID": DigitalXRayImageStorageForPresentation,
    "Modality": "DX",
    "ImagePositionPatient": None,
    "ImageOrientationPatient": None,
    "BitsStored": 12,
    "HighBit": 11,
    "RescaleSlope": None,
    "RescaleIntercept": None,
    "PixelData": FILM.tobytes(),
    "PatientOrientation": ["L", "F"],
}
WINDOW = {"WindowCenter": 2000, "WindowWidth": 3000}


def table() -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US", [4096, 0, 12])
    item.add_new(0x00283006, "US", (4095 * (np.arange(4096) / 4095) ** 0.5).astype(np.uint16).tolist())
    return item


@pytest.mark.parametrize(
    "changes",
    [
        WINDOW,
        WINDOW | {"Modality": "CR", "RescaleSlope": "0.684", "RescaleIntercept": 200},
        WINDOW | {"VOILUTFunction": "LINEAR_EXACT"},
        WINDOW | {"VOILUTFunction": "SIGMOID"},
        {"WindowCenter": [2000, 500], "WindowWidth": [3000, 10]},
        {"VOILUTSequence": [table()]},
    ],
)
@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
def test_an_xray_is_shown_as_an_independent_reader_shows_it(tmp_path: Path, changes: dict, kind: str) -> None:
    write_dicom(tmp_path / "film.dcm", FILM, 0, **{**XRAY, **changes}, PhotometricInterpretation=kind)
    (result,) = loaded(tmp_path)
    dataset = pydicom.dcmread(tmp_path / "film.dcm")
    most = 4095 * float(dataset.get("RescaleSlope") or 1)
    least = float(dataset.get("RescaleIntercept") or 0)
    other = (apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset) - least) / most * 255
    other = 255 - other if kind == "MONOCHROME1" else other
    assert np.abs(result - other).max() <= 1 and result.std() > 30


def test_an_xray_without_a_window_is_a_picture_of_sixteen_bits(tmp_path: Path) -> None:
    write_dicom(tmp_path / "film.dcm", FILM, 0, **XRAY)
    assert "sixteen_bit" in loaded(tmp_path)[0]
    assert "not in Hounsfield units" in loaded(tmp_path, ImageSettings(size=SIDE, sixteen_bit="hu,1024"))[0]
    (result,) = loaded(tmp_path, ImageSettings(size=SIDE, sixteen_bit="stretch"))
    assert np.array_equal(result, np.rint((FILM - 200.0) * (255 / 3600)).astype(np.uint8))


def test_padding_of_an_xray_is_dark_in_both_kinds(tmp_path: Path) -> None:
    film = FILM.copy()
    film[0, 0] = 4095
    for kind in ("MONOCHROME1", "MONOCHROME2"):
        changes = {**XRAY, **WINDOW, "PixelData": film.tobytes(), "PixelPaddingValue": 4095, "SeriesInstanceUID": kind[-1]}
        write_dicom(tmp_path / f"{kind}.dcm", film, 0, **changes, PhotometricInterpretation=kind)
    assert [result[0, 0] for result in loaded(tmp_path)] == [0, 0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"PresentationIntentType": "FOR PROCESSING"}, "FOR PROCESSING"),
        ({"PatientOrientation": ["R", "F"]}, "mirrored"),
        ({"BurnedInAnnotation": "YES"}, "burned"),
        ({"PixelSpacing": [0.1, 0.2]}, "not square"),
        ({"WindowWidth": 0}, "no window"),
        ({"VOILUTFunction": "OTHER"}, "OTHER"),
        ({"WindowCenter": 90000}, "one grey level"),
    ],
)
def test_an_xray_that_cannot_be_shown_rightly_is_refused(tmp_path: Path, changes: dict, reason: str) -> None:
    write_dicom(tmp_path / "film.dcm", FILM, 0, **{**XRAY, **WINDOW, **changes})
    with pytest.raises(ImageError, match=reason):
        read_whole(tmp_path / "film.dcm", SETTINGS)


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_every_compression_that_scanners_and_archives_use_has_a_decoder(syntax: str) -> None:
    assert get_decoder(syntax).is_available
