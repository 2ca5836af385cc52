"""What a configuration came to once its runs have ended: figures, files in its folder, its place among the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import TrialState

from raymed.recipes.metric import LAST, Metric
from raymed.systems.clip.checkpoint import LISTS
from raymed.systems.clip.judged import Judged
from raymed.systems.clip.output import RunOutput, write_json
from raymed.systems.clip.result import Result, write_ranking
from raymed.systems.clip.runs import Configuration, Work

SUMMARY = "cv_summary.json"


def conclude(
    configuration: Configuration, outputs: Mapping[str, RunOutput], best: Mapping[str, str], output: Path
) -> tuple[dict[str, Any], Judged | None]:
    """Figures of a configuration's runs, and what they say of the patients that they were validated on, if of any.

    Args:
        outputs: of those runs that came to their end, by name.
        best: address of the best checkpoint of each, where it has one: a run that went on from a .pth file and found
            nothing better has none.
        output: the job's output folder; that of the configuration gets the summary of its folds.
    """
    able = [name for name in outputs if name in best and configuration.monitor != LAST]  # of the others nothing is judged
    checkpoints, folders = [best[name] for name in able], [outputs[name].spec.folder for name in able]
    judged = Judged.of(configuration.prepared, checkpoints, configuration.options.seed, folders) if able else None
    found: dict[str, Any] = judged.describe() if judged else {}
    histories = [each.history() for each in outputs.values()]
    if not configuration.options.use_cv:
        return found | best_of(histories[0], configuration.monitor), judged
    numbers = [number for number, name in enumerate(configuration.specs, start=1) if name in outputs]
    told = summarise_folds(configuration, numbers, histories, judged)
    write_json(output / configuration.name / SUMMARY, told)
    return found | {"average_results": told["average_results"]}, judged


def as_result(configuration: Configuration, found: Mapping[str, Any], judged: Judged) -> Result:
    """What is kept of a configuration whose runs all came to their end."""
    by_fold = {}
    if configuration.options.use_cv:
        by_fold = {patient: number + 1 for patient, number in judged.judged_by.items()}
    classes = configuration.prepared.labels.names
    return Result(configuration.name, configuration.describe(), found, classes, judged.patients, by_fold)


@dataclass(frozen=True, eq=False)
class Ending:
    """What is done as soon as all runs of a configuration have ended, while others are trained.

    Attributes:
        configuration: whose runs they are.
        outputs: of them.
        output: the job's output folder.
        all: every configuration's name and settings, to rank those that have ended.
        not_trained: what is wrong with entries that cannot be trained.
    """

    configuration: Configuration
    outputs: Mapping[str, RunOutput]
    output: Path
    all: Mapping[str, Mapping[str, Any]]
    not_trained: Sequence[str]

    def write(self) -> None:
        """Bring the configuration's files up to date, and rank it among those that have ended so far."""
        best = {name: checkpoint for name, each in self.outputs.items() if (checkpoint := each.best_checkpoint())}
        for name, each in self.outputs.items():
            each.finish(best.get(name))
        found, judged = conclude(self.configuration, self.outputs, best, self.output)
        if judged is None:
            return
        folder = self.output / self.configuration.name
        ended = {"output": str(folder), "runs": dict.fromkeys(self.outputs, TrialState.COMPLETE.name)}
        as_result(self.configuration, ended | found, judged).write(self.output)
        results = [Result.read(self.output, name, config) for name, config in self.all.items()]
        write_ranking(self.output, [each for each in results if each], self.not_trained)


def endings(work: Work, outputs: Mapping[str, RunOutput], not_trained: Sequence[str]) -> list[Ending]:
    """Of a job's configurations, where they are several: of the only one its end is the job's.

    Args:
        outputs: of each run, by its name.
    """
    described = {each.name: each.config for each in work.finished}
    described |= {each.name: each.describe() for each in work.configurations if each.name}
    return [
        Ending(each, {name: outputs[name] for name in each.specs}, work.output, described, not_trained)
        for each in work.configurations
        if each.name
    ]


def summarise_folds(
    configuration: Configuration,
    numbers: Sequence[int],
    histories: Sequence[Mapping[str, Sequence[float]]],
    judged: Judged | None,
) -> dict[str, Any]:
    """The content of cv_summary.json: each fold's last epoch and its best one, mean and population std, all patients.

    Args:
        numbers: of the folds that came to their end, from 1.
        histories: of each of them, as in its history.json.
    """
    monitor = configuration.monitor
    folds: dict[str, list[float]] = {f"fold_{name}": [history[name][-1] for history in histories] for name in LISTS}
    folds["fold_best_val_acc"] = [max(history["val_acc"]) for history in histories]
    if judged:
        folds |= {f"fold_patient_{name}": values for name, values in judged.folds.items()}
        folds |= {f"fold_last_patient_{name}": values for name, values in judged.last.items()}
    averages = {}
    for name, values in folds.items():
        averages[name.replace("fold_", "avg_", 1)] = float(np.mean(values))
        averages[name.replace("fold_", "std_", 1)] = float(np.std(values))
    return {
        "config": configuration.describe(),
        "folds": list(numbers),
        "fold_results": folds | {"fold_best_epoch": [best_of(history, monitor)["best_epoch"] for history in histories]},
        "average_results": averages,
        **(judged.describe() if judged else {}),
    }


def best_of(history: Mapping[str, Sequence[float]], monitor: Metric) -> dict[str, float]:
    """The first epoch with the best value of the monitored metric, and its figures; the last where nobody was validated."""
    if monitor == LAST:
        epochs = len(history["train_loss"])
        return {"best_epoch": epochs, "epochs": epochs, **{name: history[name][-1] for name in ("train_acc", "train_loss")}}
    place = history[monitor.name].index(monitor.best(history[monitor.name]))
    figures = {name: history[name][place] for name in ("val_acc", "val_loss")}
    return {"best_epoch": place + 1, "epochs": len(history["val_acc"]), **figures}
