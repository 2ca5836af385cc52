"""A search finds what comparing with everything finds, leaves out whom it must, and treats galleries and queries alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymed.errors import UserError
from raymed.retrieval.features import Features
from raymed.retrieval.gallery import NONE, Gallery, RetrievalSettings
from raymed.retrieval.index import Index, IndexSettings
from raymed.retrieval.projection import Projection, ProjectionSettings, unit


def features(vectors: np.ndarray, patients: list[str | None], name: str = "made") -> Features:
    rows = len(vectors)
    nothing = np.full(rows, None, dtype=object)
    ids = np.array([f"{name}/{row}" for row in range(rows)], dtype=object)
    owners = np.array(patients, dtype=object)
    return Features(name, None, ids, owners, nothing, nothing, nothing, np.full(rows, NONE), {-1: unit(vectors)})


def drawn(rows: int, seed: int, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 5), min_size=12, max_size=30), st.integers(1, 12))
def test_a_patients_own_pictures_are_left_out_and_nobody_elses(seed: int, owners: list[int], k: int) -> None:
    gallery = features(drawn(len(owners), seed), [f"p{owner}" for owner in owners])
    queries = features(drawn(7, seed + 1), ["p0", "p1", "p2", "p3", "p4", "p5", "stranger"])
    found = Gallery(gallery, -1, RetrievalSettings()).search(queries, k)
    distances = np.linalg.norm(queries.vectors[-1][:, None] - gallery.vectors[-1], axis=2)
    for row, patient in enumerate(queries.patients):
        allowed = np.flatnonzero(gallery.patients != patient)
        expected = allowed[np.argsort(distances[row, allowed])][:k]
        got = found.rows[row][found.rows[row] != NONE]
        assert sorted(got) == sorted(expected) or np.allclose(distances[row, got], distances[row, expected], atol=1e-5)
        assert np.isinf(found.distances[row, len(expected) :]).all()


def test_a_picture_is_not_its_own_neighbour_where_no_patient_is_known() -> None:
    alone = features(drawn(10, 0), [None] * 10)
    assert (Gallery(alone, -1, RetrievalSettings()).search(alone, 1).rows[:, 0] != np.arange(10)).all()
    other = replace(alone, ids=np.array([f"elsewhere/{row}" for row in range(10)], dtype=object))
    assert (Gallery(alone, -1, RetrievalSettings()).search(other, 1).rows[:, 0] == np.arange(10)).all()


def test_l2_and_cosine_give_the_same_order() -> None:
    gallery, queries = features(drawn(200, 0), [None] * 200), features(drawn(20, 1), [None] * 20, "asked")
    by_l2, by_cosine = (
        Gallery(gallery, -1, RetrievalSettings(index=IndexSettings(metric=metric))).search(queries, 5)  # type: ignore[arg-type]
        for metric in ("l2", "cosine")
    )
    assert (by_l2.rows == by_cosine.rows).all()
    np.testing.assert_allclose(by_l2.distances**2 / 2, by_cosine.distances, atol=1e-5)


def test_expansion_asks_again_with_the_mean_of_the_query_and_its_nearest() -> None:
    gallery, queries = features(drawn(50, 0), [None] * 50), features(drawn(3, 1), [None] * 3, "asked")
    plain = Gallery(gallery, -1, RetrievalSettings())
    nearest = plain.search(queries, 5).rows
    mean = unit((queries.vectors[-1] + gallery.vectors[-1][nearest].sum(1)) / 6)
    again = plain.search(replace(queries, vectors={-1: mean}), 4).rows
    assert (Gallery(gallery, -1, RetrievalSettings(expand=5)).search(queries, 4).rows == again).all()


def test_expansion_learns_nothing_from_the_querys_own_patient() -> None:
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32)
    gallery = features(vectors, ["p", "p", "q"])
    asked = features(np.array([[1, 0.2]], dtype=np.float32), ["p"], "asked")
    found = Gallery(gallery, -1, RetrievalSettings(expand=2)).search(asked, 1)
    expected = np.linalg.norm(unit((unit(np.array([[1, 0.2]])) + vectors[2]) / 2) - vectors[2])
    assert found.rows.tolist() == [[2]]
    assert found.distances[0, 0] == pytest.approx(expected, abs=1e-5)


def test_a_search_projects_queries_by_what_the_gallery_taught_whoever_asks_beside() -> None:
    """A projection of its own for each set of queries would move a query's neighbours with the company it is in."""
    gallery = features(drawn(200, 0) * np.linspace(4, 1, 8, dtype=np.float32), [None] * 200)
    queries = features(drawn(40, 1) * np.linspace(1, 4, 8, dtype=np.float32), [None] * 40, "asked")
    settings = RetrievalSettings(projection=ProjectionSettings(pca=3))
    projection = Projection.fit(gallery.vectors[-1], settings.projection)
    assert projection is not None
    asked, known = projection(queries.vectors[-1]), projection(gallery.vectors[-1])
    found = Gallery(gallery, -1, settings).search(queries, 5)
    expected = np.sort(np.linalg.norm(asked[:, None] - known, axis=2), axis=1)[:, :5]
    np.testing.assert_allclose(found.distances, expected, atol=1e-4)
    first = features(queries.vectors[-1][:5], [None] * 5, "asked")
    np.testing.assert_array_equal(Gallery(gallery, -1, settings).search(first, 5).rows, found.rows[:5])


def test_projection_is_fitted_on_the_gallery_alone_and_gives_unit_vectors() -> None:
    vectors = drawn(300, 0) * np.arange(1, 9, dtype=np.float32) + 3
    fitted = Projection.fit(vectors, ProjectionSettings(pca=4, whiten=True))
    assert fitted is not None
    inner = (vectors - fitted.mean) @ fitted.matrix
    np.testing.assert_allclose(np.cov(inner.T), np.eye(4), atol=0.02)
    np.testing.assert_allclose(np.linalg.norm(fitted(drawn(5, 1)), axis=1), 1, rtol=1e-5)
    alone, with_others = (fitted(each)[0] for each in (drawn(1, 2), np.concatenate([drawn(1, 2), 100 + drawn(9, 3)])))
    np.testing.assert_allclose(alone, with_others, rtol=1e-5)
    whitened = Projection.fit(vectors, ProjectionSettings(whiten=True))
    assert whitened is not None
    np.testing.assert_allclose(((vectors - whitened.mean) @ whitened.matrix).std(0), 1, rtol=1e-3)
    with pytest.raises(UserError, match="at most 8"):
        Projection.fit(vectors, ProjectionSettings(pca=9))


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_approximate_indexes_find_most_of_the_true_neighbours(kind: str) -> None:
    centres = 5 * drawn(40, 0, 16)
    vectors = unit(centres[np.arange(1200) % 40] + drawn(1200, 1, 16))
    asked = unit(centres[np.arange(100) % 40] + drawn(100, 2, 16))
    truth, _ = Index(vectors, IndexSettings()).search(asked, 10)
    found, distances = Index(vectors, IndexSettings(kind, cells=8, code=2)).search(asked, 10)  # type: ignore[arg-type]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth.tolist(), found.tolist(), strict=True)])
    assert recall > (0.95 if kind == "hnsw" else 0.2)
    assert (np.diff(distances, axis=1) >= 0).all()


def test_what_an_index_cannot_do_is_said_before_it_is_built() -> None:
    with pytest.raises(UserError, match="at least 256"):
        Index(drawn(100, 0), IndexSettings("ivfpq", code=8))
    with pytest.raises(UserError, match="multiple"):
        Index(drawn(1000, 0), IndexSettings("ivfpq", code=3))
    gallery = features(drawn(3, 0), [None] * 3)
    with pytest.raises(UserError, match="holds 3"):
        Gallery(gallery, -1, RetrievalSettings()).search(gallery, 4)
