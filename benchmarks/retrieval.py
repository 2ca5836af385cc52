"""Searching a gallery against bare faiss: what patients, labels and distances cost, and what a graph gains and loses.

    python benchmarks/retrieval.py                                   # the figures of docs/log.md: minutes on two CPU cores
    python benchmarks/retrieval.py --pictures 2000 --width 64        # seconds, to try it

The vectors are drawn around centres in a space of few dimensions and turned into the features' width, with noise: like
features of pictures, and unlike evenly scattered vectors, they have near and far neighbours. Ways take turns, and the
fastest round of each counts, so that other work on the machine weighs less; the overhead over bare faiss is one of CPU time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import faiss
import numpy as np
from jsonargparse import auto_cli
from machine import show

from raymed.retrieval.features import Features
from raymed.retrieval.gallery import Gallery, RetrievalSettings
from raymed.retrieval.index import Index, IndexSettings
from raymed.retrieval.projection import unit

K = 10
PER_PATIENT = 4


def main(pictures: int = 100_000, queries: int = 1000, width: int = 1024, rounds: int = 5, effort: int = 128) -> None:
    """Build the indexes and search them.

    Args:
        pictures: In the gallery.
        queries: Half of them of patients who are in the gallery as well.
        width: Of a feature vector.
        rounds: Of each way; the fastest counts.
        effort: Candidates that the graph keeps while searching.
    """
    vectors = draw(pictures + queries, width, seed=0)
    gallery_vectors, asked = vectors[:pictures], np.ascontiguousarray(vectors[pictures:])
    features = described(gallery_vectors, np.arange(pictures) // PER_PATIENT)
    strangers = described(asked, -1 - np.arange(queries))
    known = described(asked, np.where(np.arange(queries) % 2, -1 - np.arange(queries), np.arange(queries) // PER_PATIENT))

    bare = faiss.IndexFlatL2(width)
    bare.add(gallery_vectors)
    flat = Gallery(features, -1, RetrievalSettings())
    ways: Mapping[str, Callable[[], object]] = {
        "bare": lambda: bare.search(asked, K),
        "bare, as many more": lambda: bare.search(asked, K + PER_PATIENT),
        "strangers": lambda: flat.search(strangers, K),
        "half known": lambda: flat.search(known, K),
    }
    seconds = alternate(ways, rounds, time.process_time)
    truth = flat.search(strangers, K).rows

    started = time.perf_counter()
    graph = Index(gallery_vectors, IndexSettings("hnsw", effort=effort))
    building = time.perf_counter() - started
    searches = {"flat": lambda: flat.index.search(asked, K), "hnsw": lambda: graph.search(asked, K)}
    graph_seconds = alternate(searches, rounds, time.perf_counter)
    found, _ = graph.search(asked, K)
    recall = statistics.fmean(len(set(a) & set(b)) / K for a, b in zip(truth.tolist(), found.tolist(), strict=True))
    figures = {
        "seconds": seconds,
        "overhead": seconds["strangers"] / seconds["bare"] - 1,
        "overhead_half_known": seconds["half known"] / seconds["bare"] - 1,
        "hnsw_recall": recall,
        "hnsw_speedup": graph_seconds["flat"] / graph_seconds["hnsw"],
        "hnsw_building": building,
    }
    lines = [f"{name:20} {1000 * value / queries:8.3f} ms of CPU a query" for name, value in seconds.items()]
    lines += [f"{name:20} {1000 * value / queries:8.3f} ms a query" for name, value in graph_seconds.items()]
    lines += [
        f"overhead over bare faiss: {figures['overhead']:.1%}; with half of the queries' patients in the gallery, whose own "
        f"pictures are left out: {figures['overhead_half_known']:.1%}",
        f"hnsw: recall@{K} {recall:.4f} of flat, {figures['hnsw_speedup']:.1f} times as fast, built in {building:.0f} s",
    ]
    show(f"{queries} queries, {pictures} pictures, {width} wide", lines, figures)


def draw(rows: int, width: int, seed: int, inner: int = 32, centres: int = 200) -> np.ndarray:
    """Unit vectors, float32 [rows, width]."""
    generator = np.random.default_rng(seed)
    middle = generator.standard_normal((centres, inner))[generator.integers(centres, size=rows)]
    points = (middle + 0.5 * generator.standard_normal((rows, inner))).astype(np.float32)
    turned = points @ generator.standard_normal((inner, width), dtype=np.float32)
    return unit(turned + 0.1 * inner**0.5 * generator.standard_normal((rows, width), dtype=np.float32))


def described(vectors: np.ndarray, patients: np.ndarray) -> Features:
    """Vectors as features of pictures of these patients."""
    rows = len(vectors)
    ids, names = (np.array([str(value) for value in values], dtype=object) for values in (range(rows), patients))
    nothing = np.full(rows, None, dtype=object)
    return Features("drawn", None, ids, names, nothing, nothing, nothing, np.full(rows, -1), {-1: vectors})


def alternate(ways: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of the fastest round of each way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = clock()
            way()
            seconds[name].append(clock() - started)
    return {name: min(each) for name, each in seconds.items()}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
