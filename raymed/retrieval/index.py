"""A faiss index over a gallery: exact (flat), a graph (hnsw), or compressed cells (ivfpq); on a GPU where faiss sees one."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from raymed.errors import UserError
from raymed.retrieval.settings import IndexSettings

log = logging.getLogger("raymed")

TRAINING_PER_CELL = 39  # faiss warns below that
PQ_CENTRES = 256  # of a code of one byte
GPU_CODE = 48  # bytes of a code whose distance tables fit into a GPU's shared memory in float32; longer ones are halved
GONE = -1  # the row of a vector that the gallery has no more
GPU_MOST = 2048  # neighbours that faiss finds on a GPU


class Index:
    """A searchable set of vectors, which are known by their places in the order that they were added in.

    Attributes:
        rows: of each place, its row in the gallery, int64; `GONE` where the gallery has it no more.
    """

    def __init__(self, vectors: np.ndarray, settings: IndexSettings) -> None:
        """
        Args:
            vectors: float32 [rows, width]; for cosine of length 1.

        Raises:
            UserError: faiss is missing, or the gallery is too small or of the wrong width for the index.
        """
        faiss = _faiss()
        rows, width = vectors.shape
        self.settings, self.rows = settings, np.empty(0, np.int64)
        metric = faiss.METRIC_L2 if settings.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        index: Any
        if settings.kind == "flat":
            index = faiss.IndexFlat(width, metric)
        elif settings.kind == "hnsw":
            index = faiss.IndexHNSWFlat(width, settings.links, metric)
            index.hnsw.efConstruction = max(settings.effort, 2 * settings.links)
        else:
            cells = settings.cells or round(4 * rows**0.5)
            _require_trainable(rows, width, cells, settings)
            index = faiss.index_factory(width, f"IVF{cells},PQ{settings.code}", metric)
            index.do_polysemous_training = False  # ten seconds for a filter of codes by their bits, which nobody asks for
        index.train(vectors)
        self._index: Any = index
        self.add(vectors, np.arange(rows))

    @classmethod
    def restored(cls, content: bytes, rows: np.ndarray, settings: IndexSettings) -> Index:
        """The index that `content` gave.

        Args:
            rows: see `Index`, as they are now.

        Raises:
            UserError: faiss is missing, or cannot read it.
        """
        index = cls.__new__(cls)
        index.settings, index.rows = settings, rows
        try:
            index._index = _faiss().deserialize_index(np.frombuffer(content, np.uint8))
        except RuntimeError as error:
            raise UserError(f"faiss cannot read the index: {error}") from error
        index._changed()
        return index

    @property
    def content(self) -> bytes:
        """The index as bytes, without `rows`."""
        return bytes(_faiss().serialize_index(self._index))

    @property
    def path(self) -> str:
        """Where it computes, in words."""
        return f"faiss {self.settings.kind} on {self._gpus} GPUs" if self._gpus else f"faiss {self.settings.kind} on the CPU"

    @property
    def _gpus(self) -> int:
        return 0 if self.settings.kind == "hnsw" else int(_faiss().get_num_gpus())  # faiss has no graph on GPUs

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """Take in vectors, float32 [n, width], and their rows in the gallery, int64 [n]."""
        places = np.arange(len(self.rows), len(self.rows) + len(rows))
        self.rows = np.concatenate([self.rows, rows])
        if self.settings.kind == "ivfpq":  # where some were taken out, faiss would use their numbers again
            self._index.add_with_ids(vectors, places)
        else:
            self._index.add(vectors)
        self._changed()

    def _changed(self) -> None:
        """What a search needs besides, of the vectors that there are now."""
        faiss, settings = _faiss(), self.settings
        gone = np.flatnonzero(self.rows == GONE)
        self._kept: Any = None
        if settings.kind == "ivfpq":
            self._index.nprobe = settings.probes
            self._index.remove_ids(gone)
        elif len(gone):  # a graph leads through them on, and leaves them out of what it finds
            self._kept = faiss.IDSelectorBatch(np.flatnonzero(self.rows != GONE))
        self._fast: Any = self._index
        if self._gpus:
            options = faiss.GpuMultipleClonerOptions()
            options.useFloat16 = settings.kind == "ivfpq" and settings.code > GPU_CODE
            self._fast = faiss.index_cpu_to_all_gpus(self._index, options)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest rows, int64 [queries, k], -1 where there are no more; and their distances, float32, ascending.

        Args:
            queries: float32 [queries, width]; for cosine of length 1.

        Returns:
            The distance is Euclidean, or 1 - cosine.
        """
        if self.settings.kind == "hnsw":
            effort = max(self.settings.effort, k)
            how = _faiss().SearchParametersHNSW(sel=self._kept, efSearch=effort)
            scores, places = self._index.search(queries, k, params=how)
        else:
            scores, places = (self._fast if k <= GPU_MOST else self._index).search(queries, k)
        rows = np.where(places < 0, GONE, self.rows[places])
        if self.settings.metric == "l2":
            return rows, np.sqrt(np.maximum(scores, 0, out=scores), out=scores)
        return rows, np.subtract(1, scores, out=scores)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "searching needs faiss: pip install 'raymed[cpu]', or as the README says on a GPU machine"
        ) from error
    return faiss


def _require_trainable(rows: int, width: int, cells: int, settings: IndexSettings) -> None:
    if width % settings.code:
        raise UserError(f"index.code {settings.code}: the features' width {width} must be a multiple of it")
    if rows < max(PQ_CENTRES, cells):
        raise UserError(
            f"an ivfpq index of {cells} cells needs at least {max(PQ_CENTRES, cells)} pictures, not {rows}: take flat"
        )
    if rows < TRAINING_PER_CELL * cells:
        log.warning("%d pictures are few for %d cells: take flat, or fewer --retrieval.index.cells", rows, cells)
