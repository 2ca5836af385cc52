"""Each benchmark runs to its end on tiny sizes and measures what it says; its figures mean nothing here."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch.multiprocessing
from forks import quick_scripts, quick_workers
from worker_processes import preload

from raymed.cluster.connection import connect
from raymed.data.phantom import PhantomSettings
from raymed.data.prepared import Prepared
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.phantoms import prepare_phantom_reports
from raymed.systems.options import prepare_phantoms
from raymed.systems.vitp.recipe import VitpRecipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a benchmark by name. Its new processes are forks of one that has imported what they need."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    preload()
    start = torch.multiprocessing.start_processes

    def forked(work: Any, arguments: tuple[Any, ...], workers: int, start_method: str) -> None:
        start(work, arguments, workers, start_method="forkserver")

    monkeypatch.setattr(torch.multiprocessing, "start_processes", forked)

    def load(name: str) -> ModuleType:
        from ray import cloudpickle

        module = importlib.import_module(name)
        if hasattr(module, "get_context"):
            monkeypatch.setattr(module, "get_context", lambda _: multiprocessing.get_context("forkserver"))
        cloudpickle.register_pickle_by_value(module)  # Ray's workers started without this folder on their path
        return module

    yield load
    for file in BENCHMARKS.glob("*.py"):
        sys.modules.pop(file.stem, None)


def figures_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_frozen_backbone_gives_the_same_losses_in_both_ways(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark("frozen").main(str(tmp_path), patients=12, size=32, preset="tiny", epochs=2)
    figures = figures_of(capsys)
    assert max(figures["train_loss"], figures["val_loss"]) < 1e-5 and figures["times"] > 0


@pytest.mark.slow
def test_step_computes_the_same_loss_in_all_five_ways(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    step = benchmark("step")
    step.main(step.Shape(vocabulary=2000, hidden=64, layers=1, size=56), samples=2, padded=128, steps=1)
    figures = figures_of(capsys)
    losses = [way["loss"] for way in figures["ways"].values()]
    assert losses == pytest.approx([losses[0]] * 5, rel=1e-4), "the ways do not do the same work"
    assert figures["ways"]["recipe"]["flops"] > 1e6
    assert all(way["seconds"] > 0 for way in figures["ways"].values())
    seen = figures["ways"]["engine"]["trace"]
    assert seen["operators"] > 10 and seen["longest"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_trials_at_once_and_one_at_a_time_are_timed_by_the_trials_of_an_hour(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark("at_once").main(str(tmp_path), trials=2, rounds=1, patients=12, size=32, epochs=1, preset="tiny")
    figures = figures_of(capsys)
    assert [figures[way]["at_once"] for way in ("alone", "together")] == [1, 2]
    assert figures["times"] == pytest.approx(figures["together"]["trials_an_hour"] / figures["alone"]["trials_an_hour"])


def test_the_time_outside_kernels_counts_no_overlap_twice(benchmark: Any) -> None:
    assert benchmark("machine").covered([(5, 7), (0, 2), (1, 3), (2, 3), (6, 6.5)]) == 5


@pytest.mark.slow
def test_what_saves_memory_saves_what_it_should(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("memory").main(width=128, vision_width=64, vocabulary=300, blocks=4)
    whole, *others = figures_of(capsys).values()
    tiles, smaller, two, three, frozen, again, check = others
    assert max(tiles["activations"], smaller["activations"], frozen["activations"]) < whole["activations"]
    assert three["states"] < two["states"] < whole["states"] > frozen["states"]
    assert again["activations"] < whole["activations"] / 3 and again["states"] == whole["states"]
    assert check["carried_on"] == pytest.approx(check["whole"], rel=1e-3), "each block keeps as much"


def test_a_temperature_by_the_number_of_slices_costs_a_patient_with_one_less_than_one_number_for_all(
    benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark("slices").main(draws=1, patients=60, judged=300)
    rows = [list(map(float, line.split())) for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(rows) == 15
    assert all(by_slices < one_number for _, slices, _, one_number, by_slices in rows[:1] + rows[5:6] if slices == 1)


def test_coverage_of_every_figure_is_a_share_of_the_draws(
    benchmark: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    coverage = benchmark("coverage")
    monkeypatch.setattr(coverage, "SIZES", ((12, 12, 12, 12),))
    monkeypatch.setattr(coverage, "SEPARATIONS", (1.0,))
    coverage.main(draws=10, bootstrap=100)
    heads, cells = (line.split() for line in capsys.readouterr().out.splitlines())
    held = dict(zip(reversed(heads), reversed(cells), strict=False))
    assert {"loss", "macro_auc", "auc_last_class", "f1_last_class"} <= held.keys()
    assert all(0.6 <= float(held[name]) <= 1 for name in ("loss", "accuracy", "macro_auc", "auc_last_class"))


def test_the_flops_of_attention_are_counted(benchmark: Any) -> None:
    """Four products of 8 x 8 x 16 multiply-adds forward for two heads; twice that backward; half where it is causal."""
    import torch

    machine = benchmark("machine")
    for causal, share in ((False, 1), (True, 2)):
        query, key, value = (torch.randn(1, 2, 8, 16, requires_grad=True) for _ in range(3))
        attention = partial(torch.nn.functional.scaled_dot_product_attention, query, key, value, is_causal=causal)
        assert machine.flops(lambda attend=attention: attend().sum().backward()) == 3 * (2 * 2 * (2 * 8 * 8 * 16)) // share


@pytest.mark.slow
def test_ingest_measures_every_way_of_reading(
    benchmark: Any, tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark("ingest").main(str(tmp_path), patients=12, source_size=32, size=28, epochs=2)
    figures = figures_of(capsys)
    ways = ("loader", "staged_epoch_1", "staged", "staged_second_trial", "staged_normalised", "in_memory", "streamed")
    assert all(figures[way] > 0 for way in ways)
    assert len(figures["memory"]) == 2, "staged and streamed, each with few and with all patients"
    assert all(min(peaks) >= 0 for peaks in figures["memory"].values())  # sets this small may need no new page


@pytest.mark.slow
def test_overhead_times_both_loops(
    benchmark: Any, tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark("overhead").main(
        str(tmp_path), preset="tiny", patients=12, source_size=32, size=28, batch=64, epochs=2, rounds=1
    )
    figures = figures_of(capsys)
    assert figures["ratio"] > 0 and 0 <= figures["data_wait"] < 1


@pytest.mark.slow
def test_searches_from_one_seed_are_compared(
    benchmark: Any, tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark("search").main(str(tmp_path), seeds=1, trials=2, epochs=2, patients=12, source_size=32, size=28)
    figures = figures_of(capsys)
    (mark,) = figures["marks"]
    for way in ("ours", "ours without the defaults"):
        (found,) = figures[way]["searches"]
        assert 1 <= found["epochs"] <= 4
        assert found["reached"] == (found["val_loss"] <= mark["val_loss"])


def test_text_tower_times_three_ways_to_the_same_features(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("text_tower").main(batch=8, width=64, layers=1, vocabulary=500, steps=1)
    figures = figures_of(capsys)
    assert figures["difference"] < 1e-5
    assert figures["seconds"].keys() == {"captions", "classes", "frozen"} and min(figures["seconds"].values()) > 0


@pytest.mark.slow
def test_features_are_the_scripts_in_every_way(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("features").main(str(tmp_path), patients=4, source_size=32, size=28, hidden=32, layers=1, workers=1)
    figures = figures_of(capsys)
    assert figures["cosine"] > 0.9999 and all(figures[way] > 0 for way in ("script", "batched", "batched bf16"))


def test_retrieval_times_the_same_neighbours(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("retrieval").main(pictures=600, queries=40, width=32, rounds=1)
    figures = figures_of(capsys)
    assert figures["hnsw_recall"] > 0.9 and figures["hnsw_speedup"] > 0
    assert set(figures["seconds"]) == {"bare", "bare, as many more", "strangers", "half known"}


@pytest.mark.slow
def test_pretrain_computes_the_same_loss_in_every_way(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain = benchmark("pretrain")
    shape = pretrain.Shape(vocabulary=2000, hidden=64, layers=1, size=56)
    pretrain.main(shape, samples=4, padded=1024, steps=1, rates="0.5", packed="2048")
    ways = figures_of(capsys)["ways"]
    losses = [ways[way]["loss"] for way in ("upstream", "ordinary", "recipe", "recipe, 2,048 tokens")]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-4), "the ways do not do the same work"
    assert ways["recipe, 50% dropped"]["places"] < ways["recipe"]["places"] < ways["ordinary"]["places"]
    assert ways["recipe, 50% dropped"]["flops"] < ways["recipe"]["flops"] < ways["ordinary"]["flops"]


@pytest.mark.slow
def test_cross_validation_judges_the_same_patients_in_both_ways(
    benchmark: Any, tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", quick_scripts())
    prepared = prepare_phantoms(Folder.at(str(tmp_path)), PhantomSettings(patients=48, size=32, slices=(1, 1)), 28)
    config = tmp_path / "search.yaml"
    config.write_text("trials: 3\nmodel: {preset: tiny}\ntrain: {global_batch: 16, micro_batch: 16, precision: fp32}\n")
    benchmark("cross_validation").main(prepared.folder.uri, str(config), str(tmp_path / "cv"), 1, 1, 1)
    figures = figures_of(capsys)
    assert figures["ours"]["patients"] == figures["plain"]["patients"] > 0
    assert figures["difference"]["low"] <= figures["difference"]["value"] <= figures["difference"]["high"]


def test_a_backbone_that_was_not_trained_gains_nothing(
    benchmark: Any, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    recipe = VitpRecipe(prepared.size)
    for seed, gains in ((0, False), (1, True)):
        torch.manual_seed(seed)
        recipe.export(recipe.build(), tmp_path / str(seed))
        benchmark("backbone").main(str(tmp_path / str(seed)), prepared.folder.uri, bootstrap=10)
        figures = figures_of(capsys)
        assert figures["before"]["queries"] == figures["after"]["queries"] > 0
        assert (figures["difference"]["mAP@5"]["value"] != 0) == gains


@pytest.mark.slow
def test_scale_measures_every_step_at_every_size(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("scale").main(sizes="700,1400")
    figures = figures_of(capsys)
    assert len(figures) == 8
    assert all(seconds > 0 for step in figures.values() for seconds in step["seconds"])


@pytest.fixture
def own_cluster(cluster: None) -> Iterator[None]:
    """For what starts and ends Ray by itself: later tests find theirs again."""
    with quick_workers():
        yield
        connect()


@pytest.mark.slow
def test_workers_share_an_epoch_without_repeats(
    benchmark: Any, own_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark("workers").main(str(tmp_path), systems="lung", counts="2", epochs=2, patients=12)
    (figures,) = figures_of(capsys).values()
    assert (figures["workers"], figures["repeats"], figures["busy"]) == (2, 0.0, 1.0)
    assert figures["rate"] > 0


@pytest.mark.slow
def test_scans_that_are_compared_compute_the_same(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("scan").main(length=48, channels=[8], steps=1)
    figures = figures_of(capsys)
    assert len(figures) == 5, "ours and four others"
    assert all(way["difference"] < 1e-5 and way["seconds"] > 0 for way in figures.values())


@pytest.mark.slow
def test_packing_loses_no_token_and_is_faster_than_padding(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("packing").main(samples=12, hidden=64, layers=1, sequence=1024, steps=1)
    figures = figures_of(capsys)
    assert figures["sequences"] * 1024 * figures["fill_rate"] == pytest.approx(figures["tokens"])
    assert figures["packed_is_faster"] > 1 and 0 < figures["masks_share"] < 1


def test_the_report_writers_ways_have_the_same_loss_and_write_the_same_text(
    benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark("report_writer").main(width=32, layers=1, words=6, size=32, batch=1, steps=1)
    figures = figures_of(capsys)
    assert figures["difference"] < 1e-4
    assert all(rate > 0 for kind in ("samples_per_second", "tokens_per_second") for rate in figures[kind].values())


@pytest.fixture
def reports(tmp_path: Path, cluster: None) -> str:
    """Prepared reports about a few phantom patients."""
    phantom = PhantomSettings(patients=24, size=64, slices=(4, 4), difficulty=0.1)
    return prepare_phantom_reports(Folder.at(str(tmp_path)), phantom).folder.uri


@pytest.mark.slow
def test_reports_judges_the_report_writer_with_each_bridge(
    benchmark: Any, tmp_path: Path, reports: str, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark("reports").main(reports, epochs=1, bridge_epochs=1, storage=str(tmp_path))
    figures = figures_of(capsys)
    judged = {each["kind"]: each for each in figures["judged"]}
    assert [guard["name"] for guard in judged["mamba"]["guards"]] == ["image shuffle", "commonest report"]
    assert judged.keys() == {"mamba", "linear", "attention"}
    assert judged["linear"]["metrics"].keys() == {"bleu", "rouge_l", "finding_f1"} and 0 <= judged["linear"]["apart"] <= 1


@pytest.mark.slow
def test_night_compares_the_guides_grid_with_the_search(
    benchmark: Any, tmp_path: Path, reports: str, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark("night").main(reports, seeds=1, epochs=1, storage=str(tmp_path))
    figures = figures_of(capsys)
    (found,) = figures["searches"]
    assert found["reached"] == (found["val_loss"] <= figures["marks"][0]) and 0 < figures["shares"][0] <= 1
