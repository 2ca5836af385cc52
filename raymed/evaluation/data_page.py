"""What a radiologist would look at before a search: one printable HTML page about prepared data, without scripts.

Everything is looked at in groups of one source and class, for what differs between sources goes with the scanner, and what
goes with a class is learned. Only some pictures are read, so the page takes a minute whatever the size of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymed.data.acquisition import PICTURE, SIZES
from raymed.data.geometry import telling
from raymed.data.prepared import Prepared
from raymed.data.record import Record
from raymed.data.survey import class_name
from raymed.evaluation.page import environment
from raymed.evaluation.report import picture_uri
from raymed.evaluation.sides import lean

SHOWN = 12  # pictures of a group
READ = 96  # pictures of a group that its histogram and sides are taken from
BINS = 64
PAIRS = 8  # of suspected duplicates
SLICES = "slices"
MIRRORED = 0.3  # share of pictures with the heart's shadow on their right, below which a group is asked about
FEW_PICTURES = 30  # below which it is not


@dataclass(frozen=True)
class Shown:
    """A picture on the page: a data URI, and what stands below it."""

    picture: str
    text: str


@dataclass(frozen=True)
class Spread:
    """Median and 5 to 95 % range of a measure over patients; None where no file says it."""

    name: str
    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """Records of one source and class.

    Attributes:
        patients: how many.
        records: how many.
        modalities: such as CT.
        pictures: some, of as many patients as there are.
        histogram: share of the pixels in each of `BINS` equal ranges of grey, of the pictures that were read.
        spreads: of slices a patient, and of what the files say.
        upright: share of the pictures that were read whose heart's shadow lies on the right side of the picture.
    """

    source: str
    name: str
    patients: int
    records: int
    modalities: str
    pictures: Sequence[Shown]
    histogram: Sequence[float]
    spreads: Sequence[Spread]
    upright: float


@dataclass(frozen=True)
class DataPage:
    """Everything the page shows."""

    prepared: Prepared
    groups: Sequence[Group]
    duplicates: Sequence[tuple[Shown, Shown]]
    notes: Sequence[str]

    @property
    def window(self) -> str:
        """What black and white are."""
        hounsfield = "black the least value of a slice, white its greatest"
        if (window := self.prepared.image.width_level) is not None:
            width, level = window
            hounsfield = f"black {level - width / 2:.0f} HU, white {level + width / 2:.0f} HU"
        kinds = self.prepared.manifest.modalities
        if set(kinds) == {"CT"}:
            return hounsfield
        return f"CT: {hounsfield}; pictures: grey as their files show it" if "CT" in kinds else "grey as the files show it"

    def render(self) -> str:
        """The page as one HTML document."""
        templates = environment("raymed.evaluation")
        return templates.get_template("data_page.html").render(
            page=self,
            manifest=self.prepared.manifest,
            unit=self.prepared.manifest.unit,
            called=dict(zip(self.prepared.labels.names, self.prepared.labels.called, strict=True)),
        )


def look_at(prepared: Prepared, seed: int = 0) -> DataPage:
    """Gather what the page shows.

    Args:
        seed: which pictures are read and shown.

    Raises:
        UserError: a shard is missing or damaged.
    """
    draw = np.random.default_rng(seed)
    index = prepared.index
    classes = np.array([class_name(prepared.labels, label) for label in index["label"].to_pylist()], dtype=object)
    sources = np.array(index["source"].to_pylist(), dtype=object)
    groups = []
    for source in sorted(set(sources)):
        for name in sorted(set(classes[sources == source])):
            groups.append(_group(prepared, np.flatnonzero((sources == source) & (classes == name)), source, name, draw))
    notes = [*prepared.manifest.notes, *_sides(groups), *_sources(sources, classes), *telling(prepared)]
    return DataPage(prepared, groups, _duplicates(prepared), notes)


def _group(prepared: Prepared, rows: np.ndarray, source: str, name: str, draw: np.random.Generator) -> Group:
    lines = prepared.index.take(pa.array(rows))
    patients = np.array(lines["patient"].to_pylist(), dtype=object)
    chosen = rows[_of_many(patients, READ, draw)]
    records = prepared.read(chosen)
    first = [next(image.pixels for image in record.images if image.role == "input") for record in records if record.images]
    counts = sum((np.histogram(pixels, BINS, (0, 256))[0] / pixels.size for pixels in first), np.zeros(BINS))
    kinds = sorted({kind or PICTURE for kind in lines["modality"].to_pylist()})
    return Group(
        source=source,
        name=name,
        patients=len(set(patients)),
        records=len(rows),
        modalities=", ".join(kinds),
        pictures=[_shown(record) for record in records[:SHOWN] if record.images],
        histogram=(counts / max(len(first), 1)).tolist(),
        spreads=_spreads(lines),
        upright=float(np.mean([lean(pixels) > 0 for pixels in first])) if first else 0.0,
    )


def _of_many(patients: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Places of at most `count` rows, in random order, of as many patients as there are."""
    order = draw.permutation(len(patients))
    turns: dict[str, int] = {}
    ranked = []
    for place in order:
        turn = turns[patients[place]] = turns.get(patients[place], -1) + 1
        ranked.append((turn, place))
    ranked.sort(key=lambda each: each[0])
    return np.array([place for _, place in ranked[:count]], dtype=np.int64)


def _shown(record: Record) -> Shown:
    return Shown(picture_uri(record.images[0].pixels), f"{record.patient}, slice {record.position}")


def _by_patient(lines: pa.Table) -> dict[str, np.ndarray]:
    """Medians of the measures over each patient's records, by the measure's name; nothing of what no file says."""
    known = {name: f"{words}, mm" for name, words in SIZES.items() if lines[name].null_count < lines.num_rows}
    grouped = lines.group_by("patient").aggregate([(name, "approximate_median") for name in known] + [("patient", "count")])
    values = {words: grouped[f"{name}_approximate_median"] for name, words in known.items()}
    return {
        words: np.array(pc.drop_null(column.combine_chunks()), dtype=np.float64)
        for words, column in {SLICES: grouped["patient_count"], **values}.items()
    }


def _spreads(lines: pa.Table) -> list[Spread]:
    return [
        Spread(name, *(float(part) for part in np.percentile(values, (50, 5, 95))))
        for name, values in _by_patient(lines).items()
    ]


def _sources(sources: np.ndarray, classes: np.ndarray) -> list[str]:
    """Classes that come from one source only, where there are several."""
    if len(set(sources)) < 2:
        return []
    return [
        f"all of {name} are from {origins.pop()}: a network may learn the source in place of the class"
        for name in sorted(set(classes))
        if len(origins := set(sources[classes == name])) == 1
    ]


def _sides(groups: Sequence[Group]) -> list[str]:
    return [
        f"{group.source}, {group.name}: only {group.upright:.0%} of the pictures have the heart's shadow on the right of "
        "the picture. Are they mirrored?"
        for group in groups
        if group.upright < MIRRORED and min(group.records, READ) >= FEW_PICTURES and group.modalities != "CT"
    ]


def _duplicates(prepared: Prepared) -> list[tuple[Shown, Shown]]:
    """The likest pictures of two patients that share near-duplicates."""
    patients, hashes = prepared.index["patient"].to_pylist(), prepared.index["hash"].to_pylist()
    wanted = {patient for group in prepared.manifest.near_duplicates[:PAIRS] for patient in group}
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        if patient in wanted and hashes[row] is not None:
            rows.setdefault(patient, []).append(row)
    pairs = []
    for group in prepared.manifest.near_duplicates[:PAIRS]:
        one, other = (rows.get(patient, []) for patient in group[:2])
        bits = [np.unpackbits(np.frombuffer(b"".join(hashes[row] for row in part), np.uint8)) for part in (one, other)]
        if one and other:
            unlike = (bits[0].reshape(len(one), 1, -1) != bits[1].reshape(1, len(other), -1)).sum(axis=2)
            place = np.unravel_index(unlike.argmin(), unlike.shape)
            first, second = prepared.read([one[place[0]], other[place[1]]])
            pairs.append((_shown(first), _shown(second)))
    return pairs
