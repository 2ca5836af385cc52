"""CT as DICOM series and NIfTI volumes, for tests of whatever reads them."""

from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SIDE = 16
# rows to the back, columns to the patient's left, slices to the head; air, and soft tissue front left low down
CHEST = np.random.default_rng(0).integers(-1000, -700, (5, SIDE, SIDE)).astype(np.int16)
CHEST[:2, 2:5, 9:14] = 40
AXIAL = [1, 0, 0, 0, 1, 0]


def shown(hu: np.ndarray) -> np.ndarray:
    return np.clip((hu + 1350.0) * 255 / 1500, 0, 255).astype(np.uint8)


def write_dicom(
    path: Path, plane: np.ndarray, height: float, instance: int = 1, series: str = "1.2.3", **changes: object
) -> None:
    """A CT slice; `changes` set or, with None, remove header fields."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    fields = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "CT",
        "PatientID": "MRN-1",
        "SeriesInstanceUID": series,
        "InstanceNumber": instance,
        "ImagePositionPatient": [0, 0, height],
        "ImageOrientationPatient": AXIAL,
        "Rows": plane.shape[0],
        "Columns": plane.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": (plane.astype(np.int32) + 1024).astype(np.uint16).tobytes(),
    }
    for name, value in {**fields, **changes}.items():
        if value is not None:
            setattr(file, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


def write_series(folder: Path, **changes: object) -> None:
    """CHEST, its files and instance numbers running against the anatomy."""
    for at, plane in enumerate(CHEST):
        number = len(CHEST) - at
        write_dicom(folder / f"IM{number:04d}", plane, -300 + 8.0 * at, number, **changes)


def write_nifti(
    path: Path, codes: str = "LPS", spacing: tuple[float, float, float] = (1, 1, 3), hu: np.ndarray = CHEST
) -> Path:
    """A volume stored along any axes, e.g. "RAS"."""
    displayed = np.transpose(hu, (2, 1, 0))  # columns to the left, rows to the back, slices to the head
    to_ras = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    turn = nibabel.orientations.ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(codes))
    stored = nibabel.apply_orientation(displayed, turn)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(stored, to_ras @ inv_ornt_aff(turn, displayed.shape)), path)
    return path
