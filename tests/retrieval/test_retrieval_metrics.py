"""Figures of retrieval on galleries small enough to count by hand, and against other programs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from raymed.errors import UserError
from raymed.retrieval.features import Features
from raymed.retrieval.gallery import NONE, Gallery, Neighbours, RetrievalSettings
from raymed.retrieval.metrics import PatientResamples, Retrieval, average_precision, judge, right
from raymed.retrieval.sheet import choose_lines
from raymed.retrieval.summary import neighbour_table, remarks, table


def features(labels: list[str | None], patients: list[str], places: list[float], name: str = "made") -> Features:
    """Pictures on a line: their vectors are (place, 0)."""
    rows = len(labels)
    columns = {"ids": [f"{name}/{row}" for row in range(rows)], "patients": patients, "labels": labels}
    objects = {key: np.array(values, dtype=object) for key, values in columns.items()}
    nothing = np.full(rows, None, dtype=object)
    vectors = np.array([[place, 0.0] for place in places], dtype=np.float32)
    return Features(name, None, **objects, sources=nothing, paths=nothing, frames=np.full(rows, NONE), vectors={-1: vectors})


GALLERY = features(["a", "b", "b", "a", "c"], ["p", "q", "r", "s", "t"], [0, 1, 2, 3, 9], "gallery")
QUERIES = features(["a", "b", "b", "d", None], ["x", "y", "q", "z", "z"], [0.1, 2.6, 1.2, 8.0, 0.0], "queries")


def judged(exclude: str = "patient") -> tuple[Gallery, Neighbours, Retrieval]:
    gallery = Gallery(GALLERY, -1, RetrievalSettings(exclude=exclude))  # type: ignore[arg-type]
    neighbours = gallery.search(QUERIES, 3)
    return gallery, neighbours, judge(gallery, QUERIES, neighbours, [1, 3], bootstrap=50)


def test_a_query_counts_if_any_of_its_first_k_has_its_class() -> None:
    _, neighbours, found = judged()
    # the last query of class b is q's, whose own picture, the nearest, is no neighbour
    assert right(neighbours, QUERIES, GALLERY)[:3].tolist() == [
        [True, False, False],
        [False, True, True],
        [True, False, False],
    ]
    assert (found.queries, found.unlabelled, found.unanswerable) == (4, 1, 1)
    assert found.hits == {1: 2, 3: 3}
    assert found.top[3].value == 0.75
    assert found.mean_average_precision[3].value == pytest.approx((1 / 2 + (1 / 2 + 2 / 3) / 2 + 1 + 0) / 4)
    assert [(each.name, each.queries) for each in found.classes] == [("a", 1), ("b", 2), ("d", 1)]


def test_pictures_of_the_querys_patient_are_neighbours_only_where_asked() -> None:
    for exclude, own in (("patient", False), ("picture", True), ("none", True)):
        gallery, neighbours, found = judged(exclude)
        assert (1 in neighbours.rows[2]) == own, exclude
        (note,) = [line for line in remarks(gallery, QUERIES, neighbours, found) if "1 patients" in line]
        assert ": q" in note and ("flatter" in note) == own


def test_chance_is_what_random_neighbours_would_give() -> None:
    _, _, found = judged()
    # a: 2 of 5; b: 2 of 5; b of q: 1 of 4; d: none
    assert found.chance[1] == pytest.approx((2 / 5 + 2 / 5 + 1 / 4 + 0) / 4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12).filter(any))
def test_average_precision_over_a_whole_ranking_is_scikit_learns(hits: list[bool]) -> None:
    found = average_precision(np.array([hits]), np.array([sum(hits)]))[0]
    assert found == pytest.approx(average_precision_score(hits, -np.arange(len(hits))))


def test_a_gallery_of_one_class_and_queries_without_labels_are_refused() -> None:
    one = Gallery(features(["a", "a"], ["p", "q"], [0, 1]), -1, RetrievalSettings())
    with pytest.raises(UserError, match="one class"):
        judge(one, QUERIES, one.search(QUERIES, 1), [1])
    gallery = Gallery(GALLERY, -1, RetrievalSettings())
    nameless = features([None], ["x"], [0.0])
    with pytest.raises(UserError, match="no query"):
        judge(gallery, nameless, gallery.search(nameless, 1), [1])


def test_intervals_hold_the_figure_and_come_from_patients() -> None:
    gallery = Gallery(GALLERY, -1, RetrievalSettings())
    same = features(["a"] * 40, [f"p{row}" for row in range(40)], [0.1] * 20 + [1.1] * 20)
    grouped = features(["a"] * 40, [f"p{row // 10}" for row in range(40)], [0.1] * 20 + [1.1] * 20)
    widths = []
    for queries in (same, grouped):
        top = judge(gallery, queries, gallery.search(queries, 1), [1], bootstrap=400).top[1]
        assert top.low <= top.value <= top.high
        widths.append(top.high - top.low)
    assert widths[1] > 1.5 * widths[0], "ten pictures of a patient are not ten patients"


def test_queries_that_are_all_right_are_not_claimed_to_prove_it() -> None:
    labels, patients = np.repeat(["a", "b"], 12), np.repeat([f"p{number}" for number in range(8)], 3)
    top = PatientResamples(labels, patients, 50, 0).mean(np.ones(24, bool))
    assert (top.value, top.high) == (1.0, 1.0)
    assert top.low == pytest.approx(0.6756, abs=1e-4)  # Wilson, 8 of 8 patients, not 24 of 24 pictures


def test_the_sheet_shows_every_class_and_both_right_and_wrong() -> None:
    labels = np.array(["a"] * 90 + ["b"] * 10, dtype=object)
    hits = np.arange(100) % 10 != 0
    chosen = choose_lines(hits, labels, 8, seed=0)
    assert len(set(chosen)) == 8
    assert {(labels[row], bool(hits[row])) for row in chosen} == {("a", True), ("a", False), ("b", True), ("b", False)}
    assert all(row % 2 == 0 for row in choose_lines(hits, np.array(["a", None] * 50, dtype=object), 60, 0))


def test_the_table_of_neighbours_has_ranks_and_no_missing_ones() -> None:
    _, neighbours, found = judged()
    lines = neighbour_table(QUERIES, GALLERY, neighbours)
    assert lines["rank"].tolist() == [1, 2, 3] * 5
    assert lines.loc[0, ["query", "picture", "label", "right"]].tolist() == ["queries/0", "gallery/0", "a", True]
    assert table([found], found)[-1].startswith("chance")


def test_pictures_without_a_patient_are_said_to_flatter_the_figures() -> None:
    nameless = replace(GALLERY, patients=np.full(len(GALLERY), None, dtype=object))
    gallery = Gallery(nameless, -1, RetrievalSettings())
    found = gallery.search(QUERIES, 1)
    (note,) = [
        line
        for line in remarks(gallery, QUERIES, found, judge(gallery, QUERIES, found, [1], 10))
        if "name no patient" in line
    ]
    assert note.startswith(f"{len(GALLERY)} gallery pictures name no patient")
