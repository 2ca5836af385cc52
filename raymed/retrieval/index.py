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
GPU_MOST = 2048  # neighbours that faiss finds on a GPU


class Index:
    """A searchable set of vectors.

    Attributes:
        path: where it computes, in words.
    """

    def __init__(self, vectors: np.ndarray, settings: IndexSettings) -> None:
        """
        Args:
            vectors: float32 [rows, width]; for cosine of length 1.

        Raises:
            UserError: faiss is missing, or the gallery is too small or of the wrong width for the index.
        """
        try:
            import faiss
        except ImportError as error:
            raise UserError(
                "searching needs faiss: pip install 'raymed[cpu]', or as the README says on a GPU machine"
            ) from error
        rows, width = vectors.shape
        self.settings = settings
        metric = faiss.METRIC_L2 if settings.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        gpus = faiss.get_num_gpus()
        index: Any
        if settings.kind == "flat":
            index = faiss.IndexFlat(width, metric)
        elif settings.kind == "hnsw":
            index = faiss.IndexHNSWFlat(width, settings.links, metric)
            index.hnsw.efConstruction = max(settings.effort, 2 * settings.links)
            gpus = 0  # faiss has no graph on GPUs
        else:
            cells = settings.cells or round(4 * rows**0.5)
            _require_trainable(rows, width, cells, settings)
            index = faiss.index_factory(width, f"IVF{cells},PQ{settings.code}", metric)
            index.nprobe = settings.probes
        self.path = f"faiss {settings.kind} on {gpus} GPUs" if gpus else f"faiss {settings.kind} on the CPU"
        index.train(vectors)
        index.add(vectors)
        self._index: Any = index
        self._fast: Any = index
        if gpus:
            options = faiss.GpuMultipleClonerOptions()
            options.useFloat16 = settings.kind == "ivfpq" and settings.code > GPU_CODE
            self._fast = faiss.index_cpu_to_all_gpus(index, options)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest rows, int64 [queries, k], -1 where there are no more; and their distances, float32, ascending.

        Args:
            queries: float32 [queries, width]; for cosine of length 1.

        Returns:
            The distance is Euclidean, or 1 - cosine.
        """
        if self.settings.kind == "hnsw":
            self._index.hnsw.efSearch = max(self.settings.effort, k)
        scores, rows = (self._fast if k <= GPU_MOST else self._index).search(queries, k)
        if self.settings.metric == "l2":
            return rows, np.sqrt(np.maximum(scores, 0, out=scores), out=scores)
        return rows, np.subtract(1, scores, out=scores)


def _require_trainable(rows: int, width: int, cells: int, settings: IndexSettings) -> None:
    if width % settings.code:
        raise UserError(f"index.code {settings.code}: the features' width {width} must be a multiple of it")
    if rows < max(PQ_CENTRES, cells):
        raise UserError(
            f"an ivfpq index of {cells} cells needs at least {max(PQ_CENTRES, cells)} pictures, not {rows}: take flat"
        )
    if rows < TRAINING_PER_CELL * cells:
        log.warning("%d pictures are few for %d cells: take flat, or fewer --index.cells", rows, cells)
