"""A gallery: pictures whose cases are known, and the search for those most like a query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raymed.errors import UserError
from raymed.retrieval.features import Features
from raymed.retrieval.index import Index
from raymed.retrieval.kept_index import kept_index
from raymed.retrieval.projection import Projection, unit
from raymed.retrieval.settings import RetrievalSettings

NONE = -1  # the row of a neighbour that there is not
FEW = 32  # pictures of one patient in the gallery


@dataclass(frozen=True, eq=False)
class Neighbours:
    """What was found for each query, the nearest first.

    Attributes:
        rows: of the gallery, int64 [queries, k]; `NONE` where there are no more.
        distances: Euclidean, or 1 - cosine, float32 [queries, k]; infinite where there is none.
    """

    rows: np.ndarray
    distances: np.ndarray


class Gallery:
    """Features of a layer, projected and indexed."""

    def __init__(self, features: Features, layer: int, settings: RetrievalSettings, keep: bool = False) -> None:
        """
        Args:
            keep: whether its index is kept beside the features, for the next time.

        Raises:
            UserError: the index or the projection do not fit the features.
        """
        self.features, self.layer, self.settings = features, layer, settings
        vectors = features.vectors[layer]
        self._project = Projection.fit(vectors, settings.projection)
        alike = bool(np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3))
        self._unit = alike or settings.index.metric == "cosine" or self._project is not None
        self.vectors = self._prepared(vectors)
        lasting = keep and self._project is None  # another gallery would project all its vectors in another way
        self.index = (
            kept_index(features, layer, self.vectors, settings.index) if lasting else Index(self.vectors, settings.index)
        )
        self._codes = {name: code for code, name in enumerate(dict.fromkeys(self.owners(features).tolist()))}
        self._owner = np.array([self._codes[name] for name in self.owners(features)], dtype=np.int64)
        self._owned = np.bincount(self._owner, minlength=len(self._codes))

    def search(self, queries: Features, k: int) -> Neighbours:
        """The k nearest pictures of each query that are not excluded.

        Raises:
            UserError: the gallery holds fewer pictures.
        """
        if not 1 <= k <= len(self.features):
            raise UserError(
                f"{k} neighbours were asked for, and the gallery {self.features.name} holds {len(self.features)} pictures: "
                "ask for fewer"
            )
        self.features.require_like(queries)
        vectors = self._prepared(queries.vectors[self.layer])
        owners = np.array([self._codes.get(name, NONE) for name in self.owners(queries)], dtype=np.int64)
        if self.settings.expand:
            nearest = self._nearest(vectors, owners, min(self.settings.expand, len(self.features))).rows
            found = (nearest != NONE)[:, :, None]
            total = vectors + (self.vectors[nearest] * found).sum(axis=1)
            vectors = total / (1 + found.sum(axis=1))
            vectors = unit(vectors) if self._unit else vectors.astype(np.float32)
        return self._nearest(vectors, owners, k)

    def shared_patients(self, queries: Features) -> list[str]:
        """Patients that both the queries and the gallery have pictures of."""
        return sorted(set(queries.patients) & set(self.features.patients) - {None})

    def _prepared(self, vectors: np.ndarray) -> np.ndarray:
        if self._project is not None:
            return self._project(vectors)
        return unit(vectors) if self._unit else np.ascontiguousarray(vectors, dtype=np.float32)

    def owners(self, features: Features) -> np.ndarray:
        """Whose a picture is, as far as exclusion goes."""
        return features.pictures if self.settings.exclude == "picture" else features.owners

    def _nearest(self, vectors: np.ndarray, owners: np.ndarray, k: int) -> Neighbours:
        """Queries whose owner is in the gallery search as many pictures more as that owner has there: none is lost."""
        rows = np.full((len(vectors), k), NONE, dtype=np.int64)
        distances = np.full((len(vectors), k), np.inf, dtype=np.float32)
        excluding = self.settings.exclude != "none"
        more = np.where((owners == NONE) | (not excluding), 0, self._owned[owners])
        # those with about as many search together, and all with few: a few more cost less than a search of their own
        groups = np.ceil(np.log2(np.maximum(more, FEW) / FEW)).astype(np.int64)
        for group in np.unique(groups):
            asked = np.flatnonzero(groups == group)
            wanted = min(k + int(more[asked].max()), len(self.features))
            everything = len(asked) == len(vectors)
            found, far = self.index.search(vectors if everything else vectors[asked], wanted)
            if more[asked].any():
                own = (self._owner[found] == owners[asked, None]) | (found == NONE)
                order = np.argsort(own, axis=1, kind="stable")[:, :k]
                own = np.take_along_axis(own, order, axis=1)
                found = np.where(own, NONE, np.take_along_axis(found, order, axis=1))
                far = np.where(own, np.inf, np.take_along_axis(far, order, axis=1))
            rows[asked, : found.shape[1]], distances[asked, : far.shape[1]] = found, far
        distances[rows == NONE] = np.inf
        return Neighbours(rows, distances)
