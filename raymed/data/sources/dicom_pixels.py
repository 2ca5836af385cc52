"""Pixels of DICOM files -> what a network sees: CT through the window of the settings, X-rays through that of the file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.multival import MultiValue
from pydicom.pixels import apply_modality_lut, apply_voi

from raymed.data.hounsfield import PADDING, TISSUE_ABOVE, TISSUE_BELOW, Values, require_hounsfield, without_padding
from raymed.data.image import ImageError, ImageSettings, fit, show
from raymed.data.sources.dicom_header import open_file, read_header

MOST_INTERCEPT = 100_000.0  # Hounsfield units


def read_slice(path: Path, settings: ImageSettings) -> np.ndarray:
    """One file: uint8 [height, width, 1] (uint16 of an X-ray without a window), in the orientation in which it is shown.

    Raises:
        ImageError: it cannot be shown rightly, by its header or its pixels.
    """
    shown, scan = _shown(path, settings, derived=False)
    require_hounsfield([scan.values] if scan else [])
    return shown


def read_series(paths: Sequence[Path], settings: ImageSettings) -> list[np.ndarray | str]:
    """The files of a study that a listing chose, fitted: uint8 [size, size, 1], or why one cannot be used.

    Whether CT is in Hounsfield units is asked of all of them together, because not every slice holds air; but of slices that
    are rescaled unlike most, alone.
    """
    results: list[np.ndarray | str] = []
    scanned: dict[int, _Scan] = {}
    for place, path in enumerate(paths):
        try:
            shown, scan = _shown(path, settings, derived=True)
            results.append(fit(shown, settings))
        except ImageError as error:
            results.append(str(error))
        except Exception as error:  # foreign bytes in foreign decoders: whatever they raise, the file is unusable
            results.append(f"cannot be decoded: {type(error).__name__}: {error}")
        else:
            if scan:
                scanned[place] = scan
    for places in _judged_together(scanned):
        try:
            require_hounsfield([scanned[place].values for place in places])
        except ImageError as error:
            for place in places:
                results[place] = str(error)
    return results


class _Scan(NamedTuple):
    """Of a CT slice: its values, and the slope and intercept that led to them."""

    values: Values
    rescale: tuple[float, float]


def _judged_together(scanned: Mapping[int, _Scan]) -> list[list[int]]:
    usual = Counter(scan.rescale for scan in scanned.values()).most_common(1)
    if not usual or 2 * usual[0][1] <= len(scanned):
        return [list(scanned)]
    together = [place for place, scan in scanned.items() if scan.rescale == usual[0][0]]
    return [together, *([place] for place in scanned.keys() - set(together))]


def _shown(path: Path, settings: ImageSettings, derived: bool) -> tuple[np.ndarray, _Scan | None]:
    """A file as it is shown, and what CT is judged by."""
    dataset = open_file(path, pixels=True)
    header = read_header(dataset, path.name, derived)
    if header.modality != "CT":
        return _xray(dataset, settings)[:, :, None], None
    slope, intercept = _rescale(dataset)
    stored = _stored(dataset)
    with np.errstate(over="ignore"):
        hu = stored * np.float32(slope) + np.float32(intercept)
    padding = _padding(dataset, stored)
    if padding is not None:
        _require_no_tissue(hu[padding])
        hu[padding] = PADDING
    hu, values = without_padding(hu)
    shown = show(hu, settings)[:, :, None]  # MONOCHROME1 says how stored values are shown, and is no other scale of HU
    shown = np.ascontiguousarray(shown[::-1, ::-1]) if header.turned else shown
    return shown, _Scan(values, (slope, intercept))


def _stored(dataset: pydicom.Dataset) -> np.ndarray:
    """Raises: ImageError: the pixels cannot be decoded to whole numbers [rows, columns]."""
    try:
        stored = dataset.pixel_array
    except Exception as error:  # every decoder plugin has its own kinds
        raise ImageError(f"the pixels cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error
    if stored.dtype.kind not in "iu" or stored.shape != (dataset.Rows, dataset.Columns):
        raise ImageError(f"pixels of type {stored.dtype} and shape {stored.shape}, not whole numbers of one picture")
    return stored


def _rescale(dataset: pydicom.Dataset) -> tuple[float, float]:
    """Slope and intercept.

    Raises:
        ImageError: they do not lead to Hounsfield units.
    """
    units = str(dataset.get("RescaleType") or "").strip().upper()
    if units not in ("HU", "US", ""):  # US: unspecified; then the values have to fit
        raise ImageError(f"values are in {dataset.RescaleType}, not in Hounsfield units")
    if dataset.get("ModalityLUTSequence"):
        raise ImageError("values go through a ModalityLUTSequence, whose units are not Hounsfield's")
    try:
        slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
        if slope is None or intercept is None:
            raise ImageError("no rescale slope and intercept: Hounsfield units are unknown")
        slope, intercept = float(slope), float(intercept)
    except (TypeError, ValueError) as error:
        raise ImageError(f"a damaged header: RescaleSlope or RescaleIntercept: {error}") from error
    if not (math.isfinite(slope) and slope > 0 and math.isfinite(intercept) and abs(intercept) <= MOST_INTERCEPT):
        raise ImageError(f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g} do not give Hounsfield units")
    return slope, intercept


def _padding(dataset: pydicom.Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Where `PixelPaddingValue`, or the range to `PixelPaddingRangeLimit`, stands, bool [rows, columns]; None without."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    try:
        both = [] if value is None else [value, value if limit is None else limit]
        ends = sorted(_as_stored(item, stored.dtype) for item in both)
    except (TypeError, ValueError) as error:
        raise ImageError(f"a damaged header: PixelPaddingValue: {error}") from error
    return (stored >= ends[0]) & (stored <= ends[1]) if ends else None


def _as_stored(value: object, kind: np.dtype) -> int:
    """A value whose sign its header may have read otherwise than the pixels', such as 63536 for -2000."""
    bits = 8 * kind.itemsize
    number = int(str(value)) % 2**bits
    return number - 2**bits if kind.kind == "i" and number >= 2 ** (bits - 1) else number


def _require_no_tissue(padding: np.ndarray) -> None:
    """Raises: ImageError: padding has a value, in Hounsfield units, that tissue has."""
    tissue = padding[(padding > TISSUE_ABOVE) & (padding < TISSUE_BELOW)]
    if tissue.size:
        raise ImageError(
            f"PixelPaddingValue stands for {tissue[0]:.0f} Hounsfield units, which tissue has: what is padding is unknown"
        )


def _xray(dataset: pydicom.Dataset, settings: ImageSettings) -> np.ndarray:
    """An X-ray through the first window or table of its file: uint8 [rows, columns]; without one uint16, as stored.

    Raises:
        ImageError: a window that is none, or values that no picture has.
    """
    stored = _stored(dataset)
    try:
        values = apply_modality_lut(stored, dataset)
    except Exception as error:  # damaged tables and numbers
        raise ImageError(f"a damaged header: modality LUT or rescale: {error}") from error
    if not np.isfinite(values).all() or values.min() == values.max():
        raise ImageError("NaN, infinite, or all the same values")
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    shares = _through_table(values, dataset) if dataset.get("VOILUTSequence") else _through_window(values, dataset)
    if shares is not None:
        shown = (np.clip(shares, 0, 1) * 255).astype(np.uint8)
        shown = 255 - shown if inverted else shown
        if shown.min() == shown.max():
            raise ImageError("the window of the file makes one grey level of all its values")
    elif settings.sixteen_bit_meaning[0] == "hu":
        raise ImageError("no window and no VOI LUT in the file: an X-ray is not in Hounsfield units")
    else:
        most = 2 ** int(dataset.BitsStored) - 1
        if values.min() < 0 or values.max() > most:
            raise ImageError("no window and no VOI LUT in the file, and values below 0 or above what it stores")
        shown = (most - values if inverted else values).astype(np.uint16 if most > 255 else np.uint8)
    padding = _padding(dataset, stored)
    if padding is not None:
        shown[padding] = 0
    return shown


def _through_table(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Shares 0..1 of the brightest."""
    try:
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi(values, dataset) / float(2**bits - 1)
    except Exception as error:
        raise ImageError(f"a damaged header: VOI LUT: {error}") from error


def _through_window(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """Shares of the brightest, by the first window of the file (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3); None without one."""
    centres, widths = (_floats(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if not centres or not widths:
        return None
    centre, width = centres[0], widths[0]
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ImageError(f"VOILUTFunction {function} is not known")
    if not (math.isfinite(centre) and math.isfinite(width) and width > (1 if function == "LINEAR" else 0)):
        raise ImageError(f"WindowCenter {centre:g} and WindowWidth {width:g} are no window")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -50, 50)))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return (values - centre) / width + 0.5


def _floats(value: object) -> list[float]:
    try:
        items = [] if value is None else list(value) if isinstance(value, MultiValue) else [value]
        return [float(str(item)) for item in items]
    except ValueError as error:
        raise ImageError(f"a damaged header: a window: {error}") from error
