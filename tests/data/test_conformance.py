"""Files of others and headers that nobody would write: a slice is right, left out or refused, never of another scale."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conformance import FILES, documented, files, table, verdict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.pixels import apply_rescale
from volume_files import CHEST, SIDE, write_dicom

from raymed.data.image import ImageSettings
from raymed.data.sources import Refusal, SourceSettings, dicom, load_study

SETTINGS = ImageSettings(size=SIDE)


def windowed(hu: np.ndarray) -> np.ndarray:
    return np.clip(np.floor((hu + 1350.0) * 255 / 1500), 0, 255).astype(int)


def test_the_table_of_other_peoples_files_is_what_happens() -> None:
    assert documented() == table(), "run python tests/data/conformance.py, and look at what has changed"


@pytest.mark.slow
def test_slices_equal_those_of_an_independent_reader() -> None:
    from monai.data import PydicomReader

    read = [FILES["pydicom"] / name for name in files("pydicom") if verdict(FILES["pydicom"] / name) == "read"]
    scans = [path for path in read if pydicom.dcmread(path).Modality == "CT"]
    assert len(scans) >= 5
    for path in scans:
        listing = dicom.list_studies(path, SourceSettings(labelled=False, patient_regex="(.+)"))
        side = pydicom.dcmread(path).Rows
        ((_, ours),) = load_study(listing.root, listing.studies[0], ImageSettings(size=side))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = PydicomReader()
            hu, _ = reader.get_data(reader.read(path))
        padding = hu < -1500
        assert isinstance(ours, np.ndarray)
        assert np.abs(ours[..., 0] - windowed(np.where(padding, -1000, hu)).T).max() <= 1, path.name


GREY = np.random.default_rng(0).integers(0, 4096, CHEST[0].shape)
CONTENT = {
    "hounsfield": CHEST[0].astype(int) + 1024,
    "signed": CHEST[0].astype(int),
    "grey": GREY,
    "bytes": GREY // 16,
    "padded": np.where(np.indices(GREY.shape)[0] < 4, -2000, CHEST[0]),
}
FIELDS: dict[str, list] = {
    "RescaleSlope": [None, "0", "-1", "0.5", "2", "1e38", "0.0001", "1000"],
    "RescaleIntercept": [None, "0", "-1000", "1e30", "-8192"],
    "RescaleType": ["HU", "hu", "US", "OD", ""],
    "PhotometricInterpretation": ["MONOCHROME2", "MONOCHROME1", "PALETTE COLOR", "RGB", ""],
    "Modality": ["CT", "MR", "PT", "SR", "", None],
    "ImageType": [["ORIGINAL", "PRIMARY", "AXIAL"], ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ORIGINAL", [], None],
    "ImageOrientationPatient": [
        [1, 0, 0, 0, 1, 0],
        [-1, 0, 0, 0, -1, 0],
        [-1, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, -1],
        [1, 0, 0, 1, 0, 0],
        [0] * 6,
        None,
    ],
    "ImagePositionPatient": [[0, 0, 0], [1, 2], None],
    "PixelSpacing": [[1, 1], [1.4, 0.7], [0, 0], [-1, -1], None],
    "PixelPaddingValue": [-2000, 0, 24, 63536, None],
    "BurnedInAnnotation": ["YES", "NO"],
    "NumberOfFrames": [1, 2, 0],
    "SamplesPerPixel": [1, 3, None],
    "BitsStored": [16, 12],
    "SOPClassUID": ["1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.2"],
    "InstanceNumber": [None, 0, -5],
}
# a good header, with few of its fields otherwise: most of all headers that differ anywhere are refused
HEADERS = st.lists(st.sampled_from([(name, value) for name, values in FIELDS.items() for value in values]), max_size=3).map(
    dict
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=HEADERS, content=st.sampled_from(sorted(CONTENT)), signed=st.booleans())
def test_whatever_the_header_says_a_slice_is_right_left_out_or_refused(
    tmp_path: Path, header: dict, content: str, signed: bool
) -> None:
    path = tmp_path / "slice.dcm"
    stored = CONTENT[content].astype(np.int16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = {"PixelRepresentation": int(signed), "PixelData": stored.tobytes()} | header
        if (padding := header.get("PixelPaddingValue")) is not None:  # as its sign has it
            written["PixelPaddingValue"] = int(np.int64(padding).astype(np.int16 if signed else np.uint16))
        write_dicom(path, CHEST[0], 0, **written)
        listing = dicom.list_studies(path, SourceSettings(labelled=False, patient_regex="(.+)"))
        if not listing.studies:
            (refusal,) = listing.refusals
            assert refusal.reason
            return
        ((_, ours),) = load_study(listing.root, listing.studies[0], SETTINGS)
        if isinstance(ours, Refusal):
            return
        dataset = pydicom.dcmread(path)
        hu = apply_rescale(dataset.pixel_array, dataset)
    assert dataset.Modality == "CT" and str(dataset.get("RescaleType") or "HU").upper() in ("HU", "US")
    body = hu[hu > -1500]
    assert (body < -200).any() and (body > -200).any() and body.max() < 32768, (
        "not in Hounsfield units, whatever the header says"
    )
    declared = header.get("PixelPaddingValue")
    padding = hu < -1500
    if declared is not None:
        padding |= (dataset.pixel_array.astype(np.int64) & 0xFFFF) == (declared & 0xFFFF)
    expected = windowed(np.where(padding, -1000, hu))
    if dataset.ImageOrientationPatient[0] == -1:
        expected = expected[::-1, ::-1]
    assert np.abs(ours[..., 0] - expected).max() <= 1
