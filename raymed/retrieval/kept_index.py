"""An index kept beside the features that it is over, opened as it was left and brought up to date by what changed since.

FEATURES/index/
  KEY.faiss   the index, as faiss writes it
  KEY.json    its digest, and the shards of features that it holds, in the order in which they were added
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass

import numpy as np

from raymed.errors import UserError
from raymed.retrieval.features import Features
from raymed.retrieval.index import GONE, Index
from raymed.retrieval.settings import IndexSettings
from raymed.storage.folder import Folder

log = logging.getLogger("raymed")

INDEX = "index"
MOST_GONE = 0.2  # share of an index's pictures that the gallery has no more; where more are gone it is built anew
LEAST_FIRST = 0.5  # share that it was built with; cells that were laid for fewer fit the others badly


@dataclass(frozen=True)
class Held:
    """What is noted of an index.

    Attributes:
        shards: name of each shard of features that it holds, and its pictures, in the order in which they were added.
        first: pictures that it was built with.
        digest: of its file.
    """

    shards: dict[str, int]
    first: int
    digest: str = ""

    @classmethod
    def read(cls, folder: Folder, key: str) -> Held | None:
        """As it was left; None where there is none that can be read."""
        try:
            return cls(**json.loads(folder.read(f"{key}.json")))
        except (OSError, ValueError, TypeError):
            return None


def kept_index(features: Features, layer: int, vectors: np.ndarray, settings: IndexSettings) -> Index:
    """The index over a layer's vectors, of which only what changed is computed.

    A flat one is its vectors, which features hold already: nothing is kept of it, nor of an npz's.

    Args:
        vectors: the layer's, as they are searched, in the order of the features' rows.

    Raises:
        UserError: as `Index`.
    """
    if settings.kind == "flat" or features.manifest is None or features.name.endswith(".npz"):
        return Index(vectors, settings)
    folder, shards = Folder.at(features.name).child(INDEX), features.manifest.shards
    described = repr((features.manifest.key, layer, asdict(settings), vectors.shape[1]))
    key = hashlib.blake2b(described.encode(), digest_size=6).hexdigest()
    held = Held.read(folder, key)
    index = _opened(folder, key, held, shards, settings) if held else None
    if held is None or index is None:
        held, index, new = Held(dict(shards), len(vectors)), Index(vectors, settings), list(shards)
        log.info("the gallery's index was built over %d pictures", len(vectors))
    else:
        new = [name for name in shards if name not in held.shards]
        gone, before = int((index.rows == GONE).sum()), len(index.rows)
        if rows := [_rows(shards)[name] for name in new]:
            index.add(vectors[np.concatenate(rows)], np.concatenate(rows))
        log.info("the gallery's index was there: %d pictures, %d new, %d gone", before, len(index.rows) - before, gone)
        held = Held(held.shards | {name: shards[name] for name in new}, held.first)
        if not new:
            return index
    content = index.content
    try:
        folder.write(f"{key}.faiss", content)
        folder.write(f"{key}.json", json.dumps(asdict(held) | {"digest": _digest(content)}).encode())
    except (OSError, UserError) as error:
        log.warning("the index cannot be kept in %s and will be built again: %s", folder.uri, error)
    return index


def _opened(folder: Folder, key: str, held: Held, shards: dict[str, int], settings: IndexSettings) -> Index | None:
    """The index as it was left, with the rows that its pictures have now; None where it is better built anew."""
    now = _rows(shards)
    parts = [
        now[name] if shards.get(name) == pictures else np.full(pictures, GONE) for name, pictures in held.shards.items()
    ]
    rows = np.concatenate([np.empty(0, np.int64), *parts])
    if (rows == GONE).mean() > MOST_GONE or held.first < LEAST_FIRST * sum(shards.values()):
        return None
    try:
        content = folder.read(f"{key}.faiss")
        if _digest(content) != held.digest:
            raise UserError("it is damaged, or was being written")
        return Index.restored(content, rows, settings)
    except (OSError, UserError) as error:
        log.warning("the index %s/%s.faiss is built again: %s", folder.uri, key, error)
        return None


def _rows(shards: dict[str, int]) -> dict[str, np.ndarray]:
    """The rows of the features that each shard's pictures are."""
    ends = np.cumsum([0, *shards.values()])
    return {name: np.arange(start, start + count) for (name, count), start in zip(shards.items(), ends, strict=False)}


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
