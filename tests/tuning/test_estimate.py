"""What --dry-run says a run or search would take."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from raymed.data.plan import Draw, SliceSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training.rehearsal import Rehearsal
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget
from raymed.tuning.estimate import describe
from raymed.tuning.execution import Training, run_search
from raymed.tuning.refit import SPLITS, cost_of_epochs
from raymed.tuning.search import Search
from raymed.tuning.settings import SearchSettings


def test_an_offload_without_a_gpu_is_told_before_anything_is_started(prepared: Prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("raymed.cluster.connection.machines", lambda: [{"CPU": 4.0, "GPU": 0.0}])
    monkeypatch.setattr("raymed.cluster.connection.resources", lambda: {"CPU": 4.0, "GPU": 0.0})
    recipe, train = ToyRecipe.for_data(prepared.labels, prepared.size), TrainSettings(offload="cpu")
    template = RunSpec("run", str(tmp_path), prepared.folder.uri, recipe, train)
    with pytest.raises(UserError, match="takes load off a GPU's memory, and there is none"):
        describe(Search(template, SearchSettings(), Budget(trials=1), f"sqlite:///{tmp_path}/mlflow.db"))


@pytest.mark.parametrize(("trials", "at_once"), [(1, 1), (2, 2), (5, 3)])
def test_no_more_runs_are_planned_at_once_than_there_are(prepared: Prepared, tmp_path, monkeypatch, trials, at_once):
    """A single run was said to be two at once, and its time halved; and to have all workers of a range."""
    monkeypatch.setattr("raymed.cluster.connection.machines", lambda: [{"CPU": 4.0, "GPU": 0.0}])
    monkeypatch.setattr(
        "raymed.cluster.connection.resources", lambda: {"CPU": 4.0, "GPU": 0.0}
    )  # also beside the session's Ray
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    train = TrainSettings(global_batch=8, micro_batch=4, norm_group=4)
    template = RunSpec("run", str(tmp_path), prepared.folder.uri, recipe, train, workers=4, min_workers=1)
    search = SearchSettings(cpus_per_worker=1)
    outcome = describe(Search(template, search, Budget(trials=trials), f"sqlite:///{tmp_path}/mlflow.db"))
    assert f"resources  {at_once} at once, each 1 to 4 x 1 CPU\n" in outcome.text
    assert outcome.data["concurrent"] == at_once
    classes = next(line for line in outcome.text.splitlines() if "by class, train + val" in line)
    counts = [each.split()[-3::2] for each in classes.split(": ", 1)[1].split(",")]
    assert len(counts) == 4 and sum(int(train) for train, _ in counts) == 18, "every class of the data is there"


def test_a_plan_says_what_a_night_costs_and_that_workers_lie_apart(prepared: Prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("raymed.cluster.connection.machines", lambda: [{"CPU": 8.0, "node:__internal_head__": 1.0}])
    monkeypatch.setattr("raymed.cluster.connection.resources", lambda: {"CPU": 8.0})
    monkeypatch.setenv("RAYMED_CAPACITY", "CPU=72,GPU=8,MACHINES=8,STORE=8")
    monkeypatch.setenv("RAYMED_PRICES", "head=0.50,GPU=0.45")
    recipe, train = (
        ToyRecipe.for_data(prepared.labels, prepared.size),
        TrainSettings(global_batch=8, micro_batch=4, norm_group=4),
    )
    template = RunSpec("run", str(tmp_path), prepared.folder.uri, recipe, train, workers=2)
    search = Search(template, SearchSettings(), Budget(trials=9, seconds=8 * 3600), f"sqlite:///{tmp_path}/mlflow.db")
    lines = describe(search).text.splitlines()
    assert any(line.startswith("cost       at most 32.80 (head 0.5, 8 GPUs at 0.45 an hour)") for line in lines)
    assert any("the 2 workers of a run lie on 2 machines (1 GPU each)" in line for line in lines)
    assert any("a checkpoint's copies take 0.00 GiB of the machine's memory" in line for line in lines)


def test_a_plan_counts_the_refit_which_is_a_training_without_each_fold_too(prepared: Prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("raymed.cluster.connection.machines", lambda: [{"CPU": 2.0, "GPU": 0.0}])
    monkeypatch.setattr("raymed.cluster.connection.resources", lambda: {"CPU": 2.0, "GPU": 0.0})
    monkeypatch.setattr("raymed.tuning.estimate._rehearse", lambda *given: Rehearsal(1, 60.0, 0, None, 0.0))
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    template = RunSpec("run", str(tmp_path), prepared.folder.uri, recipe, TrainSettings(epochs=2))
    settings, tracking = SearchSettings(cpus_per_worker=1), f"sqlite:///{tmp_path}/mlflow.db"
    search = Search(template, settings, Budget(trials=1, refit="trainval"), tracking)
    told = describe(search).text
    (trial,), (again,) = re.findall(r"([\d.]+) min a trial", told), re.findall(r"at most (\d+) min for the refit", told)
    assert f"for the refit, without each of {prepared.folds} folds too" in told
    assert float(again) / float(trial) == pytest.approx(cost_of_epochs(search, template, SPLITS["trainval"]), rel=0.01)
    assert float(again) > prepared.folds * float(trial)
    assert "for the refit" not in describe(replace(search, budget=Budget(trials=1))).text


def test_workers_that_would_only_idle_are_told_of_in_the_plan_and_where_a_search_runs(
    prepared: Prepared, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("raymed.cluster.connection.machines", lambda: [{"CPU": 9.0, "GPU": 0.0}])
    monkeypatch.setattr("raymed.cluster.connection.resources", lambda: {"CPU": 9.0, "GPU": 0.0})
    monkeypatch.setattr("raymed.tuning.estimate._rehearse", lambda *given: Rehearsal(1, 1.0, 0, None, 0.0))
    recipe, train = ToyRecipe.for_data(prepared.labels, prepared.size), TrainSettings(global_batch=4, norm_group=4)
    template = RunSpec("run", str(tmp_path), prepared.folder.uri, recipe, train, workers=8)
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    search = Search(template, SearchSettings(cpus_per_worker=2), Budget(trials=1), tracking)
    line = "8 workers, 4 slices a step: no faster than 4, so a run takes 4, with 2 CPUs each"
    assert line in describe(search).text

    @contextlib.contextmanager
    def nothing(*given) -> Iterator[Training]:
        yield lambda observe: {}

    run_search(search, trainer=nothing)
    assert sum(line in record.getMessage() for record in caplog.records) == 1


@dataclass(frozen=True)
class OfSources(SliceSettings):
    """Counts what it leaves out by the name of its source, as systems that mix data sets do."""

    def draw(self, prepared: Prepared, parts: list[np.ndarray], seed: int, epoch: int) -> Draw:
        return replace(super().draw(prepared, parts, seed, epoch), left_out={"of {raw} {0} %s: not drawn in this epoch": 3})


@pytest.mark.parametrize(
    ("language", "line"),
    [
        ("", "           left out: 3 of {raw} {0} %s: not drawn in this epoch"),
        ("zh", "           未使用：3 {raw} {0} %s：本轮未抽到"),
    ],
)
def test_a_source_whose_name_holds_braces_is_named_in_the_plan(prepared: Prepared, tmp_path, monkeypatch, language, line):
    """Its name was taken for the place of a value, which ended every plan."""
    monkeypatch.setattr("raymed.cluster.connection.machines", lambda: [{"CPU": 4.0, "GPU": 0.0}])
    monkeypatch.setattr("raymed.cluster.connection.resources", lambda: {"CPU": 4.0, "GPU": 0.0})
    monkeypatch.setattr("raymed.language._asked_for", language)
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    template = RunSpec("run", str(tmp_path), prepared.folder.uri, recipe, TrainSettings(), sampling=OfSources())
    outcome = describe(Search(template, SearchSettings(), Budget(trials=1), f"sqlite:///{tmp_path}/mlflow.db"))
    assert line in outcome.text.splitlines()
