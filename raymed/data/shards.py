"""Studies -> Parquet shards, by Ray Data: each task decodes some studies, writes one shard, and hands index rows back."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from raymed.cluster.connection import connect
from raymed.data.duplicates import perceptual_hash
from raymed.data.image import ImageSettings
from raymed.data.record import BLAKE3, INDEX, RECORD, Image, Message, picture_digest
from raymed.data.sources import Refusal, Slice, Study, load_study
from raymed.data.survey import Survey
from raymed.errors import UserError
from raymed.storage.folder import Folder

SHARDS = "shards"
UNFINISHED = "unfinished"  # outcomes of shards that no manifest names yet: a killed run goes on from them
# Both of raw pixels. Reading one row at random costs the decompression of its row group, and the parsing of a footer that
# lists all row groups of its shard: small groups in small shards keep both near a millisecond.
SHARD_BYTES = 32 * 2**20
ROW_GROUP_BYTES = 2**18
SHARDS_PER_CPU = 4  # at least, so that a small set keeps every CPU busy to the end

# One row per slice: an index row, or, with a reason, a refused slice. Or one row with a failure: Ray Data keeps of a task's
# exception nothing but a long text.
OUTCOME = pa.schema([*INDEX, *(pa.field(name, pa.string()) for name in ("where", "reason", "failure"))])


@dataclass(frozen=True)
class Content:
    """What a record holds; `cost` is its length in tokens, or None where that is not what packs are filled by."""

    images: tuple[Image, ...]
    messages: tuple[Message, ...]
    cost: int | None = None


class Load(Protocol):
    """Reads a study in a task: the content of each slice, or why it cannot be used."""

    @property
    def settings(self) -> object:
        """What decides about the content besides the study; its `repr` tells shards apart."""
        ...

    @property
    def row_bytes(self) -> int:
        """Bytes of the pixels of a slice, about."""
        ...

    def __call__(self, study: Study) -> Iterable[tuple[Slice, Content | Refusal]]: ...


@dataclass(frozen=True)
class LoadSlices:
    """One picture a slice, decoded, windowed and fitted into a square."""

    root: Path
    settings: ImageSettings

    @property
    def row_bytes(self) -> int:
        return self.settings.size**2

    def __call__(self, study: Study) -> Iterable[tuple[Slice, Content | Refusal]]:
        for piece, result in load_study(self.root, study, self.settings):
            if isinstance(result, Refusal):
                yield piece, result
            else:
                yield piece, Content((Image("input", 0, result),), piece.messages)


@dataclass(frozen=True)
class _Part:
    """The studies of one shard, and their class indices."""

    load: Load
    studies: tuple[Study, ...]
    classes: tuple[int | None, ...]

    @property
    def name(self) -> str:
        """File name of the shard: the same content always has the same name."""
        content = repr([(study.study, study.fingerprint) for study in self.studies])
        content += repr((self.classes, self.load.settings, BLAKE3))
        return f"{hashlib.blake2b(content.encode(), digest_size=12).hexdigest()}.parquet"


def write_shards(found: Survey, studies: Sequence[Study], load: Load, folder: Folder) -> Iterator[pa.Table]:
    """Write the shards of `studies` under `folder`; yields one table in the schema `OUTCOME` per shard, in any order.

    Raises:
        UserError: the folder cannot be written to.
    """
    if not studies:
        return
    connect()
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    parts = _parts(found, studies, load, int(ray.cluster_resources().get("CPU", 1)))
    rows = [{"part": part} for part in parts]
    outcomes = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        partial(_write_part, folder=folder), batch_size=1, batch_format="numpy"
    )
    for outcome in outcomes.iter_batches(batch_size=None, batch_format="pyarrow"):
        failures = pc.drop_null(outcome["failure"])
        if len(failures):
            raise UserError(failures[0].as_py())
        yield outcome


def _parts(found: Survey, studies: Sequence[Study], load: Load, cpus: int) -> list[_Part]:
    """Studies that stand together share a shard of about `SHARD_BYTES`, or less where that leaves CPUs idle."""
    slices = sum(len(study.slices) for study in studies)
    wanted = max(1, min(SHARD_BYTES // load.row_bytes, slices // (SHARDS_PER_CPU * cpus)))
    groups: list[list[Study]] = [[]]
    filled = 0
    for study in studies:
        if filled >= wanted:
            groups.append([])
            filled = 0
        groups[-1].append(study)
        filled += len(study.slices)
    return [_Part(load, tuple(group), tuple(found.class_of(study) for study in group)) for group in groups]


def _write_part(batch: dict[str, np.ndarray], folder: Folder) -> pa.Table:
    part: _Part = batch["part"][0]
    try:
        return _written(part, folder)
    except UserError as error:
        return pa.Table.from_pylist([{"failure": str(error)}], schema=OUTCOME)


def _written(part: _Part, folder: Folder) -> pa.Table:
    if folder.exists(f"{UNFINISHED}/{part.name}") and folder.exists(f"{SHARDS}/{part.name}"):
        return pq.read_table(folder.open(f"{UNFINISHED}/{part.name}"), schema=OUTCOME)
    shard = _Shard(part.name)
    for study, label in zip(part.studies, part.classes, strict=True):
        for piece, result in part.load(study):
            shard.add(study, piece, label, result)
    content, outcome = shard.close()
    if content is not None:
        folder.write(f"{SHARDS}/{part.name}", content)
        folder.write(f"{UNFINISHED}/{part.name}", _parquet(outcome))
    return outcome


class _Shard:
    """One Parquet file in the making: row groups of about `ROW_GROUP_BYTES` of pixels."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._sink = pa.BufferOutputStream()
        # Pixels gain nothing from dictionaries and statistics; level 1 decompresses fastest.
        self._writer = pq.ParquetWriter(
            self._sink, RECORD, compression="zstd", compression_level=1, use_dictionary=False, write_statistics=False
        )
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._row_group = 0
        self._outcome: list[dict[str, Any]] = []

    def add(self, study: Study, piece: Slice, label: int | None, result: Content | Refusal) -> None:
        row: dict[str, Any] = {
            "id": piece.id,
            "patient": study.patient,
            "study": study.study,
            "position": piece.position,
            "label": label,
            "source": study.source,
        }
        if isinstance(result, Refusal):
            self._outcome.append(row | {"where": result.where, "reason": result.reason})
            return
        images = [_image(image) for image in result.images]
        total = sum(len(image["pixels"]) for image in images)
        row["cost"] = total if result.cost is None else result.cost
        known = [_recognisable(image.pixels) for image in result.images if image.role == "input"] or [_recognisable(None)]
        place = {"shard": self.name, "row_group": self._row_group, "row": len(self._pending)}
        more = {"further": known[1:] or None, "bytes": None if result.cost is None else total} | asdict(piece.geometry)
        self._outcome.append(row | place | known[0] | more | {"modality": piece.modality})
        messages = [{"role": turn.role, "text": turn.text} for turn in result.messages]
        self._pending.append(row | {"images": images, "messages": messages})
        self._pending_bytes += total or sum(len(turn.text) for turn in result.messages)
        if self._pending_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> tuple[pa.Buffer | None, pa.Table]:
        """The file's bytes (None if it holds no row), and the outcome of every slice."""
        self._flush()
        self._writer.close()
        content = self._sink.getvalue() if self._row_group else None
        return content, pa.Table.from_pylist(self._outcome, schema=OUTCOME)

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_pylist(self._pending, schema=RECORD))
            self._pending, self._pending_bytes = [], 0
            self._row_group += 1


def _image(image: Image) -> dict[str, Any]:
    height, width, channels = image.pixels.shape
    size = {"height": height, "width": width, "channels": channels}
    return {"role": image.role, "place": image.place, **size, "pixels": image.pixels.tobytes()}


def _recognisable(pixels: np.ndarray | None) -> dict[str, bytes | None]:
    """By what a picture is found again: digest and hash. Those of no picture say that there is none."""
    return {"digest": picture_digest(pixels), "hash": None if pixels is None else perceptual_hash(pixels)}


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
