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
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymed.data.duplicates import LAYOUT, grouped, require_distinct
from raymed.data.image import ImageSettings
from raymed.data.leak import GuardSummary, guard
from raymed.data.prepared import MANIFEST, Manifest, Prepared, digest_of
from raymed.data.pseudonyms import Pseudonyms
from raymed.data.quarantine import Line, Quarantine
from raymed.data.record import INDEX, input_pictures
from raymed.data.settings import CurationSettings, PrepareSettings
from raymed.data.shards import SHARDS, UNFINISHED, Load, LoadSlices, write_shards
from raymed.data.sources import load_study
from raymed.data.split import Assignment, assign, read_split_file
from raymed.data.survey import UNLABELLED, Survey, class_name, survey
from raymed.errors import UserError
from raymed.storage import Folder

log = logging.getLogger("raymed")

UNSPLIT = "unsplit"  # the split of rows that are in none, in counts
PROGRESS_SECONDS = 5.0
SOMETIMES = ("further", "bytes")  # columns that say something of some sources only
SAMPLE = 4  # slices a study that an estimate opens
STUDIES = pa.schema([("study", pa.string()), ("fingerprint", pa.string()), ("refused", pa.string())])
ORDER = [(name, "ascending") for name in ("patient", "study", "position", "id")]


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
    found = survey(source, settings, settings.labels)
    expected_split(found, settings)
    folder = Folder.at(out)
    if settings.pseudonymise:
        pseudonyms = Pseudonyms.open(settings.pseudonymise, folder)
        found, settings = pseudonyms.rename(found), replace(settings, pseudonymise=pseudonyms.key_name, root=None)
    described = plain_settings(settings, PrepareSettings)
    return curate(found, LoadSlices(found.listing.root, settings.image), folder, settings, described, ("image",))


def curate(
    found: Survey,
    load: Load,
    folder: Folder,
    settings: CurationSettings,
    described: dict[str, Any],
    deciding: Sequence[str],
) -> PrepareResult:
    """Bring `folder` in line with what was found.

    Args:
        load: reads a study.
        described: the settings as plain values, for the manifest.
        deciding: names of those that decide what is in a record: where they change, everything is read again.

    Raises:
        UserError: as `prepare`.
    """
    old = _open_earlier(folder)
    refused = _unchanged(old, found, described, deciding) if old else {}
    kept = len(refused)
    todo = [study for study in found.studies if study.study not in refused]

    quarantine = Quarantine(found, refused, settings.max_quarantine)
    tables = [old.index.filter(pc.is_in(old.index["study"], pa.array(refused, pa.string())))] if old else []
    progress = _Progress(sum(len(study.slices) for study in todo))
    for outcome in write_shards(found, todo, load, folder):
        tables.append(outcome.filter(pc.is_null(outcome["reason"])).select(INDEX.names).cast(INDEX))
        quarantine.add(outcome.filter(pc.is_valid(outcome["reason"])))
        progress.add(outcome.num_rows)

    if old and not todo and settings.split.file is None and _same(old, found, described, quarantine):
        return PrepareResult(old, 0, kept, guard(old.index))
    index = pa.concat_tables(tables)
    if not index.num_rows:
        raise UserError(f"{found.listing.root}: nothing can be used: {quarantine.reasons()}")
    require_distinct(index, found.listing.patients_known)
    index, groups = grouped(index, folder, settings.near_duplicates)
    index = _split(index, found, settings, _assignments(old, described)).sort_by(ORDER).combine_chunks()
    proof = guard(index)
    for fold in range(pc.max(pc.add(index["fold"], 1)).as_py() or 0):
        guard(index, fold)
    manifest = _publish(folder, index, found, settings, described, quarantine, groups)
    return PrepareResult(Prepared(folder, manifest, index), len(todo), kept, proof)


def expected_split(found: Survey, settings: CurationSettings) -> dict[str, dict[str, int]]:
    """Patients per class and split, as far as they can be known before near-duplicates are looked for.

    Raises:
        UserError: a class has too few patients, or the split file does not fit.
    """
    labels = {study.patient: class_name(found.labels, found.class_of(study)) for study in found.studies}
    labelled = {patient: name for patient, name in labels.items() if name != UNLABELLED or not found.labels.classes}
    given = read_split_file(settings.split.file, labelled) if settings.split.file else None
    patients = list(labelled)
    placed = assign(patients, list(labelled.values()), patients, settings.split, settings.seed, given)
    return _counts((name, placed[patient][0] if patient in placed else UNSPLIT) for patient, name in labels.items())


def seconds_per_slice(found: Survey, image: ImageSettings) -> float:
    """How long one CPU takes to decode and resize a slice, measured on a few slices of the first, middle and last study."""
    studies = [found.studies[place] for place in (0, len(found.studies) // 2, -1)]
    few = [replace(study, slices=study.slices[:SAMPLE]) for study in studies]
    load_study(found.listing.root, few[0], image)  # the first picture pays for loading the decoder
    start = time.perf_counter()
    for study in few:
        load_study(found.listing.root, study, image)
    return (time.perf_counter() - start) / sum(len(study.slices) for study in few)


class _Progress:
    """Says how far the reading of slices has come, and, from the second shard on, how long it will take."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._first: tuple[int, float] | None = None
        self._said = time.monotonic()

    def add(self, slices: int) -> None:
        self._done += slices
        now = time.monotonic()
        if self._first is None:
            self._first = self._done, now
        elif now - self._said >= PROGRESS_SECONDS:
            self._said = now
            rate = (self._done - self._first[0]) / (now - self._first[1])
            left = (self._total - self._done) / rate
            log.info("read %d of %d, about %.0f s left", self._done, self._total, left)


def plain_settings(settings: CurationSettings, kind: type[CurationSettings]) -> dict[str, Any]:
    """The settings that `kind` declares, as plain values; a subclass's further fields are no part of them."""
    known = {each.name for each in fields(kind)}
    return {name: value for name, value in asdict(settings).items() if name in known}


def _open_earlier(folder: Folder) -> Prepared | None:
    if not folder.exists(MANIFEST):
        return None
    try:
        return Prepared.open(folder.uri)
    except UserError as error:
        log.warning("%s: everything is read again, and splits are drawn anew", error)
        return None


def _unchanged(old: Prepared, found: Survey, described: dict[str, Any], deciding: Sequence[str]) -> dict[str, list[Line]]:
    """The studies that need not be read again, with their refused slices."""
    earlier_settings = old.manifest.settings
    if old.manifest.labels != found.labels.to_dict() or any(
        earlier_settings.get(name) != described[name] for name in deciding
    ):
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


def _same(old: Prepared, found: Survey, described: dict[str, Any], quarantine: Quarantine) -> bool:
    """Whether nothing but the list of studies could have changed, and it has not."""
    known = pq.read_table(pa.BufferReader(old.folder.read(old.manifest.studies)), schema=STUDIES)
    return (
        known.num_rows == len(found.studies)
        and old.manifest.settings == described
        and old.manifest.ignored == found.ignored
        and old.manifest.quarantine_digest == digest_of(quarantine.to_jsonl())
    )


def _split(index: pa.Table, found: Survey, settings: CurationSettings, earlier: dict[str, Assignment]) -> pa.Table:
    """The index with its `split` and `fold` columns; where there are classes, rows without a label are in no split."""
    columns = index.select(["patient", "label", "group"]).to_pydict()
    rows = list(zip(columns["patient"], columns["label"], columns["group"], strict=True))
    divided = {
        patient: (class_name(found.labels, label), group)
        for patient, label, group in rows
        if label is not None or not found.labels.classes
    }
    known = earlier
    if settings.split.file is not None:
        given = read_split_file(settings.split.file, divided, found.known_as)
        known = {patient: (split, known.get(patient, (None, None))[1]) for patient, (split, _) in given.items()}
    names = [name for name, _ in divided.values()]
    placed = assign(list(divided), names, [group for _, group in divided.values()], settings.split, settings.seed, known)
    whole = not found.labels.classes
    places = [placed[patient] if whole or label is not None else (None, None) for patient, label, _ in rows]
    return _with(index, split=[split for split, _ in places], fold=[fold for _, fold in places])


def _assignments(old: Prepared | None, described: dict[str, Any]) -> dict[str, Assignment]:
    """Where patients stand already; nowhere once the split settings have changed."""
    if old is None or any(old.manifest.settings[name] != described[name] for name in ("split", "seed")):
        return {}
    rows = old.index.filter(pc.is_valid(old.index["split"])).select(["patient", "split", "fold"]).to_pydict()
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
    settings: CurationSettings,
    described: dict[str, Any],
    quarantine: Quarantine,
    groups: list[list[str]],
) -> Manifest:
    """Write index, studies and quarantine beside the old ones, then the manifest, then remove what it does not name."""
    studies = pa.table(
        {
            "study": [study.study for study in found.studies],
            "fingerprint": [study.fingerprint for study in found.studies],
            "refused": [json.dumps(quarantine.of_study(study.study)) for study in found.studies],
        },
        schema=STUDIES,
    )
    index_bytes, studies_bytes, lines = _parquet(index), _parquet(studies), quarantine.to_jsonl()
    splits = [split or UNSPLIT for split in index["split"].to_pylist()]
    classes = [class_name(found.labels, label) for label in index["label"].to_pylist()]
    patients = set(zip(index["patient"].to_pylist(), classes, splits, strict=True))
    pictures = input_pictures(index)
    structured = pictures.filter(pc.is_valid(pictures["hash"]))
    manifest = Manifest(
        digest=_content_digest(index, found, settings.image, described),
        index=f"index-{digest_of(index_bytes)[:12]}.parquet",
        index_digest=digest_of(index_bytes),
        studies=f"studies-{digest_of(studies_bytes)[:12]}.parquet",
        quarantine_digest=digest_of(lines),
        source=settings.pseudonymise or str(found.listing.root),
        labels=found.labels.to_dict(),
        settings=described,
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


def _content_digest(index: pa.Table, found: Survey, image: ImageSettings, described: dict[str, Any]) -> str:
    """Of what the rows are, not of where they lie; independent of versions and machines."""
    common = {each.name for each in fields(PrepareSettings)}
    more = {name: value for name, value in described.items() if name not in common}
    settings = [found.labels.to_dict(), asdict(image), *([more] if more else [])]
    parts = [json.dumps(settings, sort_keys=True).encode()]
    unused = {name for name in SOMETIMES if index[name].null_count == index.num_rows}
    for name in index.column_names:
        if name not in LAYOUT and name not in unused:
            parts.append(digest_of(repr((name, index[name].to_pylist())).encode()).encode())
    return digest_of(b"\0".join(parts))


def _counts(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for (name, split), count in sorted(Counter(pairs).items()):
        counts[name][split] = count
    return dict(counts)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
