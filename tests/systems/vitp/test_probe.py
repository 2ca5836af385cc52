"""The labelled probe set of pretraining: whom it finds, whom it leaves out, and what it may choose."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import write_prepared
from worker_processes import run_workers

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.recipes.recipe import Batch
from raymed.systems.vitp.network import build
from raymed.systems.vitp.options import VitpOptions
from raymed.systems.vitp.probe import QUERIES, BackboneProbe
from raymed.systems.vitp.recipe import VitpRecipe
from raymed.training.loop import Run
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget
from raymed.tuning.search import Search
from raymed.tuning.search_name import _deciding
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension

PROBE = BackboneProbe("DATA", "digest", 56)


def judged(vectors: np.ndarray, labels: list[int], patients: list[str]) -> dict[str, float]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return PROBE.evaluate({"features": unit.astype(np.float32)}, {"label": np.array(labels), "patient": np.array(patients)})


def test_a_patients_own_pictures_are_not_what_is_found() -> None:
    vectors = np.array([[1, 0.0], [1, 0.01], [0, 1.0], [0.01, 1]])
    assert judged(vectors, [0, 0, 1, 1], ["a", "b", "c", "d"])["probe_top1"] == 1.0
    assert judged(vectors, [0, 0, 1, 1], ["a", "a", "b", "b"])["probe_top1"] == 0.0, "each finds itself, or nobody alike"


def test_figures_are_those_of_one_query_after_another_also_where_there_are_more_than_fit_at_once() -> None:
    draw, count = np.random.default_rng(0), QUERIES + 88
    vectors, labels = draw.normal(size=(count, 4)), draw.integers(0, 3, count).tolist()
    patients = [f"p{number}" for number in draw.integers(0, 200, count)]
    top, precisions = [], []
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    for query in range(count):
        others = [row for row in range(count) if patients[row] != patients[query]]
        order = sorted(others, key=lambda row: -float(unit[row] @ unit[query]))[:5]
        hits = [labels[row] == labels[query] for row in order]
        relevant = sum(labels[row] == labels[query] for row in others)
        top.append(hits[0])
        precisions.append(sum(sum(hits[: place + 1]) / (place + 1) for place in range(5) if hits[place]) / min(5, relevant))
    expected = {"probe_top1": np.mean(top), "probe_map5": np.mean(precisions)}
    assert judged(vectors, labels, patients) == pytest.approx(expected)


def test_features_are_of_the_backbone_as_it_is_and_grey_pictures_are_taken(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "data", size=56)
    probe, rows = BackboneProbe.of(prepared, 56), np.arange(3)
    network = build(VitpRecipe(56).model, 56, "imagenet").eval()
    with torch.no_grad():
        features = probe.predict(network, probe.encode(prepared.read(rows), None))["features"]
        again = probe.predict(network, probe.encode(prepared.read(rows[1:2]), None))["features"]
    assert features.shape[0] == 3 and torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(features[1], again[0], atol=1e-5), "whatever it is judged beside"


def _validate(worker: int, store: Path, data: str) -> None:
    """Two workers without validation rows judge the probe, and one process asks about all rows at once."""
    dist.init_process_group("gloo", rank=worker, world_size=2, init_method=f"file://{store}")
    prepared = Prepared.open(data)
    probe, rows = BackboneProbe.of(prepared, 56), np.arange(len(prepared.index))
    torch.manual_seed(0)
    network = build(VitpRecipe(56).model, 56, "imagenet").eval()

    def predict(batch: Batch, judge: BackboneProbe) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {name: values.numpy() for name, values in judge.predict(network, batch).items()}

    run: Any = SimpleNamespace(
        spec=SimpleNamespace(train=TrainSettings(micro_batch=5)),
        engine=SimpleNamespace(
            worker=worker, workers=2, prepare=lambda batch: batch, predict=predict, evaluating=contextlib.nullcontext
        ),
        validation=np.empty(0, np.int64),
        probe=probe,
        probed=prepared,
        _leave_if_told=lambda: None,
    )
    metrics, predictions = Run._validate(run)
    alone = predict(probe.encode(prepared.read(rows), None), probe)
    assert predictions is None, "what a checkpoint keeps is of validation rows"
    assert metrics == pytest.approx(probe.evaluate(alone, prepared.columns(rows, ["label", "patient"])), abs=0.02)


@pytest.mark.slow
def test_the_loop_asks_about_every_row_of_the_probe_once_whatever_the_workers(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", patients=16, slices=3, size=56).folder.uri
    run_workers(_validate, (tmp_path / "store", data), 2)


def test_a_probe_that_could_not_say_anything_is_refused_and_one_of_known_patients_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_prepared(tmp_path / "data", size=56)
    with pytest.raises(UserError, match=r"pictures of 56 pixels, and the network takes 112.*--image\.size 112"):
        BackboneProbe.of(data, 112)
    with pytest.raises(UserError, match="needs two classes of two patients each"):
        BackboneProbe.of(write_prepared(tmp_path / "few", patients=4, size=56), 56)
    with caplog.at_level(logging.WARNING):
        VitpOptions(probe=data.folder.uri)._backbone_probe(data)
    assert "18 patients of the probe have ids of those that are trained on" in caplog.text


def test_a_probe_may_choose_epochs_and_trials_and_without_one_nothing_is_new() -> None:
    names = {metric.name: metric for metric in VitpRecipe(56, probe=PROBE).metrics}
    for name in ("probe_top1", "probe_map5"):
        assert names[name].direction == "max" and names[name].chooses_epoch and names[name].chooses_trial
    assert VitpRecipe(56, probe=PROBE).settings() == VitpRecipe(56).settings() | {"probe": "digest"}
    assert not any(metric.name.startswith("probe") for metric in VitpRecipe(56).metrics)
    train = TrainSettings(monitor="probe_top1", patience=1, patience_monitor="probe_map5")
    spec = RunSpec("run", "runs", "DATA", VitpRecipe(56, probe=PROBE), train)
    settings, budget = SearchSettings(objective="probe_top1", space={"train.lr": Dimension(1e-4, 1e-2)}), Budget(trials=2)
    assert Search(spec, settings, budget, "sqlite://").objective == spec.monitor == names["probe_top1"]
    with pytest.raises(UserError, match=r"train\.monitor is probe_top1"):
        replace(spec, recipe=VitpRecipe(56))


def test_without_a_probe_a_search_is_called_what_it_was_before_there_were_any() -> None:
    """The same command would begin it anew."""
    plain, probed = (RunSpec("run", "runs", "DATA", VitpRecipe(56, probe=probe), TrainSettings()) for probe in (None, PROBE))
    assert "probe" not in _deciding(plain)["recipe"] and _deciding(probed)["recipe"]["probe"]
