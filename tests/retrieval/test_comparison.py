"""Backbones are compared over the same queries, and one that sees the classes is told from one that does not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import InternVLVisionConfig

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.job.command_line import parse
from raymed.models.backbones import make_backbone
from raymed.models.vision_tower import VisionTower
from raymed.retrieval.comparison import by_query, compare
from raymed.retrieval.evaluation import Judging, RetrievalRun, evaluate
from raymed.retrieval.features import Features
from raymed.retrieval.settings import RetrievalSettings

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import compare_backbones

JUDGING = Judging((1, 3), bootstrap=200)


def searched(vectors: np.ndarray, labels: Sequence[str | None]) -> RetrievalRun:
    """Pictures of so many patients, two each, asked about."""
    rows, nothing = len(labels), np.full(len(labels), None, dtype=object)
    ids = np.array([f"{row}" for row in range(rows)], dtype=object)
    patients = np.array([f"p{row // 2}" for row in range(rows)], dtype=object)
    found = np.array(labels, dtype=object)
    features = Features("made", None, ids, patients, found, nothing, nothing, np.full(rows, -1), {-1: vectors})
    return evaluate(features, features, RetrievalSettings(), [-1], JUDGING)


def test_what_sees_the_classes_is_surely_better_and_the_same_again_is_no_better() -> None:
    draw, labels = np.random.default_rng(0), [str(row // 2 % 3) for row in range(120)]
    blind = draw.normal(size=(120, 8)).astype(np.float32)
    seeing = blind + 4 * np.eye(8, dtype=np.float32)[[int(label) for label in labels]]
    first, same, better = compare([("A", searched(blind, labels)), ("B", searched(blind, labels)),
                                   ("C", searched(seeing, labels))], JUDGING)  # fmt: skip
    assert first.better == {} and same.better["Top-1"].value == 0
    gain = better.better["Top-1"]
    assert gain.low is not None and gain.low > 0.3 and "than the first: Top-1" in better.lines()[1]
    assert gain.value == pytest.approx(by_query(better.run)["Top-1"].mean() - by_query(first.run)["Top-1"].mean())
    assert first.run.best.mean_average_precision[3].value == pytest.approx(by_query(first.run)["mAP@3"].mean())


def test_pictures_without_a_label_are_asked_about_by_nobody_and_other_pictures_are_refused() -> None:
    vectors = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    labels = [None, "a", "b", "a", "b", "a", "b", "a", "b", "a", "b", "a"]
    run = searched(vectors, labels)
    assert len(by_query(run)["Top-1"]) == 11
    with pytest.raises(UserError, match="other pictures than A"):
        compare([("A", run), ("B", searched(vectors[:10], labels[:10]))], JUDGING)


def test_the_job_compares_two_vits_on_a_split(prepared: Prepared, tmp_path: Path) -> None:
    config = InternVLVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=28, attention_bias=True
    )
    for seed in range(2):
        torch.manual_seed(seed)
        VisionTower(config, make_backbone(config, 28).state_dict(), {}, "made").write(tmp_path / f"vit{seed}", "native")
    models = ["--models", str(tmp_path / "vit0"), str(tmp_path / "vit1")]
    words = [*models, "--input", prepared.folder.uri, "--split", "train", "--bootstrap", "20", "--storage", str(tmp_path)]
    outcome = compare_backbones.main(parse(compare_backbones.CompareBackbones, words))
    assert [each["name"] for each in outcome.data["backbones"]] == models[1:]
    assert "than the first: Top-1" in outcome.text and "chance: Top-1" in outcome.text
    with pytest.raises(UserError, match="takes two or more"):
        compare_backbones.main(parse(compare_backbones.CompareBackbones, ["--models", "a", "--input", "b"]))
