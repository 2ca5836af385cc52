"""Studies in, prepared data out: checked, decoded, windowed, resized, split, and written as Parquet shards.

Pictures are decoded once, here. A slice that cannot be used goes to the quarantine with its reason and takes no neighbour
with it. The manifest is written last: until then the folder is what it was before.
"""

from __future__ import annotations

import json
import logging
import platform
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from raymed.data.image import ImageSettings
from raymed.data.leak import GuardSummary, guard, near_duplicates, thumbnail
from raymed.data.prepared import MANIFEST, Manifest, Places, Prepared, digest_of
from raymed.data.record import INDEX, records_from
from raymed.data.shards import SHARDS, UNFINISHED, write_shards
from raymed.data.sources import Refusal, SourceSettings
from raymed.data.split import Assignment, SplitSettings, assign, read_split_file
from raymed.data.survey import NAMED, Survey, class_name, survey
from raymed.errors import UserError
from raymed.storage import Folder

log = logging.getLogger("raymed")

UNSPLIT = "unsplit"  # the split of rows that are in none, in counts
PROGRESS_SECONDS = 5.0
LAYOUT = ["shard", "row_group", "row"]  # index columns that say where a row lies, not what it is
STUDIES = pa.schema([("study", pa.string()), ("fingerprint", pa.string()), ("refused", pa.string())])
ORDER = [(name, "ascending") for name in ("patient", "study", "position", "id")]

Line = dict[str, Any]  # of quarantine.jsonl: id, where, patient, reason


@dataclass(frozen=True)
class PrepareSettings:
    """How raw studies become prepared data.

    Attributes:
        source: how the input is read.
        image: size, windowing and resizing of the pictures.
        split: shares of train/val/test, and folds.
        labels: a label table: a YAML file, or the name of one that comes with raymed.
        near_duplicates: pictures that two patients share, re-encoded or resized: group keeps those patients in one split,
            warn only lists them, error stops.
        max_quarantine: stop when more than this share of the slices cannot be used, e.g. 5%.
    """

    source: SourceSettings = field(default_factory=SourceSettings)
    image: ImageSettings = field(default_factory=ImageSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    labels: str = "lung"
    near_duplicates: Literal["group", "warn", "error"] = "group"
    max_quarantine: str = "5%"


@dataclass(frozen=True)
class PrepareResult:
    """The prepared data and what this run did.

    Attributes:
        prepared: the folder, opened.
        new: studies read in this run.
        kept: studies that were already there, unchanged.
        guard: the proof that the splits share nothing.
    """

    prepared: Prepared
    new: int
    kept: int
    guard: GuardSummary


def prepare(source: Path, out: str, settings: PrepareSettings) -> PrepareResult:
    """Bring the folder `out` in line with `source`: new and changed studies are read, removed ones leave.

    The content (`Prepared.digest`) does not depend on the number of workers. Patients keep their split as long as the split
    settings stay the same.

    Raises:
        UserError: the input is inconsistent, too much of it is unusable, or two patients share identical pixels. What
            stood in `out` before is then untouched.
    """
    limit = _share(settings.max_quarantine)
    found = survey(source, settings.source, settings.labels)
    folder = Folder.at(out)
    old = _open_earlier(folder)
    refused = _unchanged(old, found, settings) if old else {}
    kept = len(refused)
    todo = [study for study in found.studies if study.study not in refused]

    quarantine = _Quarantine(found, refused, limit)
    tables = [old.index.filter(pc.is_in(old.index["study"], pa.array(refused, pa.string())))] if old else []
    clock = _Clock(sum(len(study.slices) for study in todo))
    for outcome in write_shards(found, todo, settings.image, folder):
        tables.append(outcome.filter(pc.is_null(outcome["reason"])).select(INDEX.names).cast(INDEX))
        quarantine.add(outcome.filter(pc.is_valid(outcome["reason"])))
        clock.tick(outcome.num_rows)

    if old and not todo and _same(old, found, settings, quarantine):
        return PrepareResult(old, 0, kept, guard(old.index))
    index = pa.concat_tables(tables)
    if not index.num_rows:
        raise UserError(f"{source}: no slice can be used. {quarantine.reasons()}")
    _require_distinct(index)
    index, groups = _grouped(index, folder, settings.near_duplicates)
    earlier = old.index if old and old.manifest.settings["split"] == asdict(settings.split) else INDEX.empty_table()
    index = _split(index, found, settings.split, earlier).sort_by(ORDER).combine_chunks()
    proof = guard(index)
    for fold in range(pc.max(pc.add(index["fold"], 1)).as_py() or 0):
        guard(index, fold)
    manifest = _publish(folder, index, found, settings, quarantine, groups)
    return PrepareResult(Prepared(folder, manifest, index), len(todo), kept, proof)


class _Quarantine:
    """Refused slices: those that the source refused at once, and per study those that could not be decoded."""

    def __init__(self, found: Survey, kept: dict[str, list[Line]], limit: Fraction) -> None:
        self.listed = [_line(refusal) for refusal in found.listing.refusals]
        self.studies: dict[str, list[Line]] = {study.study: kept.get(study.study, []) for study in found.studies}
        self._total = found.slices + len(self.listed)
        self._limit = limit
        self._count = len(self.listed) + sum(map(len, kept.values()))
        self._require_few()

    @property
    def lines(self) -> list[Line]:
        lines = [*self.listed, *(line for lines in self.studies.values() for line in lines)]
        return sorted(lines, key=lambda line: (line["id"], line["where"]))

    def add(self, refused: pa.Table) -> None:
        for row in refused.to_pylist():
            self.studies[row["study"]].append({name: row[name] for name in ("id", "where", "patient", "reason")})
        self._count += refused.num_rows
        self._require_few()

    def reasons(self) -> str:
        """The commonest reasons and an example of each."""
        by_reason: dict[str, list[Line]] = defaultdict(list)
        for line in self.lines:
            by_reason[line["reason"]].append(line)
        common = sorted(by_reason.items(), key=lambda item: -len(item[1]))[:NAMED]
        return "Reasons: " + "; ".join(f"{reason} ({len(lines)}, e.g. {lines[0]['where']})" for reason, lines in common)

    def _require_few(self) -> None:
        if self._count > self._limit * self._total:
            raise UserError(
                f"{self._count} of {self._total} slices cannot be used, more than max_quarantine {float(self._limit):.1%}. "
                f"{self.reasons()}. Mend the source, or raise --max-quarantine"
            )


class _Clock:
    """Says how far the reading of slices has come."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._start = self._said = time.monotonic()

    def tick(self, slices: int) -> None:
        self._done += slices
        now = time.monotonic()
        if now - self._said >= PROGRESS_SECONDS or self._done == self._total:
            self._said = now
            rate = self._done / (now - self._start)
            log.info("read %d of %d slices (%.0f/s)", self._done, self._total, rate)


def _share(text: str) -> Fraction:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if not match or (share := Fraction(match[1]) / 100) > 1:
        raise UserError(f"max_quarantine is {text!r}: give a share such as 5%")
    return share


def _line(refusal: Refusal) -> Line:
    return {"id": refusal.id, "where": refusal.where, "patient": refusal.patient, "reason": refusal.reason}


def _open_earlier(folder: Folder) -> Prepared | None:
    if not folder.exists(MANIFEST):
        return None
    try:
        return Prepared.open(folder.uri)
    except UserError as error:
        log.warning("%s: everything is read again, and splits are drawn anew", error)
        return None


def _unchanged(old: Prepared, found: Survey, settings: PrepareSettings) -> dict[str, list[Line]]:
    """The studies that need not be read again, with their refused slices."""
    if old.labels != found.labels or old.image != settings.image:
        return {}
    there = pa.array(old.folder.child(SHARDS).names(), pa.string())
    damaged = set(old.index.filter(pc.invert(pc.is_in(old.index["shard"], there)))["study"].to_pylist())
    known = pq.read_table(pa.BufferReader(old.folder.read(old.manifest.studies)), schema=STUDIES).to_pylist()
    earlier = {row["study"]: row for row in known if row["study"] not in damaged}
    return {
        study.study: json.loads(earlier[study.study]["refused"])
        for study in found.studies
        if study.study in earlier and earlier[study.study]["fingerprint"] == study.fingerprint
    }


def _same(old: Prepared, found: Survey, settings: PrepareSettings, quarantine: _Quarantine) -> bool:
    """Whether nothing but the list of studies could have changed, and it has not."""
    known = pq.read_table(pa.BufferReader(old.folder.read(old.manifest.studies)), schema=STUDIES)
    return (
        settings.split.file is None
        and known.num_rows == len(found.studies)
        and old.manifest.settings == asdict(settings)
        and old.manifest.ignored == found.ignored
        and old.manifest.quarantine_digest == digest_of(_jsonl(quarantine.lines))
    )


def _require_distinct(index: pa.Table) -> None:
    structured = index.filter(pc.is_valid(index["hash"])).select(["digest", "patient", "id"])
    owners: dict[bytes, dict[str, str]] = defaultdict(dict)
    for digest, patient, name in zip(*(column.to_pylist() for column in structured.columns), strict=True):
        owners[digest].setdefault(patient, name)
    shared = [patients for patients in owners.values() if len(patients) > 1]
    if shared:
        named = "; ".join(
            " = ".join(f"{patient} ({name})" for patient, name in sorted(patients.items()))
            for patients in sorted(shared, key=lambda patients: min(patients.items()))[:NAMED]
        )
        raise UserError(
            f"{len(shared)} pictures with identical pixels belong to two patients: {named}. "
            "Remove the copy, or give both pictures the same patient id"
        )


def _grouped(index: pa.Table, folder: Folder, mode: str) -> tuple[pa.Table, list[list[str]]]:
    """The index with its `group` column, and the groups of more than one patient."""

    def thumbnails(rows: np.ndarray) -> np.ndarray:
        places = Places(folder, index.select(LAYOUT).take(pa.array(rows)).to_pydict())
        return np.stack([thumbnail(record.images[0].pixels) for record in records_from(places.read())])

    patients, owners = np.unique(np.array(index["patient"].to_pylist()), return_inverse=True)
    ids = index["id"]
    pairs = near_duplicates(index["hash"].to_pylist(), index["patient"].to_pylist(), thumbnails)
    if pairs and mode == "error":
        named = "; ".join(f"{ids[a]} and {ids[b]}" for a, b in pairs[:NAMED])
        raise UserError(
            f"{len(pairs)} near-duplicate pictures of different patients: {named}. "
            "Remove the copies, or use near_duplicates=group to keep those patients in one split"
        )
    links = owners[np.array(pairs, dtype=np.int64).reshape(-1, 2)]
    graph = coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(len(patients), len(patients)))
    component = connected_components(graph, directed=False)[1]
    first = np.unique(component, return_index=True)[1]  # patients are sorted: the first names the group
    members = [patients[component == number].tolist() for number in np.flatnonzero(np.bincount(component) > 1)]
    if members:
        log.warning(
            "%d near-duplicate pictures link patients: %s%s", len(pairs), "; ".join(map(", ".join, members[:NAMED])),
            "" if mode == "group" else " (they may stand in different splits)",
        )  # fmt: skip
    group = patients[first[component]] if mode == "group" else patients
    return _with(index, group=group[owners].tolist()), sorted(members)


def _split(index: pa.Table, found: Survey, settings: SplitSettings, earlier: pa.Table) -> pa.Table:
    """The index with its `split` and `fold` columns; rows without a label are in no split."""
    columns = index.select(["patient", "label", "group"]).to_pydict()
    rows = list(zip(columns["patient"], columns["label"], columns["group"], strict=True))
    labelled = {patient: (class_name(found.labels, label), group) for patient, label, group in rows if label is not None}
    known = _assignments(earlier)
    if settings.file is not None:
        given = read_split_file(settings.file, labelled)
        known = {patient: (split, known.get(patient, (None, None))[1]) for patient, (split, _) in given.items()}
    names = [name for name, _ in labelled.values()]
    placed = assign(list(labelled), names, [group for _, group in labelled.values()], settings, known)
    places = [placed[patient] if label is not None else (None, None) for patient, label, _ in rows]
    return _with(index, split=[split for split, _ in places], fold=[fold for _, fold in places])


def _assignments(index: pa.Table) -> dict[str, Assignment]:
    rows = index.filter(pc.is_valid(index["split"])).select(["patient", "split", "fold"]).to_pydict()
    return {p: (split, fold) for p, split, fold in zip(rows["patient"], rows["split"], rows["fold"], strict=True)}


def _with(index: pa.Table, **columns: Sequence[Any]) -> pa.Table:
    for name, values in columns.items():
        place = INDEX.get_field_index(name)
        index = index.set_column(place, INDEX.field(place), pa.array(values, INDEX.field(place).type))
    return index


def _publish(
    folder: Folder,
    index: pa.Table,
    found: Survey,
    settings: PrepareSettings,
    quarantine: _Quarantine,
    groups: list[list[str]],
) -> Manifest:
    """Write index, studies and quarantine beside the old ones, then the manifest, then remove what it does not name."""
    refused = quarantine.studies
    studies = pa.table(
        {
            "study": [study.study for study in found.studies],
            "fingerprint": [study.fingerprint for study in found.studies],
            "refused": [json.dumps(refused[study.study]) for study in found.studies],
        },
        schema=STUDIES,
    )
    index_bytes, studies_bytes, lines = _parquet(index), _parquet(studies), _jsonl(quarantine.lines)
    splits = [split or UNSPLIT for split in index["split"].to_pylist()]
    classes = [class_name(found.labels, label) for label in index["label"].to_pylist()]
    patients = set(zip(index["patient"].to_pylist(), classes, splits, strict=True))
    structured = index.filter(pc.is_valid(index["hash"]))
    manifest = Manifest(
        digest=_content_digest(index, found, settings.image),
        index=f"index-{digest_of(index_bytes)[:12]}.parquet",
        index_digest=digest_of(index_bytes),
        studies=f"studies-{digest_of(studies_bytes)[:12]}.parquet",
        quarantine_digest=digest_of(lines),
        source=str(found.listing.root),
        labels=found.labels.to_dict(),
        settings=asdict(settings),
        patients=_counts((name, split) for _, name, split in patients),
        slices=_counts(zip(classes, splits, strict=True)),
        sources=_counts(zip(index["source"].to_pylist(), splits, strict=True)),
        near_duplicates=groups,
        same_pixels=structured.num_rows - pc.count_distinct(structured["digest"]).as_py(),
        quarantined=len(quarantine.lines),
        ignored=found.ignored,
        shards=dict(sorted(Counter(index["shard"].to_pylist()).items())),
        versions={name: version(name) for name in ("raymed", "numpy", "pillow", "pyarrow", "pydicom", "nibabel")}
        | {"python": platform.python_version()},
    )
    folder.write(manifest.index, index_bytes)
    folder.write(manifest.studies, studies_bytes)
    folder.write("quarantine.jsonl", lines)
    folder.write(MANIFEST, manifest.to_json())
    for name in folder.names():
        if re.fullmatch(r"(index|studies)-[0-9a-f]{12}\.parquet", name) and name not in (manifest.index, manifest.studies):
            folder.delete(name)
    for name in folder.child(SHARDS).names():
        if name not in manifest.shards:
            folder.delete(f"{SHARDS}/{name}")
    folder.delete(UNFINISHED)
    return manifest


def _content_digest(index: pa.Table, found: Survey, image: ImageSettings) -> str:
    """Of what the rows are, not of where they lie; independent of versions and machines."""
    parts = [json.dumps([found.labels.to_dict(), asdict(image)], sort_keys=True).encode()]
    for name in index.column_names:
        if name not in LAYOUT:
            parts.append(digest_of(repr((name, index[name].to_pylist())).encode()).encode())
    return digest_of(b"\0".join(parts))


def _counts(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for (name, split), count in sorted(Counter(pairs).items()):
        counts[name][split] = count
    return dict(counts)


def _jsonl(lines: Sequence[Line]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
