"""How large the pictures of prepared data are, by source and class: a scanner that goes with a class is a leak, too."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from PIL import Image
from sklearn.metrics import roc_auc_score

from raymed.data.acquisition import SIZES
from raymed.data.image import FORMATS, ImageSettings
from raymed.data.prepared import Prepared
from raymed.data.sources import Listing
from raymed.data.sources.dicom import is_dicom
from raymed.data.sources.dicom_header import open_file
from raymed.data.sources.listing import some
from raymed.data.survey import class_name

FEWEST = 5  # patients on either side, below which anything tells them apart
LOOKED_AT = 200  # files, of which the shape is looked at
MANY = 12  # pictures; views of one patient, of sizes of their own, are fewer
SHAPE_KEPT = 1.5  # ratio of the sides from which squash makes another picture
TELLING = 0.9  # area under the curve from which a quantity gives a class away


def spread(prepared: Prepared) -> list[str]:
    """Lines for a person: median and range over patients, in mm, and what gives a class away; none where no file says."""
    patients = _by_patient(prepared)
    if patients[list(SIZES)].isna().all(axis=None):
        return []
    lines = []
    for (source, name), group in patients.groupby(["source", "class"]):
        said = [_range(group[key], words) for key, words in SIZES.items()]
        lines.append(f"{source}, {name} ({len(group)} patients): {'; '.join(said)}")
    return [*lines, *(f"warning: {line}" for line in telling(prepared))]


def telling(prepared: Prepared) -> list[str]:
    """What tells one class from all others by itself, a line each."""
    patients = _by_patient(prepared)
    lines = []
    for key, words in SIZES.items():
        known = patients.dropna(subset=[key])
        for name in sorted(known["class"].unique()):
            is_class = known["class"] == name
            if min(is_class.sum(), (~is_class).sum()) < FEWEST:
                continue
            area = float(roc_auc_score(is_class, known[key]))
            if max(area, 1 - area) >= TELLING:
                lines.append(
                    f"{words} alone tells {name} from the other classes (AUC {max(area, 1 - area):.2f}): a model may learn "
                    "the scanner and not the disease"
                )
    return lines


def fitted(listing: Listing, image: ImageSettings) -> list[str]:
    """Lines for a person about what bringing pictures to one size costs: of some files, spread over the source, it looks at
    the headers. Large are those that InternVL would cut into two tiles or more.
    """
    files = [listing.root / piece.path for study in listing.studies for piece in study.slices[:1]]
    looked_at = [shape for path in files[:: max(1, len(files) // LOOKED_AT)] if (shape := _shape(path))]
    long = [(height, width) for height, width in looked_at if max(height, width) > SHAPE_KEPT * min(height, width)]
    large = [(height, width) for height, width in looked_at if height * width >= 2 * image.size**2]
    lines = []
    if image.resize == "squash" and long:
        height, width = max(long, key=lambda shape: max(shape) / min(shape))
        lines.append(
            f"{len(long)} of {len(looked_at)} pictures that were looked at are far from square, e.g. {width} x {height}, "
            f"and squash stretches them to {image.size} x {image.size}: --image.resize pad keeps their shape"
        )
    if large:
        height, width = max(large)
        lines.append(
            f"{len(large)} of {len(looked_at)} pictures that were looked at are much larger than {image.size} x "
            f"{image.size}, e.g. {width} x {height}, and are made smaller, not cut into tiles: a larger --image.size keeps "
            "more of them"
        )
    return lines


def mixed(listing: Listing) -> str | None:
    """A line for a person if folders of patients may be of several: with many pictures, of several sizes. It looks at the
    headers of four of each study.
    """
    suspects = []
    for study in listing.studies if listing.format == "folders" else ():
        last = len(study.slices) - 1
        few = [listing.root / study.slices[last * part // 3].path for part in range(4)]
        if last >= MANY and len({shape for path in few if (shape := _shape(path))}) > 1:
            suspects.append(f"{study.patient} ({last + 1})")
    if not suspects:
        return None
    return (
        f"{len(suspects)} of {len(listing.studies)} studies have many pictures, of several sizes, as a folder has that "
        f"holds several patients: {some(suspects, 3)}. If they are, name the patient with --source.patient-regex"
    )


def _shape(path: Path) -> tuple[int, int] | None:
    """Height and width of a picture or DICOM file; None of any other, or where they are not to be read."""
    try:
        if is_dicom(path):
            header = open_file(path, pixels=False)
            return int(header.Rows), int(header.Columns)
        with Image.open(path, formats=FORMATS) as picture:
            return picture.height, picture.width
    except Exception:  # whoever reads the pixels says why
        return None


def _by_patient(prepared: Prepared) -> pd.DataFrame:
    """Medians over each patient's records: the columns source, class, patient, and those of `SIZES`."""
    index = prepared.index.select(["source", "label", "patient", *SIZES]).to_pandas()
    index["class"] = [class_name(prepared.labels, None if pd.isna(label) else int(label)) for label in index["label"]]
    return index.groupby(["source", "class", "patient"])[list(SIZES)].median().reset_index()


def _range(values: pd.Series, words: str) -> str:
    known = values.dropna()
    if known.empty:
        return f"{words} unknown"
    lost = f", {len(values) - len(known)} unknown" if len(known) < len(values) else ""
    return f"{words} {known.median():.3g} mm ({known.min():.3g} to {known.max():.3g}{lost})"
