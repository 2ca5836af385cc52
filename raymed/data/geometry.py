"""How large the pictures of prepared data are, by source and class: a scanner that goes with a class is a leak, too."""

from __future__ import annotations

import pandas as pd
from sklearn.metrics import roc_auc_score

from raymed.data.prepared import Prepared
from raymed.data.survey import class_name

QUANTITIES = {"pixel_spacing": "pixel spacing", "slice_thickness": "slice thickness", "field_of_view": "field of view"}
FEWEST = 5  # patients on either side, below which anything tells them apart
TELLING = 0.9  # area under the curve from which a quantity gives a class away


def spread(prepared: Prepared) -> list[str]:
    """Lines for a person: median and range over patients, in mm, and what gives a class away; none where no file says."""
    index = prepared.index.select(["source", "label", "patient", *QUANTITIES]).to_pandas()
    index["class"] = [class_name(prepared.labels, None if pd.isna(label) else int(label)) for label in index["label"]]
    patients = index.groupby(["source", "class", "patient"])[list(QUANTITIES)].median().reset_index()
    if patients[list(QUANTITIES)].isna().all(axis=None):
        return []
    lines = []
    for (source, name), group in patients.groupby(["source", "class"]):
        said = [_range(group[key], words) for key, words in QUANTITIES.items()]
        lines.append(f"{source}, {name} ({len(group)} patients): {'; '.join(said)}")
    return [*lines, *_telling(patients)]


def _range(values: pd.Series, words: str) -> str:
    known = values.dropna()
    if known.empty:
        return f"{words} unknown"
    lost = f", {len(values) - len(known)} unknown" if len(known) < len(values) else ""
    return f"{words} {known.median():.3g} mm ({known.min():.3g} to {known.max():.3g}{lost})"


def _telling(patients: pd.DataFrame) -> list[str]:
    """What tells one class from all others by itself."""
    lines = []
    for key, words in QUANTITIES.items():
        known = patients.dropna(subset=[key])
        for name in sorted(known["class"].unique()):
            is_class = known["class"] == name
            if min(is_class.sum(), (~is_class).sum()) < FEWEST:
                continue
            area = float(roc_auc_score(is_class, known[key]))
            if max(area, 1 - area) >= TELLING:
                lines.append(
                    f"warning: {words} alone tells {name} from the other classes (AUC {max(area, 1 - area):.2f}): a model "
                    "may learn the scanner and not the disease"
                )
    return lines
