"""A contact sheet of queries and what was found for them: one self-contained HTML file, without scripts.

Everything that comes from data is escaped by the template; pictures are embedded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from raymed.evaluation.page import environment
from raymed.evaluation.report import picture_uri
from raymed.language import say
from raymed.retrieval.features import Features
from raymed.retrieval.gallery import NONE, Neighbours
from raymed.retrieval.metrics import Retrieval, right
from raymed.retrieval.pictures import Pictures
from raymed.storage.folder import Folder


@dataclass(frozen=True)
class Case:
    """A picture on the sheet.

    Attributes:
        picture: a data URI; None where it could not be read again.
        name: of the picture; likewise label.
        patient: what the patient is called on the sheet.
        distance: to the query; None for a query itself.
        right: whether it shows the query's class; for a query, whether its nearest picture does.
    """

    picture: str | None
    name: str
    patient: str
    label: str
    distance: float | None
    right: bool


@dataclass(frozen=True)
class Line:
    """A query and its neighbours, the nearest first."""

    query: Case
    neighbours: tuple[Case, ...]


def choose_lines(hits: np.ndarray, labels: np.ndarray, count: int, seed: int) -> list[int]:
    """Queries to show, at most `count`: of each class as many as of the others, and as many wrong as right where there are.

    Args:
        hits: whether the nearest picture shows the query's class, bool [queries].
        labels: class names of the queries, object [queries]; those without one are not shown.
    """
    order = np.random.default_rng(seed).permutation(len(hits))
    places: dict[tuple[str, bool], int] = {}
    ranked = []
    for row in order[labels[order] != None]:  # noqa: E711
        group = (labels[row], bool(hits[row]))
        places[group] = places.get(group, -1) + 1
        ranked.append((places[group], not group[1], row))
    chosen = [int(row) for _, _, row in sorted(ranked)[:count]]
    return sorted(chosen, key=lambda row: (bool(hits[row]), labels[row], row))


def sheet_lines(queries: Features, gallery: Features, neighbours: Neighbours, count: int, seed: int = 0) -> list[Line]:
    """The lines of the sheet; opens their pictures and no others."""
    hits = right(neighbours, queries, gallery)
    asked, known = Pictures(queries), Pictures(gallery)
    lines = []
    for row in choose_lines(hits[:, 0], queries.labels, count, seed):
        found = tuple(
            _case(known, gallery, int(place), float(distance), bool(hit))
            for place, distance, hit in zip(neighbours.rows[row], neighbours.distances[row], hits[row], strict=True)
            if place != NONE
        )
        lines.append(Line(_case(asked, queries, row, None, bool(hits[row, 0])), found))
    return lines


def case_lines(queries: Features, gallery: Features, neighbours: Neighbours) -> list[Line]:
    """A line for each query, on which patients are called by numbers; opens their pictures."""
    asked, known = Pictures(queries), Pictures(gallery)
    numbers: dict[str, str] = {}

    def named(case: Case, patient: str | None) -> Case:
        if patient is None:
            return replace(case, name="", patient=say("patient not known"))
        return replace(case, name="", patient=numbers.setdefault(patient, say("patient {number}", number=len(numbers) + 1)))

    return [
        Line(
            named(_case(asked, queries, row, None, True), queries.patients[row]),
            tuple(
                named(_case(known, gallery, int(place), float(distance), True), gallery.patients[place])
                for place, distance in zip(neighbours.rows[row], neighbours.distances[row], strict=True)
                if place != NONE
            ),
        )
        for row in range(len(queries))
    ]


def write_cases(path: Path, queries: Features, gallery: Features, neighbours: Neighbours) -> Path:
    """Write the cases nearest to pictures that somebody asked about, as one HTML file that names nobody; where it is."""
    template, lines = environment("raymed.retrieval").get_template("cases.html"), case_lines(queries, gallery, neighbours)
    page = template.render(title=say("Similar cases"), gallery=len(gallery), lines=lines)
    Folder.at(path.absolute().parent).write(path.name, page.encode())
    return path.absolute()


def render(title: str, judged: Sequence[Retrieval], best: Retrieval, lines: Sequence[Line], notes: Sequence[str]) -> str:
    """The sheet as one HTML document.

    Args:
        judged: one entry per layer.
        best: the one that the lines are of.
    """
    templates = environment("raymed.retrieval")
    return templates.get_template("sheet.html").render(title=title, judged=judged, best=best, lines=lines, notes=notes)


def _case(pictures: Pictures, features: Features, row: int, distance: float | None, hit: bool) -> Case:
    picture = pictures.read(row)
    return Case(
        picture=None if picture is None else picture_uri(picture),
        name=str(features.ids[row]),
        patient=f"patient {features.patients[row] or 'not known'}",
        label=str(features.labels[row] or "no label"),
        distance=distance,
        right=hit,
    )
