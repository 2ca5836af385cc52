"""How a gallery is searched, as a person says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raymed.errors import UserError


@dataclass(frozen=True)
class IndexSettings:
    """How neighbours are found.

    Attributes:
        kind: flat compares with every picture; hnsw walks a graph; ivfpq looks into some cells of compressed vectors.
        metric: l2 or cosine; on vectors of length 1 both give the same order.
        links: hnsw: neighbours that each picture is linked to.
        effort: hnsw: candidates kept while searching; more find more of the true neighbours, and take longer.
        cells: ivfpq: how many cells (0 = four times the square root of the gallery).
        probes: ivfpq: cells that a query looks into.
        code: ivfpq: bytes that a vector is compressed to; the width must be a multiple of it.
    """

    kind: Literal["flat", "hnsw", "ivfpq"] = "flat"
    metric: Literal["l2", "cosine"] = "l2"
    links: int = 32
    effort: int = 128
    cells: int = 0
    probes: int = 32
    code: int = 64

    def __post_init__(self) -> None:
        for name, least in {"links": 2, "effort": 1, "cells": 0, "probes": 1, "code": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"index.{name} is {getattr(self, name)}: it must be at least {least}")


@dataclass(frozen=True)
class ProjectionSettings:
    """What is done to features before they are compared; afterwards they have length 1 again.

    Attributes:
        pca: keep so many principal components (0 = all dimensions as they are).
        whiten: subtract each dimension's mean and divide by its standard deviation.
    """

    pca: int = 0
    whiten: bool = False


@dataclass(frozen=True)
class RetrievalSettings:
    """How a gallery is searched.

    Attributes:
        index: the index.
        projection: what is done to features before.
        expand: search again with the mean of the query and so many of its nearest pictures (query expansion; 0 = once).
        exclude: what is never a neighbour: pictures of the query's own patient, the query's own picture, or nothing.
    """

    index: IndexSettings = field(default_factory=IndexSettings)
    projection: ProjectionSettings = field(default_factory=ProjectionSettings)
    expand: int = 0
    exclude: Literal["patient", "picture", "none"] = "patient"

    def __post_init__(self) -> None:
        if self.expand < 0:
            raise UserError(f"expand is {self.expand}: it must be at least 0")
