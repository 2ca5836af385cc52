"""Principal components and whitening, fitted on the gallery alone and applied to queries as well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA

from raymed.errors import UserError
from raymed.retrieval.settings import ProjectionSettings

SMALLEST_DEVIATION = 1e-6  # a dimension that varies less tells nothing, and is not blown up


@dataclass(frozen=True, eq=False)
class Projection:
    """An affine map of features. Build it with `fit`.

    Attributes:
        mean: float32 [width].
        matrix: float32 [width, kept width].
    """

    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def fit(cls, gallery: np.ndarray, settings: ProjectionSettings) -> Projection | None:
        """The map for a gallery, float32 [rows, width]; None where features stay as they are.

        Raises:
            UserError: more components than the gallery has dimensions or rows.
        """
        rows, width = gallery.shape
        if not settings.pca and not settings.whiten:
            return None
        if not 0 <= settings.pca <= min(rows, width):
            raise UserError(
                f"projection.pca {settings.pca}: {rows} pictures of {width} dimensions have at most {min(rows, width)}"
            )
        matrix: np.ndarray = np.eye(width, dtype=np.float32)
        mean = gallery.mean(axis=0, dtype=np.float64).astype(np.float32)
        if settings.pca:
            matrix = PCA(settings.pca, svd_solver="covariance_eigh").fit(gallery).components_.T.astype(np.float32)
        if settings.whiten:
            deviation = ((gallery - mean) @ matrix).std(axis=0)
            matrix = matrix / np.where(deviation > SMALLEST_DEVIATION, deviation, np.float32(1))
        return cls(mean, matrix)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Projected unit vectors, float32 [rows, kept width]."""
        return unit((features - self.mean) @ self.matrix)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors divided by their length, float32; a vector of length 0 stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)
