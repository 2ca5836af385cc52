"""Image backbones compared by what they are for: labelled pictures asked about, each among the others, query by query."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raymed.errors import UserError
from raymed.evaluation.estimate import Estimate
from raymed.retrieval.evaluation import Judging, RetrievalRun, evaluate
from raymed.retrieval.extract import Work, extract
from raymed.retrieval.features import Features
from raymed.retrieval.input import Opened
from raymed.retrieval.metrics import PatientResamples, average_precision, findable, right
from raymed.retrieval.settings import RetrievalSettings


@dataclass(frozen=True, eq=False)
class Backbone:
    """A backbone, judged.

    Attributes:
        name: what a person calls it.
        run: its own pictures searched.
        better: by how much each figure is above the first backbone's, over the same queries; empty of the first itself.
    """

    name: str
    run: RetrievalRun
    better: dict[str, Estimate]

    @classmethod
    def of(cls, name: str, run: RetrievalRun, first: Backbone | None, paired: PatientResamples) -> Backbone:
        """
        Raises:
            UserError: it was asked about other pictures than the first.
        """
        if first is None:
            return cls(name, run, {})
        if run.queries.ids.tolist() != first.run.queries.ids.tolist():
            raise UserError(f"{name} could use other pictures than {first.name}: they cannot be compared query by query")
        mine, theirs = by_query(run), by_query(first.run)
        return cls(name, run, {figure: paired.mean(mine[figure] - theirs[figure]) for figure in mine})

    def lines(self) -> list[str]:
        """For a person."""
        best = self.run.best
        figures = [f"Top-{k} {each}" for k, each in best.top.items()]
        figures += [f"mAP@{k} {each}" for k, each in list(best.mean_average_precision.items())[-1:]]
        more = [f"{name} {each} more" for name, each in self.better.items()]
        return [f"{self.name}: {', '.join(figures)}", *([f"  than the first: {', '.join(more)}"] if more else [])]

    def describe(self) -> dict[str, Any]:
        """The same as plain values."""
        better = {name: asdict(each) for name, each in self.better.items()}
        return {"name": self.name, "figures": self.run.best.flat(), "better": better}


def by_query(run: RetrievalRun) -> dict[str, np.ndarray]:
    """Figures of each query that has a label, float64 [queries]: whether its nearest picture shows its class, and AP@k."""
    labelled = run.queries.labels != None  # noqa: E711
    hits, k = right(run.neighbours, run.queries, run.gallery.features), run.judging.ks[-1]
    relevant, _ = findable(run.gallery, run.queries)
    figures = {"Top-1": hits[:, 0].astype(np.float64), f"mAP@{k}": average_precision(hits[:, :k], relevant)}
    return {name: values[labelled] for name, values in figures.items()}


def judge_backbone(work: Work, opened: Opened, judging: Judging, micro_batch: int) -> RetrievalRun:
    """Every picture asked about all others but those of its own patient.

    Raises:
        UserError: no picture can be used, or none has a label.
    """
    with tempfile.TemporaryDirectory() as folder:
        extract(work, opened.parts, opened.data, folder, micro_batch=micro_batch, refused=opened.refused)
        features = Features.open(folder)
    return evaluate(features, features, RetrievalSettings(), features.layers[-1:], judging)


def compare(judged: Sequence[tuple[str, RetrievalRun]], judging: Judging) -> list[Backbone]:
    """Each compared with the first."""
    queries = judged[0][1].queries
    labelled = queries.labels != None  # noqa: E711
    paired = PatientResamples(queries.labels[labelled], queries.owners[labelled], judging.bootstrap, judging.seed)
    backbones: list[Backbone] = []
    for name, run in judged:
        backbones.append(Backbone.of(name, run, backbones[0] if backbones else None, paired))
    return backbones
