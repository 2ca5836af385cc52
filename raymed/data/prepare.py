"""Studies in, prepared data out: checked, decoded, windowed, resized, split, and written as Parquet shards.

Pictures are decoded once, here. A slice that cannot be used goes to the quarantine with its reason and takes no neighbour
with it. The manifest is written last: until then the folder is what it was before.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from raymed.data.duplicates import grouped, require_distinct
from raymed.data.geometry import fitted
from raymed.data.image import recorded
from raymed.data.leak import GuardSummary, guard
from raymed.data.prepared import MANIFEST, Prepared, digest_of
from raymed.data.progress import ReadingProgress
from raymed.data.pseudonyms import Pseudonyms
from raymed.data.publish import STUDIES, UNSPLIT, counts, publish, remove_unread
from raymed.data.quarantine import Line, Quarantine
from raymed.data.record import BLAKE3, INDEX
from raymed.data.settings import CurationSettings, PrepareSettings
from raymed.data.shards import SHARDS, Load, LoadSlices, write_shards
from raymed.data.split import Assignment, assign, read_split_file
from raymed.data.survey import UNLABELLED, Survey, class_name, survey
from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.storage.lease import lease

log = logging.getLogger("raymed")

LOCK = "prepare.lock"
WALKED = ("folders", "classes", "dicom", "nifti")  # formats in which every file below the source counts
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
    notes = (*found.listing.notes, *fitted(found.listing, settings.image))
    found = replace(found, listing=replace(found.listing, notes=notes))
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
    require_apart(found, folder)
    for note in found.listing.notes:
        log.warning("%s", note)
    with _alone(folder):
        old = _open_earlier(folder)
        refused = _unchanged(old, found, described, deciding) if old else {}
        kept = len(refused)
        todo = [study for study in found.studies if study.study not in refused]

        quarantine = Quarantine(found, refused, settings.max_quarantine)
        tables = [old.index.filter(pc.is_in(old.index["study"], pa.array(refused, pa.large_string())))] if old else []
        progress = ReadingProgress(sum(len(study.slices) for study in todo))
        for outcome in write_shards(found, todo, load, folder):
            tables.append(outcome.filter(pc.is_null(outcome["reason"])).select(INDEX.names).cast(INDEX))
            quarantine.add(outcome.filter(pc.is_valid(outcome["reason"])))
            progress.add(outcome.num_rows)

        settled = settings.split.file is not None or bool(found.listing.splits)
        if old and not todo and not settled and _same(old, found, described, quarantine):
            remove_unread(folder, old.manifest)
            return PrepareResult(old, 0, kept, guard(old.index, None, found.listing.patients_known))
        index = pa.concat_tables(tables)
        if not index.num_rows:
            raise UserError(f"{found.listing.root}: nothing can be used: {quarantine.reasons()}")
        left_out = quarantine.left_out(set(index["patient"].to_pylist())) if found.listing.patients_known else {}
        require_distinct(index, found.listing.patients_known)
        index, groups = grouped(index, folder, settings.near_duplicates)
        index = _split(index, found, settings, _assignments(old, described)).sort_by(ORDER).combine_chunks()
        proof = guard(index, None, found.listing.patients_known)
        for fold in range(pc.max(pc.add(index["fold"], 1)).as_py() or 0):
            guard(index, fold)
        manifest = publish(folder, index, found, settings, described, quarantine, left_out, groups)
        return PrepareResult(Prepared(folder, manifest, index), len(todo), kept, proof)


def require_apart(found: Survey, folder: Folder) -> None:
    """Make sure that nothing is written among the originals.

    Raises:
        UserError: the prepared data would go into the folder that the source lies in, or below it where that is walked
            through.
    """
    if not folder.is_local or folder.exists(MANIFEST):
        return
    root, out = found.listing.root.resolve(), Path(folder.path)
    if out == root:
        raise UserError(f"{folder.uri} is where the originals lie: name another --out, of the prepared data alone")
    if out.is_relative_to(root) and found.listing.format in WALKED:
        raise UserError(
            f"{folder.uri} lies among the originals in {root}: name an --out (or a --storage, where a job prepares by "
            "itself) outside of it"
        )


@contextmanager
def _alone(folder: Folder) -> Iterator[None]:
    """Waits for another process that prepares into the folder; in an object store, which knows no such lock, it is refused.

    Raises:
        UserError: the folder cannot be written to, or another process prepares into this one of an object store.
    """
    if not folder.is_local:
        with lease(folder, "prepare"):
            yield
        return
    try:
        Path(folder.path).mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder.path}/{LOCK}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("another process prepares into %s: waiting until it has ended", folder.uri)
            lock.acquire()
    except OSError as error:
        raise UserError(f"cannot write to {folder.uri}: {error}. Free space, or choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def expected_split(found: Survey, settings: CurationSettings) -> dict[str, dict[str, int]]:
    """Patients per class and split, as far as they can be known before near-duplicates are looked for.

    Raises:
        UserError: a class has too few patients, or the split file does not fit.
    """
    labels = {study.patient: class_name(found.labels, found.class_of(study)) for study in found.studies}
    labelled = {patient: name for patient, name in labels.items() if name != UNLABELLED or not found.labels.classes}
    given = _given(found, settings, labelled)
    patients, names = list(labelled), list(labelled.values())
    placed = assign(patients, names, patients, settings.split, settings.seed, given, settled=given is not None)
    split_of = {patient: placed[patient][0] if patient in placed else UNSPLIT for patient in labels}
    return counts(((name, split_of[patient]) for patient, name in labels.items()), found.labels.names)


def plain_settings(settings: CurationSettings, kind: type[CurationSettings]) -> dict[str, Any]:
    """The settings that `kind` declares, as plain values; a subclass's further fields are no part of them."""
    known = {each.name for each in fields(kind)}
    return {name: value for name, value in recorded(settings).items() if name in known}


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
    if (
        old.manifest.labels != found.labels.to_dict()
        or old.manifest.pictures_by != BLAKE3
        or any(earlier_settings.get(name) != described[name] for name in deciding)
    ):
        return {}
    there = pa.array(old.folder.child(SHARDS).names(), pa.large_string())
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
    known, given = earlier, _given(found, settings, divided)
    if given is not None:
        known = {patient: (split, known.get(patient, (None, None))[1]) for patient, (split, _) in given.items()}
    names, groups = ([part[at] for part in divided.values()] for at in (0, 1))
    placed = assign(list(divided), names, groups, settings.split, settings.seed, known, settled=given is not None)
    whole = not found.labels.classes
    places = [placed[patient] if whole or label is not None else (None, None) for patient, label, _ in rows]
    return _with(index, split=[split for split, _ in places], fold=[fold for _, fold in places])


def _given(found: Survey, settings: CurationSettings, patients: Collection[str]) -> dict[str, Assignment] | None:
    """The splits that a file, or the source itself, gives to the patients; None where neither does.

    Raises:
        UserError: as `read_split_file`, or the source gives some patients none.
    """
    if settings.split.file is not None:
        return read_split_file(settings.split.file, patients, found.known_as)
    if not found.listing.splits:
        return None
    stated = {found.known_as(patient): (split, None) for patient, split in found.listing.splits.items()}
    if lost := sorted(set(patients) - stated.keys()):
        raise UserError(
            f"{found.listing.root}: the source states no split for {len(lost)} patients, for example "
            f"{', '.join(lost[:10])}. Add it, or pass --source.splits false, which divides all anew"
        )
    return {patient: stated[patient] for patient in patients}


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
