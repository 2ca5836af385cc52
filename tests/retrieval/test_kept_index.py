"""A kept index is opened as it was left, and finds what one that is built anew finds, whatever came and went meanwhile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raymed.retrieval import kept_index as module
from raymed.retrieval.features import FeatureManifest, Features
from raymed.retrieval.gallery import Gallery
from raymed.retrieval.index import Index
from raymed.retrieval.projection import unit
from raymed.retrieval.settings import IndexSettings, ProjectionSettings, RetrievalSettings

HNSW, IVF = IndexSettings("hnsw", effort=256), IndexSettings("ivfpq", cells=4, probes=4, code=8)
CENTRES = 5 * np.random.default_rng(9).standard_normal((30, 16)).astype(np.float32)


def shard(name: str) -> np.ndarray:
    """Its 100 pictures."""
    draw = np.random.default_rng(sum(name.encode()))
    return unit(CENTRES[draw.integers(0, 30, 100)] + draw.standard_normal((100, 16)).astype(np.float32))


def gallery(folder: Path, names: str) -> Features:
    """Of shards with these letters."""
    vectors = np.concatenate([shard(name) for name in names])
    made = FeatureManifest("k", "m", "d", {}, [1], 16, {}, {"kind": "made", "root": "r"}, dict.fromkeys(names, 100), [])
    nothing = np.full(len(vectors), None, dtype=object)
    ids = np.array([f"{name}/{row}" for name in names for row in range(100)], dtype=object)
    return Features(str(folder), made, ids, ids, nothing, nothing, nothing, np.full(len(ids), -1), {1: vectors})


def search(features: Features, settings: IndexSettings, keep: bool) -> np.ndarray:
    """Names of the five pictures nearest to some."""
    asked = replace(gallery(Path("asked"), "xy"), manifest=features.manifest)
    found = Gallery(features, 1, RetrievalSettings(settings), keep).search(asked, 5)
    assert (np.diff(found.distances, axis=1) >= 0).all()
    return features.ids[found.rows]


def agreement(features: Features, settings: IndexSettings) -> float:
    """Share of an exact search's pictures that the kept index finds, too."""
    exact, kept = search(features, IndexSettings(), keep=False), search(features, settings, keep=True)
    return float(np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact, kept, strict=True)]))


def no_building(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "__init__", lambda *_: pytest.fail("built anew"))


@pytest.mark.parametrize("settings", [HNSW, IVF])
def test_an_index_that_was_kept_is_not_built_again(
    settings: IndexSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = gallery(tmp_path, "abcdefgh")
    before = search(features, settings, keep=True)
    assert {path.suffix for path in (tmp_path / "index").iterdir()} == {".faiss", ".json"}
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").iterdir()}
    no_building(monkeypatch)
    assert (search(features, settings, keep=True) == before).all()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "nothing changed, and it was written again"


@pytest.mark.parametrize(("settings", "least"), [(HNSW, 0.99), (IVF, 0.3)])
def test_pictures_come_and_go_at_the_cost_of_those(
    settings: IndexSettings, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(gallery(tmp_path, "abcdefgh"), settings, keep=True)
    added: list[int] = []
    add = Index.add

    def adding(index: Index, vectors: np.ndarray, rows: np.ndarray) -> None:
        added.append(len(rows))
        add(index, vectors, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Index, "add", adding)
        patch.setattr(Index, "__init__", lambda *_: pytest.fail("built anew"))
        features = gallery(tmp_path, "zabdefgh")  # one came to stand first, one is gone
        (key,) = {path.stem for path in (tmp_path / "index").iterdir()}
        index = module.kept_index(features, 1, features.vectors[1], settings)
        assert added == [100] and key == next((tmp_path / "index").iterdir()).stem
        found, _ = index.search(features.vectors[1], 1)
        assert (found[:, 0] == np.arange(800)).mean() > (0.99 if settings is HNSW else 0.5), "each finds itself in its row"
        found, _ = index.search(shard("c"), 700)
        assert set(found[found >= 0].tolist()) <= set(range(800))
    assert agreement(features, settings) > least
    assert agreement(gallery(tmp_path, "zabdefghc"), settings) > least, "and one that was gone came back"


def test_an_index_is_built_anew_where_too_much_of_it_is_gone_or_it_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    search(gallery(tmp_path, "abcdefgh"), HNSW, keep=True)
    with caplog.at_level("INFO", "raymed"):
        search(gallery(tmp_path, "abcde"), HNSW, keep=True)
        assert "was built over 500 pictures" in caplog.text
        caplog.clear()
        search(gallery(tmp_path, "abcdefghijkl"), HNSW, keep=True)
        assert "was built over 1200 pictures" in caplog.text, "more than half are new"
        (file,) = (tmp_path / "index").glob("*.faiss")
        file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
        caplog.clear()
        search(gallery(tmp_path, "abcdefghijkl"), HNSW, keep=True)
        assert "is damaged" in caplog.text and "was built" in caplog.text
    (noted,) = (tmp_path / "index").glob("*.json")
    noted.write_text(json.dumps({"shards": {}}))
    assert agreement(gallery(tmp_path, "abcdefghijkl"), HNSW) > 0.99


def test_what_would_not_be_the_same_the_next_time_is_not_kept(tmp_path: Path) -> None:
    features = gallery(tmp_path, "abcd")
    search(features, IndexSettings(), keep=True)
    Gallery(features, 1, RetrievalSettings(HNSW, ProjectionSettings(whiten=True)), keep=True)
    assert not (tmp_path / "index").exists()
