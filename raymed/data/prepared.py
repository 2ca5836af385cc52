"""Prepared data, opened again: the manifest, the index, and random access to the records."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymed.data.image import ImageSettings
from raymed.data.labels import LabelTable
from raymed.data.places import Places
from raymed.data.record import DIGESTS, INDEX, SHA256, Record, records_from
from raymed.data.split import SPLITS, split_of_rows
from raymed.errors import CommonError, UserError
from raymed.job.submitted import where_it_looks
from raymed.storage.folder import Folder

FORMAT = 1
MANIFEST = "manifest.json"
_INDEXES: WeakValueDictionary[str, pa.Table] = WeakValueDictionary()
"""By its digest, an index that this process has open: a large one is held once."""


@dataclass(frozen=True)
class Manifest:
    """What the prepared data are. `digest` names their content, whatever the machine and the layout of the shards.

    Attributes:
        format: version of this layout.
        digest: of the index's content (pixel digests, labels, splits ...), the label table and the image settings.
        index: file name of the index.
        index_digest: BLAKE2b of the index file.
        studies: file name of the list of studies that were read, with their fingerprints and refusals.
        quarantine_digest: BLAKE2b of quarantine.jsonl.
        source: where the data came from.
        labels: the label table, as `LabelTable.to_dict` gives it.
        settings: what `prepare` was told.
        patients: number of patients per class and split.
        slices: number of records per class and split.
        sources: number of records per source and split.
        near_duplicates: groups of patients that share near-duplicate pictures.
        same_pixels: records whose pixels another record of the same patient repeats.
        quarantined: refused slices, listed in quarantine.jsonl.
        passed_over: files with which nothing is wrong and which are not asked for, such as localizers; listed there, too.
        ignored: slices left out because their label is on the ignore list, per label.
        shards: records per shard file.
        versions: of the packages that made the pixels.
        left_out: patients of whom no slice can be used, each with the commonest reason.
        notes: what a person should know of the source.
        patients_known: False where every picture counts as a patient of its own, for want of something better: a patient
            with several may then be in two splits.
        modalities: records per modality: CT, which is windowed Hounsfield units, CR, DX, or picture, whose values are as its
            file shows them.
        pictures_by: of `DIGESTS`, the function of the index's digests of pictures.
    """

    digest: str
    index: str
    index_digest: str
    studies: str
    quarantine_digest: str
    source: str
    labels: dict[str, Any]
    settings: dict[str, Any]
    patients: dict[str, dict[str, int]]
    slices: dict[str, dict[str, int]]
    sources: dict[str, dict[str, int]]
    near_duplicates: list[list[str]]
    same_pixels: int
    quarantined: int
    ignored: dict[str, int]
    shards: dict[str, int]
    versions: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)
    passed_over: int = 0
    notes: list[str] = field(default_factory=list)
    modalities: dict[str, int] = field(default_factory=dict)
    patients_known: bool = True
    pictures_by: str = SHA256
    format: int = FORMAT

    @property
    def unit(self) -> str:
        """What is divided, counted and judged: patient, or image where nobody said whose the pictures are."""
        return "patient" if self.patients_known else "image"

    @property
    def earlier_name(self) -> str:
        """Of its file, once another one has taken its place."""
        return f"{earlier_names(self.digest)}{self.index_digest[:12]}.json"

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Manifest:
        """Raises: UserError: not a manifest, or one of another format version."""
        try:
            values = json.loads(content)
            version = values["format"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{where} is not a manifest of prepared data. Prepare the data again") from error
        if version != FORMAT:
            raise UserError(f"{where} has format {version}, this raymed reads format {FORMAT}. Prepare the data again")
        known = fields(cls)  # those with a default may be missing: an earlier raymed did not write them
        required = {each.name for each in known if each.default is MISSING and each.default_factory is MISSING}
        wrong = (required - values.keys()) | (values.keys() - {each.name for each in known})
        if wrong:
            raise UserError(f"{where}: keys that are missing or unknown: {', '.join(sorted(wrong))}. Prepare the data again")
        manifest = cls(**values)
        if manifest.pictures_by not in DIGESTS:
            raise UserError(f"{where}: pictures are known by {manifest.pictures_by!r}, which this raymed does not compute")
        return manifest


class MissingError(UserError):
    """A file of prepared data is not there. Where it was, its storage may be away."""


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared data. A row is named by its number in `index`, sorted by (patient, study, position)."""

    folder: Folder
    manifest: Manifest
    index: pa.Table

    @classmethod
    def open(cls, uri: str, digest: str = "") -> Prepared:
        """Open a folder that `prepare` wrote.

        Args:
            digest: what the data's digest must be; empty where any will do. Others that took their place meanwhile are
                passed over while these are kept (`raymed.data.readers`).

        Raises:
            MissingError: the folder is not prepared data, or lacks its index.
            UserError: it is of another format, or its index is damaged.
            CommonError: it holds other data.
        """
        folder = Folder.at(uri)
        if not folder.exists(MANIFEST):
            hint = where_it_looks() if folder.is_local else ""
            raise MissingError(
                f"{folder.uri} is not prepared data: no {MANIFEST} in it. Give the folder that your system's prepare job "
                f"has written: jobs/prepare_*.py --source PICTURES --out FOLDER{hint}"
            )
        manifest = Manifest.from_json(folder.read(MANIFEST), f"{folder.uri}/{MANIFEST}")
        if digest not in ("", manifest.digest):
            manifest = _earlier(folder, digest) or manifest
        if digest not in ("", manifest.digest):
            raise CommonError(
                f"{folder.uri} was prepared again: it holds {manifest.digest}, and this run began with {digest}. A row "
                "would be another patient's. To go on, prepare those data once more; for the new ones, give another --name"
            )
        where = f"{folder.uri}/{manifest.index}"
        if not folder.exists(manifest.index):
            raise MissingError(f"{where} is missing. Prepare the data again")
        content = folder.read(manifest.index)
        if digest_of(content) != manifest.index_digest:
            raise UserError(
                f"{where} is not the index that {MANIFEST} describes: damaged or exchanged. Prepare the data again"
            )
        index = _INDEXES.get(manifest.index_digest)
        if index is None:  # in one chunk: `take` copies whole columns where there are several
            index = pq.read_table(pa.BufferReader(content), schema=INDEX).combine_chunks()
            if strange := [name for name in index["shard"].unique().to_pylist() if PurePosixPath(name).name != name]:
                raise UserError(f"{where} names shards outside of the folder, e.g. {strange[0]!r}: prepare the data again")
            _INDEXES[manifest.index_digest] = index
        return cls(folder, manifest, index)

    @classmethod
    def reach(cls, uri: str, digest: str) -> Prepared:
        """As `open`, of data that were there: those that are missing are in a storage that is away.

        Raises:
            OSError: they are missing.
        """
        try:
            return cls.open(uri, digest)
        except MissingError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri) from error

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @cached_property
    def labels(self) -> LabelTable:
        """The classes; none where the data are a corpus for pretraining."""
        return LabelTable.from_dict(self.manifest.labels) if self.manifest.labels["classes"] else LabelTable(())

    @cached_property
    def image(self) -> ImageSettings:
        """How pictures were windowed and resized; a picture to predict on must be treated alike."""
        return ImageSettings.from_dict(self.manifest.settings["image"])

    @property
    def size(self) -> int:
        """Height and width of every picture, in pixels."""
        return self.image.size

    @property
    def folds(self) -> int:
        """How many folds for cross-validation there are; 0 for none."""
        return int(pc.max(pc.add(self.index["fold"], 1)).as_py() or 0)

    @cached_property
    def owners(self) -> tuple[np.ndarray, np.ndarray]:
        """Patient and study of every row, as whole numbers that are equal where they are the same, in the index's order."""
        patient, study = self.index["patient"], self.index["study"]
        other = pc.not_equal(patient[1:], patient[:-1])
        changes = other, pc.or_(other, pc.not_equal(study[1:], study[:-1]))
        patients, studies = (np.cumsum(change.to_numpy(), dtype=np.int32) for change in changes)
        first = np.zeros(min(1, self.index.num_rows), dtype=np.int32)
        return np.concatenate([first, patients]), np.concatenate([first, studies])

    def rows(self, split: str, fold: int | None = None) -> np.ndarray:
        """Numbers of the rows in `split` (train, val, test or all), int64, ascending.

        Args:
            split: all names every row, also those without a label, which are in no split.
            fold: None for the stored splits; k to take fold k as val and the other train and val rows as train.

        Raises:
            UserError: there is no such split or fold.
        """
        if split == "all":
            return np.arange(self.index.num_rows)
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}: choose train, val, test or all")
        return np.flatnonzero(split_of_rows(self.index, fold) == SPLITS.index(split))

    def rows_of(self, patients: np.ndarray) -> np.ndarray:
        """Numbers of the rows of these patients, int64, ascending; ids that are not here have none."""
        column = self.index["patient"]
        return np.flatnonzero(pc.is_in(column, pa.array(np.unique(patients.astype(str)), column.type)).to_numpy())

    @property
    def judged_split(self) -> str:
        """Whose patients say what a model is worth: test, or val where there are no test patients."""
        return "test" if len(self.rows("test")) else "val"

    def columns(self, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Index columns of `rows`: numbers as int64 (-1 where there is none), everything else as objects."""
        taken = self.index.select(list(names)).take(pa.array(rows))
        return {name: _plain(taken[name]) for name in names}

    def read(self, rows: np.ndarray | Sequence[int]) -> list[Record]:
        """The records of `rows`, in that order. Each row group that holds one is read once.

        Raises:
            UserError: a shard is missing or damaged.
        """
        return records_from(self.places(rows).read())

    def pixel_bytes(self, rows: np.ndarray) -> int:
        """How much memory the decoded pictures of `rows` take."""
        taken = self.index.select(["bytes", "cost"]).take(pa.array(rows))
        return int(pc.sum(pc.coalesce(taken["bytes"], taken["cost"].cast(pa.int64()))).as_py() or 0)

    def places(self, rows: np.ndarray | Sequence[int]) -> Places:
        """Where the records of `rows` lie: small enough to send to the task that reads them."""
        return Places.of(self.folder, self.index, rows, self.manifest.pictures_by)


def digest_of(content: bytes) -> str:
    """BLAKE2b of bytes, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _earlier(folder: Folder, digest: str) -> Manifest | None:
    """The manifest of data with that digest, whose place others have taken; None where they are not kept."""
    for name in folder.names():
        if name.startswith(earlier_names(digest)):
            return Manifest.from_json(folder.read(name), f"{folder.uri}/{name}")
    return None


def earlier_names(digest: str) -> str:
    """How the manifests of data with that digest are called, once others have taken their place: the index follows, as the
    same data may have lain in other shards. All of them, where the digest is empty."""
    return f"manifest-{digest[:12]}-" if digest else "manifest-"


def _plain(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_integer(column.type):
        return pc.fill_null(column.cast(pa.int64()), -1).to_numpy()
    plain = np.empty(len(column), dtype=object)
    plain[:] = column.to_pylist()
    return plain
