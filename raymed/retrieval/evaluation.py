"""An evaluation of retrieval: every layer searched and judged, and what is kept of that."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from raymed.errors import UserError
from raymed.retrieval.features import Features
from raymed.retrieval.gallery import Gallery, Neighbours, RetrievalSettings
from raymed.retrieval.metrics import Retrieval, judge
from raymed.retrieval.sheet import render, sheet_lines
from raymed.retrieval.summary import neighbour_table, remarks
from raymed.tracking.tracker import Tracker

log = logging.getLogger("raymed")


@dataclass(frozen=True)
class Judging:
    """How a search is judged.

    Attributes:
        ks: which Top-k and mAP@k, ascending.
        bootstrap: resamples of patients behind each interval.
        seed: of the resamples.
    """

    ks: tuple[int, ...] = (1, 3, 5)
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ks or self.ks[0] < 1:
            raise UserError(f"--top-k {' '.join(map(str, self.ks))}: give numbers from 1 up, such as --top-k 1 3 5")
        if self.bootstrap < 1:
            raise UserError(f"--bootstrap is {self.bootstrap}: intervals need at least 1 resample")

    def rank(self, judged: Retrieval) -> tuple[float, float]:
        """What layers are compared by: Top-k of the smallest k, then mAP@k of the largest."""
        return judged.top[self.ks[0]].value, judged.mean_average_precision[self.ks[-1]].value


@dataclass(frozen=True, eq=False)
class RetrievalRun:
    """The judgements of a gallery's layers; build it with `evaluate`.

    Attributes:
        queries: what was asked about.
        gallery: what was searched, with the features of the best layer.
        neighbours: what was found in it.
        best: the assessment of that layer.
        judged: of all layers.
        judging: how.
    """

    queries: Features
    gallery: Gallery
    neighbours: Neighbours
    best: Retrieval
    judged: tuple[Retrieval, ...]
    judging: Judging

    @property
    def notes(self) -> list[str]:
        """What a reader must not miss."""
        return remarks(self.gallery, self.queries, self.neighbours, self.best, len(self.judged))

    @property
    def name(self) -> str:
        """From what was compared and how: the same evaluation again has the same name."""
        sides = (self.queries, self.gallery.features)
        made = [(each.digest, each.manifest and (each.manifest.model, each.manifest.settings)) for each in sides]
        layers = [each.layer for each in self.judged]
        described = repr((self.gallery.settings, self.judging, layers, made))
        return f"retrieval-{hashlib.blake2b(described.encode(), digest_size=3).hexdigest()}"

    def sheet(self, shown: int) -> str:
        """Queries, at most `shown`, and their neighbours, as one HTML document."""
        lines = sheet_lines(self.queries, self.gallery.features, self.neighbours, shown)
        return render(self.name, self.judged, self.best, lines, self.notes)

    def table(self) -> pd.DataFrame:
        """One line per query and neighbour."""
        return neighbour_table(self.queries, self.gallery.features, self.neighbours)

    def track(self, tracker: Tracker, sheet: str) -> None:
        """Record figures and the sheet in MLflow; the same evaluation again finds its run."""
        roles = {"gallery": self.gallery.features, "queries": self.queries}
        params = {"retrieval": asdict(self.gallery.settings), "layer": self.best.layer, "top_k": list(self.judging.ks)}
        for role, each in roles.items():
            if each.manifest is not None:
                params |= {f"{role}_model": each.manifest.model, "features": each.manifest.settings}
        tags = {"raymed.index": self.gallery.index.path} | {f"raymed.{role}": each.name for role, each in roles.items()}
        run_id = tracker.run(self.name, self.name, tags=tags, params=params)
        for role, each in roles.items():
            tracker.input(run_id, role, each.digest, each.name, role)
        layers = {f"layer_{each.layer}_{figure}": value for each in self.judged for figure, value in each.flat().items()}
        tracker.metrics(run_id, self.best.flat() | (layers if len(self.judged) > 1 else {}))
        tracker.text(run_id, sheet, "sheet.html")
        tracker.finish(run_id, "FINISHED")


def evaluate(
    features: Features, queries: Features, settings: RetrievalSettings, layers: Sequence[int], judging: Judging
) -> RetrievalRun:
    """Search each layer of a gallery's features, and judge what is found.

    Raises:
        UserError: index, projection or number of neighbours do not fit; there are no labels, or one class.
    """
    best: tuple[Gallery, Neighbours, Retrieval] | None = None
    judged = []
    for layer in layers:
        gallery = Gallery(features, layer, settings)
        log.info("构建 FAISS 索引... layer %d: %s", layer, gallery.index.path)
        log.info("执行检索...")
        neighbours = gallery.search(queries, judging.ks[-1])
        found = judge(gallery, queries, neighbours, judging.ks, judging.bootstrap, judging.seed)
        judged.append(found)
        if best is None or judging.rank(found) > judging.rank(best[2]):
            best = gallery, neighbours, found
    assert best is not None
    return RetrievalRun(queries, *best, tuple(judged), judging)
