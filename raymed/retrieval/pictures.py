"""The pictures behind features, read again for people to look at."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from raymed.data.image import ImageSettings
from raymed.data.prepared import Prepared
from raymed.data.sources import Refusal, Slice, Study, load_study
from raymed.errors import UserError
from raymed.retrieval.features import Features


class Pictures:
    """Reads pictures of some features, from where those were computed."""

    def __init__(self, features: Features) -> None:
        self._features = features
        manifest = features.manifest
        self._prepared_uri = manifest.data["root"] if manifest and manifest.data["kind"] == "prepared" else None
        self._root = Path(manifest.data["root"]) if manifest else Path()
        self._image = ImageSettings.from_dict(manifest.image) if manifest else ImageSettings()

    def read(self, row: int) -> np.ndarray | None:
        """A row's picture, uint8 [size, size, 1 or 3]; None where it is not to be had any more."""
        try:
            return self._read_prepared(row) if self._prepared_uri else self._read_source(row)
        except UserError:  # moved or changed since: the sheet says so in the picture's place
            return None

    @cached_property
    def _prepared(self) -> tuple[Prepared, dict[str, int]]:
        prepared = Prepared.open(self._prepared_uri or "")
        return prepared, {name: row for row, name in enumerate(prepared.index["id"].to_pylist())}

    def _read_prepared(self, row: int) -> np.ndarray | None:
        prepared, rows = self._prepared
        place = rows.get(self._features.ids[row])
        return None if place is None else prepared.read([place])[0].images[0].pixels

    def _read_source(self, row: int) -> np.ndarray | None:
        features = self._features
        frame = int(features.frames[row])
        piece = Slice(features.ids[row], features.paths[row], frame if frame >= 0 else None, 0, features.paths[row])
        study = Study(features.patients[row], "", None, "", (piece,), "")
        ((_, picture),) = load_study(self._root, study, self._image)
        return None if isinstance(picture, Refusal) else picture
