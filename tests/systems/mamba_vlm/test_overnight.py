"""The overnight search: the guide's grid first, failed runs on no rank, the files that the guide names."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from commands import done
from optuna.trial import TrialState

from raymed.systems.mamba_vlm.overnight import write_overnight
from raymed.systems.mamba_vlm.overnight_options import BATCH, GRID, LR, SPACE, OvernightOptions
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.slices import Reading
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget
from raymed.tuning.search import Search
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension


def small_search(prepared, folder: Path) -> Search:
    train = TrainSettings(lr=1e-4, global_batch=2, micro_batch=2)
    template = RunSpec("n", str(folder), prepared.folder.uri, ReportRecipe(Reading(prepared.image)), train)
    return Search(template, SearchSettings(space=SPACE, first=GRID), Budget(9), f"sqlite:///{folder}/mlflow.db")


def test_settings_of_a_space_of_one_s_own_are_not_the_grid_s() -> None:
    own = OvernightOptions(search=SearchSettings(space={"train.warmup": Dimension(0.0, 0.3)}))
    assert own.completed().train.global_batch == OvernightOptions().train.global_batch == 4
    assert OvernightOptions().completed().train.global_batch == 2, "the first point of the guide's grid"


def test_a_failed_run_is_on_no_rank_and_nothing_is_credited_to_it(prepared, tmp_path: Path) -> None:
    searched = small_search(prepared, tmp_path)
    study = searched.open_study()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "vision_bridge_best_val.pt").write_bytes(b"of an earlier run")
    for state in (TrialState.FAIL, TrialState.COMPLETE):
        number, params = study.ask(searched.budget)
        study.report(number, 1, {"val_loss": 0.0, "best_val_loss": 0.0, "best_epoch": 1})
        study.tell(number, state, "out of memory")
        assert params in GRID
    entries = write_overnight(searched, study, tmp_path / "out")
    assert [entry.rank for entry in entries] == [None, None], "neither left a checkpoint"
    assert not list((tmp_path / "out").glob("vision_bridge_overnight*"))
    assert "failed: out of memory" in (tmp_path / "out" / "overnight_best_summary.txt").read_text()
    board = json.loads((tmp_path / "out" / "overnight_leaderboard.json").read_text())
    assert {row["state"] for row in board} == {"failed: out of memory", "finished"}
    [log] = (tmp_path / "out").glob("overnight_lr0.0001_bs2_*.log")
    assert log.read_text() == "epoch 1 val_loss 0.000000\n"


def test_the_leaderboard_is_headed_by_the_trial_that_the_search_registers_also_where_that_failed_later(
    prepared, tmp_path: Path
) -> None:
    searched, out = small_search(prepared, tmp_path), tmp_path / "out"
    study = searched.open_study()
    for loss, state in ((0.1, TrialState.FAIL), (0.2, TrialState.COMPLETE)):
        number, _ = study.ask(searched.budget)
        model = {"model": str(tmp_path / "removed"), "best_epoch": 1}
        study.report(number, 1, {"val_loss": loss, "best_val_loss": loss, **model})
        study.tell(number, state, "the machine was lost")
    out.mkdir()
    (out / "vision_bridge_best_lr0.0001_bs2.pt").write_bytes(b"written before")
    first, second = write_overnight(searched, study, out)
    assert (first.trial, first.rank, second.rank) == (study.best.number, 1, 2)
    assert first.state.startswith("failed") and first.val_loss == 0.1


def test_files_of_trials_whose_weights_were_removed_since_stay_and_others_are_not_promised(prepared, tmp_path: Path) -> None:
    searched, out = small_search(prepared, tmp_path), tmp_path / "out"
    study = searched.open_study()
    for loss in (0.1, 0.2, 0.3):
        number, _ = study.ask(searched.budget)
        model = {"model": str(tmp_path / "removed"), "best_epoch": 1}
        study.report(number, 1, {"val_loss": loss, "best_val_loss": loss, **model})
        study.tell(number, TrialState.COMPLETE)
    out.mkdir()
    for name in ("vision_bridge_best_lr0.0001_bs4.pt", "vision_bridge_best_lr0.0001_bs2.pt"):
        (out / name).write_bytes(name.encode())
    entries = write_overnight(searched, study, out)
    assert [entry.checkpoint for entry in entries] == [
        "vision_bridge_best_lr0.0001_bs2.pt",
        "vision_bridge_best_lr0.0001_bs4.pt",
        "",
    ]
    assert (out / "vision_bridge_overnight_best.pt").read_bytes() == b"vision_bridge_best_lr0.0001_bs2.pt"


def test_the_four_points_of_the_guide_come_first_in_its_order(prepared, tmp_path: Path) -> None:
    searched = small_search(prepared, tmp_path)
    assert searched.first == list(GRID)
    assert [(params[LR], params[BATCH]) for params in GRID] == [(1e-4, 2), (1e-4, 4), (5e-5, 2), (5e-5, 4)]


def test_flags_mean_what_the_guide_says(tmp_path: Path) -> None:
    typed = OvernightOptions(data="PREPARED", epochs=100)
    options = typed.completed()
    assert (options.train.epochs, options.train.lr, options.train.global_batch) == (100, 1e-4, 2), "the grid's first point"
    assert (options.budget.epochs, options.search.first) == (400, GRID)
    other = dataclasses.replace(typed, train=dataclasses.replace(typed.train, lr=3e-4)).completed()
    assert (other.train.lr, other.train.global_batch) == (3e-4, 4), "what a person says comes before the grid"
    single = dataclasses.replace(typed, no_grid=True).completed()
    assert (single.train.lr, single.train.global_batch) == (1e-4, 4)
    assert not single.search.space and single.budget.trials == 1 and single.train.epochs == 100
    assert OvernightOptions(data="PREPARED").epochs == 300


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "trials"), [(1, 5), (2, 2)])
def test_a_night_on_phantoms_leaves_the_files_and_goes_on_where_it_was(tmp_path: Path, stage: int, trials: int) -> None:
    phantom = ("--phantom.patients", "24", "--phantom.size", "32", "--phantom.slices", "[3,3]")
    words = ("--stage", str(stage), *phantom, "--epochs", "2", "--trials", str(trials), "--json")
    told = done("overnight", tmp_path, *words)
    summary = json.loads(told)
    out = tmp_path / "outputs"
    assert len(summary["entries"]) == trials and summary["entries"][0]["rank"] == 1
    best = torch.load(out / "vision_bridge_overnight_best.pt", weights_only=True)
    assert best["val_loss"] == pytest.approx(summary["entries"][0]["val_loss"], rel=1e-5)
    assert {path.name for path in out.glob("vision_bridge_best_lr*")} >= {
        f"vision_bridge_best_lr{params[LR]}_bs{params[BATCH]}.pt" for params in GRID[:trials]
    }
    with (out / "overnight_leaderboard.csv").open() as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file)]
    assert losses == sorted(losses)
    assert json.loads(done("overnight", tmp_path, *words)) == summary
