"""What a DICOM header says: whether the file is a CT slice or an X-ray that can be shown rightly, and where it belongs.

Pixels are shown as stored, so CT must be axial and stored the usual way (rows to the patient's left, columns to the back,
within 20 degrees), or turned by exactly half a turn, as of patients who lie on their face, which is turned back.
"""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue

from raymed.data.image import MAX_PIXELS, ImageError
from raymed.data.sources.listing import Geometry

# what a header's oddities mean is said as a refusal, or nothing comes of them
logging.getLogger("pydicom").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module=r"pydicom\.")

AXIAL_WITHIN = 20.0  # degrees
SQUARE_WITHIN = 1.1  # ratio of the sides of a pixel
XRAY = ("CR", "DX")
DOCUMENTS = ("AU", "DOC", "KO", "PLAN", "PR", "REG", "RTDOSE", "RTPLAN", "RTRECORD", "RTSTRUCT", "SEG", "SR")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds below it
DIRECTORY = "1.2.840.10008.1.3.10"
LOCALIZER = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM"}
COMPUTED = {"3D", "AVERAGE", "CPR", "CURVED", "MINIP", "MIP", "MNIP", "MPR"} | {
    "PROJECTION",
    "REFORMATTED",
    "RENDERED",
    "VRT",
}
# what may tell the phases of one series apart, or the reconstructions of one scan that an exporter put into it
PHASES = (
    "TemporalPositionIdentifier",
    "NominalPercentageOfCardiacPhase",
    "AcquisitionNumber",
    "AcquisitionTime",
    "ConvolutionKernel",
)
TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "ImageType",
    "BurnedInAnnotation",
    "PresentationIntentType",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientOrientation",
    "StudyDate",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "PixelAspectRatio",
    "SliceThickness",
    *PHASES,
)


class NotWantedError(ImageError):
    """A file with which nothing is wrong, and which is not what is asked for."""


@dataclass(frozen=True)
class Header:
    """Of a file that can be used.

    Attributes:
        path: relative to the source.
        modality: CT, CR or DX.
        examination: its StudyInstanceUID, empty without one.
        series: its SeriesInstanceUID.
        instance_uid: its SOPInstanceUID, empty without one.
        height: along the slice normal, towards the head, in mm; None of an X-ray.
        turned: stored half a turn from how it is shown.
        instance: its InstanceNumber, 0 without one.
        phases: values of `PHASES`.
        geometry: its size.
        date: its StudyDate as it is written, YYYYMMDD; empty without one.
    """

    path: str
    modality: str
    examination: str
    series: str
    instance_uid: str
    height: float | None
    turned: bool
    instance: int
    phases: tuple[str, ...]
    geometry: Geometry
    date: str = ""


def open_file(path: Path, pixels: bool) -> pydicom.Dataset:
    """A file, whole or as far as `read_header` looks.

    Raises:
        ImageError: not a DICOM file.
    """
    try:
        if path.stat().st_size == 0:
            raise ImageError("the file is empty (0 bytes)")
        if pixels:
            return pydicom.dcmread(path)
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("the file does not exist") from error
    except InvalidDicomError as error:
        raise ImageError(
            "not a readable DICOM file: no mark DICM at byte 128. If it was written without a file header, write it with one"
        ) from error
    except Exception as error:  # damaged bytes raise many kinds
        raise ImageError("not a readable DICOM file") from error


def read_header(dataset: pydicom.Dataset, path: str, derived: bool) -> Header:
    """What a file that can be used says.

    Args:
        path: of the file, relative to the source.
        derived: take images computed from others, and localizers.

    Raises:
        NotWantedError: a document, a screen save, a localizer, or an image computed from others.
        ImageError: it cannot be shown rightly.
    """
    try:
        return _checked(dataset, path, derived)
    except ImageError:
        raise
    except Exception as error:  # values are converted as they are asked for: whatever that raises, the header is damaged
        raise ImageError(f"a damaged header: {type(error).__name__}: {error}") from error


def _checked(header: pydicom.Dataset, path: str, derived: bool) -> Header:
    modality = str(header.get("Modality") or "").strip()
    if getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID") == DIRECTORY:
        raise NotWantedError("a list of other files (DICOMDIR)")
    if not modality and not header.get("Rows"):
        raise ImageError("neither Modality nor Rows in the header, as of a file that was cut short")
    if modality in DOCUMENTS or (modality != "CT" and modality not in XRAY and not header.get("Rows")):
        raise NotWantedError(f"a document without a picture of a patient (modality {modality})")
    _require_no_text(header)
    if modality != "CT" and modality not in XRAY:
        raise ImageError(f"modality {modality or 'unknown'}: only CT, CR and DX are read; save it as PNG, windowed")
    if not header.get("Rows") or not header.get("Columns"):
        raise ImageError("no picture in the file")
    if header.Rows * header.Columns > MAX_PIXELS:
        raise ImageError(f"more than {MAX_PIXELS // 10**6} megapixels ({header.Columns} x {header.Rows})")
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise ImageError(f"{header.NumberOfFrames} frames in one file; convert to one file per slice or to NIfTI")
    shown_as = str(header.get("PhotometricInterpretation") or "")
    if int(header.get("SamplesPerPixel") or 1) != 1 or shown_as not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(f"{shown_as or 'an unknown kind of'} pixels, not grey values (MONOCHROME1 or MONOCHROME2)")
    if not header.get("SeriesInstanceUID"):
        raise ImageError("no SeriesInstanceUID: which series it belongs to is unknown")
    if modality == "CT":
        if not derived:
            _require_original(header)
        height, turned = _axial(header)
    else:
        _require_upright(header)
        height, turned = None, False
    return Header(
        path=path,
        modality=modality,
        examination=str(header.get("StudyInstanceUID") or ""),
        series=str(header.SeriesInstanceUID),
        instance_uid=str(header.get("SOPInstanceUID") or ""),
        height=height,
        turned=turned,
        instance=int(header.get("InstanceNumber") or 0),
        phases=tuple(str(header.get(name) or "") for name in PHASES),
        geometry=_geometry(header),
        date=str(header.get("StudyDate") or "").strip(),
    )


def _image_type(header: pydicom.Dataset) -> list[str]:
    value = header.get("ImageType") or ()
    return [str(item).strip().upper() for item in ([value] if isinstance(value, str) else value)]


def _require_no_text(header: pydicom.Dataset) -> None:
    """Raises: ImageError: text is in the pixels, or likely to be (NotWantedError): it may name the patient."""
    if str(header.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        raise ImageError("text is burned into the picture (BurnedInAnnotation YES), which may name the patient")
    kind = str(header.get("SOPClassUID") or "")
    written = " ".join(_image_type(header))
    if f"{kind}.".startswith(f"{SECONDARY_CAPTURE}.") or re.search(r"SCREEN ?(SAVE|SHOT)", written):
        raise NotWantedError("a secondary capture or screen save, whose pixels may hold text that names the patient")


def _require_original(header: pydicom.Dataset) -> None:
    """Raises: NotWantedError: a localizer, or computed from other images."""
    values = _image_type(header)
    words = {word for value in values for word in re.split(r"[\s_]+", value)} | {value.replace(" ", "") for value in values}
    written = "\\".join(values)
    if words & LOCALIZER:
        raise NotWantedError(f"a localizer (ImageType {written}); --source.derived true takes it, where it is axial")
    if words & COMPUTED or values[:2] == ["DERIVED", "SECONDARY"]:
        raise NotWantedError(f"computed from other images (ImageType {written}); --source.derived true takes it")


def _axial(header: pydicom.Dataset) -> tuple[float, bool]:
    """Height in mm, and whether the slice is stored half a turn from how it is shown.

    Raises:
        ImageError: not axial, mirrored, or unknown.
    """
    place = _numbers(header.get("ImagePositionPatient"), 3)
    axes = _numbers(header.get("ImageOrientationPatient"), 6)
    if place is None or axes is None:
        raise ImageError("no ImagePositionPatient or ImageOrientationPatient: order and orientation are unknown")
    along_row, along_column = axes[:3], axes[3:]
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if min(lengths) == 0 or abs(float(np.dot(along_row, along_column))) > 0.01 * float(np.prod(lengths)):
        raise ImageError(f"ImageOrientationPatient {axes.round(3).tolist()} is no pair of axes")
    # patient axes are left, back, head (DICOM PS3.3 C.7.6.2.1.1)
    to_left, to_back = along_row[0] / lengths[0], along_column[1] / lengths[1]
    least = np.cos(np.radians(AXIAL_WITHIN))
    if not (min(to_left, to_back) >= least or max(to_left, to_back) <= -least):
        raise ImageError(
            "not an axial slice stored the usual way (rows to the left, columns to the back): "
            f"ImageOrientationPatient {axes.round(3).tolist()}"
        )
    normal = np.cross(along_row / lengths[0], along_column / lengths[1])
    return float(np.dot(place, normal)), bool(to_left < 0)


def _require_upright(header: pydicom.Dataset) -> None:
    """Raises: ImageError: an X-ray that is raw, mirrored or upside down."""
    if str(header.get("PresentationIntentType") or "").strip().upper() == "FOR PROCESSING":
        raise ImageError("raw values of a detector (FOR PROCESSING): export the image that is FOR PRESENTATION")
    towards = header.get("PatientOrientation") or ()
    if isinstance(towards, MultiValue) and len(towards) == 2 and (str(towards[0])[:1] == "R" or str(towards[1])[:1] == "H"):
        raise ImageError(f"mirrored or upside down (PatientOrientation {towards[0]}\\{towards[1]}): turn it upright first")


def _geometry(header: pydicom.Dataset) -> Geometry:
    """Raises: ImageError: pixels that are not square."""
    spacing = _numbers(header.get("PixelSpacing"), 2)
    if spacing is None:
        spacing = _numbers(header.get("ImagerPixelSpacing"), 2)
    ratio = _numbers(header.get("PixelAspectRatio"), 2) if spacing is None else spacing
    if ratio is not None and (ratio.min() <= 0 or ratio.max() > SQUARE_WITHIN * ratio.min()):
        raise ImageError(f"pixels are not square ({ratio[0]:g} x {ratio[1]:g}): resample the image first")
    thickness = header.get("SliceThickness")
    return Geometry(
        pixel_spacing=None if spacing is None else float(spacing[1]),
        slice_thickness=float(thickness) if thickness else None,
        field_of_view=None if spacing is None else float(spacing[1] * header.Columns),
    )


def _numbers(value: object, count: int) -> np.ndarray | None:
    if not isinstance(value, MultiValue) or len(value) != count:
        return None
    numbers = np.array([float(item) for item in value])
    return numbers if np.isfinite(numbers).all() else None
