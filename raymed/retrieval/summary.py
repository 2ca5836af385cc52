"""A search's figures in words: what a reader must not miss, tables, and every neighbour in a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from raymed.data.sources.listing import some
from raymed.evaluation.metrics import RARE
from raymed.language import padded, places, say
from raymed.retrieval.features import Features
from raymed.retrieval.gallery import NONE, Gallery, Neighbours
from raymed.retrieval.metrics import Retrieval, right


def remarks(gallery: Gallery, queries: Features, neighbours: Neighbours, best: Retrieval, layers: int = 1) -> list[str]:
    """What a reader must not miss.

    Args:
        best: the assessment of these neighbours, the best of so many `layers`.
    """
    notes = []
    if shared := gallery.shared_patients(queries):
        fate = "their pictures are not neighbours of their own"
        if gallery.settings.exclude != "patient":
            fate = "their own pictures count as neighbours, and the figures flatter the model"
        notes.append(f"{len(shared)} patients have queries and gallery pictures ({fate}): {some(shared)}")
    if nameless := _nameless(queries, gallery.features):
        fate = "pictures of one patient may be each other's neighbours, and intervals are of pictures, too narrow"
        notes.append(f"{nameless} name no patient: {fate}")
    if best.unlabelled:
        notes.append(f"{best.unlabelled} queries have no label and are not judged")
    if best.unanswerable:
        notes.append(
            f"{best.unanswerable} queries are of a class that the gallery has no other picture of: they count as wrong"
        )
    if rare := [each.name for each in best.classes if each.patients < RARE]:
        notes.append(f"classes with fewer than {RARE} patients among the queries, whose intervals mean little: {some(rare)}")
    if lacking := int((neighbours.rows[:, -1] == NONE).sum()):
        notes.append(f"{lacking} queries have fewer than {neighbours.rows.shape[1]} neighbours that may be found")
    if layers > 1:
        notes.append(f"layer {best.layer} was chosen on these queries, which flatters it: choose on validation patients")
    return notes


def _nameless(queries: Features, gallery: Features) -> str:
    """How many pictures are of nobody that is known; empty where all are."""
    asked, others = (int((each.patients == None).sum()) for each in (queries, gallery))  # noqa: E711
    if asked and others:
        return f"{asked} queries and {others} gallery pictures"
    return f"{asked} queries" if asked else f"{others} gallery pictures" if others else ""


def table(judged: Sequence[Retrieval], best: Retrieval) -> list[str]:
    """Figures of each layer, with 95 % intervals."""
    ks, wide = list(best.top), places(say("chance")) + 2
    lines = [padded(say("layer"), wide) + "".join(f"{f'Top-{k}':22}" for k in ks) + "".join(f"{f'mAP@{k}':22}" for k in ks)]
    for each in judged:
        figures = [*each.top.values(), *each.mean_average_precision.values()]
        cells = "".join(padded(f"{one}  ", 22) for one in figures)
        lines.append(f"{each.layer:<{wide}}{cells}" + ("  <- best" if each is best and len(judged) > 1 else ""))
    return [*lines, padded(say("chance"), wide) + "".join(f"{value:<22.3f}" for value in best.chance.values())]


def class_table(best: Retrieval) -> list[str]:
    """Top-k of each class."""
    lines = [padded(say("class"), 24) + padded(say("queries"), 9) + "".join(f"Top-{k:<6}" for k in best.top)]
    for each in best.classes:
        lines.append(f"{padded(each.name, 24)}{each.queries:<9}" + "".join(f"{value:<10.3f}" for value in each.top.values()))
    return lines


def neighbour_table(queries: Features, gallery: Features, neighbours: Neighbours) -> pd.DataFrame:
    """One line per query and neighbour."""
    asked, place = np.nonzero(neighbours.rows != NONE)
    rows = neighbours.rows[asked, place]
    return pd.DataFrame(
        {
            "query": queries.ids[asked],
            "query_patient": pd.Series(queries.patients[asked], dtype=object),  # keeps None, which text columns do not
            "query_label": pd.Series(queries.labels[asked], dtype=object),
            "rank": place + 1,
            "distance": neighbours.distances[asked, place],
            "picture": gallery.ids[rows],
            "patient": pd.Series(gallery.patients[rows], dtype=object),
            "label": pd.Series(gallery.labels[rows], dtype=object),
            "right": right(neighbours, queries, gallery)[asked, place],
        }
    )
