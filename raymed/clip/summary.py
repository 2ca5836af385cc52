"""What came out of CLIP runs: in words, and for folds as cv_summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from raymed.clip.checkpoint import LISTS
from raymed.clip.output import FIGURE, RunOutput, write_json
from raymed.clip.runs import Configuration
from raymed.data.prepared import Prepared
from raymed.errors import RunError, UserError
from raymed.evaluation.figures import training_history
from raymed.evaluation.metrics import evaluate
from raymed.evaluation.patients import softmax, to_patients
from raymed.job import Outcome
from raymed.storage import Folder
from raymed.training.best import HIGHER_IS_BETTER, Monitor
from raymed.tuning.night import Night
from raymed.tuning.study import CHECKPOINT, REASON

SUMMARY = "cv_summary.json"


def summarise(
    configurations: Sequence[Configuration],
    outputs: Mapping[str, RunOutput],
    trials: Mapping[str, FrozenTrial],
    night: Night,
    output: Path,
    wrong: Sequence[str],
) -> Outcome:
    """What a training job leaves.

    Args:
        outputs: of each run, by its name; likewise `trials`, how it ended.
        output: the job's output folder.
        wrong: why some configurations were not trained.

    Raises:
        UserError: some configurations could not be trained; the message tells of all.
        RunError: some runs failed; the message tells of all.
    """
    lines, figures = [], {}
    tracker = night.open_tracker()
    parent = str(tracker.find(night.name))
    for each in configurations:
        told, figures[each.name] = summarise_runs(each, outputs, trials, output / each.name)
        lines += told
        averages = figures[each.name].get("average_results", {})
        tracker.metrics(parent, {f"{each.name}/{name}".lstrip("/"): value for name, value in averages.items()})
        if averages:
            tracker.text(parent, (output / each.name / SUMMARY).read_text("utf-8"), f"{each.name}/{SUMMARY}".lstrip("/"))
        for name in each.specs:
            if trials[name].state == TrialState.COMPLETE:
                run = str(tracker.find(night.trial_key(trials[name])))
                tracker.figure(run, training_history(outputs[name].history()), FIGURE)
    failed = [name for name, trial in trials.items() if trial.state != TrialState.COMPLETE]
    lines += [f"not trained: {each}" for each in wrong]
    if wrong or failed:
        raise (UserError if wrong else RunError)("\n".join(["not everything could be trained", *lines]))
    lines += [f"look at it: mlflow ui --backend-store-uri {night.tracking_uri}", f"files: {output}"]
    data = {"name": night.name, "output": str(output), "tracking_uri": night.tracking_uri}
    return Outcome("\n".join(lines), data | figures.get("", {"configurations": figures}))


def summarise_runs(
    configuration: Configuration, outputs: Mapping[str, RunOutput], trials: Mapping[str, FrozenTrial], folder: Path
) -> tuple[list[str], dict[str, Any]]:
    """Lines for a person, and the figures; for folds, cv_summary.json is written.

    Args:
        outputs: of each run, by its name; likewise `trials`, how it ended.
        folder: the configuration's own.
    """
    monitor = configuration.options.train.monitor
    title = f"{configuration.name}: " if configuration.name else ""
    done = [name for name in configuration.specs if trials[name].state == TrialState.COMPLETE]
    figures: dict[str, Any] = {
        "output": str(folder),
        "runs": {name: trials[name].state.name for name in configuration.specs},
    }
    lines = [
        f"{name} failed: {trials[name].user_attrs.get(REASON, 'no epoch was completed')}"
        for name in configuration.specs
        if name not in done
    ]
    if not done:
        return lines, figures
    histories = {name: outputs[name].history() for name in done}
    checkpoints = [trials[name].user_attrs[CHECKPOINT] for name in done if CHECKPOINT in trials[name].user_attrs]
    patients = judged(configuration.prepared, checkpoints, configuration.options.seed) if checkpoints else {}
    if configuration.options.use_cv:
        bests = [best_epoch(history, monitor) for history in histories.values()]
        summary = summarise_folds(configuration.describe(), list(histories.values()), bests, patients)
        write_json(folder / SUMMARY, summary)
        average = summary["average_results"]
        lines.append(
            f"{title}{len(done)} folds: best val_acc {average['avg_best_val_acc']:.2f} ± {average['std_best_val_acc']:.2f} "
            f"%, val_loss of the last epoch {average['avg_val_loss']:.4f} ± {average['std_val_loss']:.4f}"
        )
        figures["average_results"] = average
        whose = "all patients, each judged by the fold that has not seen it"
    else:
        (history,) = histories.values()
        best = best_epoch(history, monitor)
        accuracy, loss = history["val_acc"][best - 1], history["val_loss"][best - 1]
        lines.append(f"{title}best epoch {best} of {len(history['val_acc'])}: val_acc {accuracy:.2f} %, val_loss {loss:.4f}")
        figures |= {"best_epoch": best, "val_acc": accuracy, "val_loss": loss, "epochs": len(history["val_acc"])}
        whose = "the validation patients"
    for name in ("accuracy", "macro_auc"):
        if name in patients:
            value, low, high = (patients[name][key] for key in ("value", "low", "high"))
            lines.append(f"  {name:<10} {value:.3f} [{low:.3f}, {high:.3f}]  over {whose}")
    return lines, figures | {"patients": patients}


def summarise_folds(
    config: Mapping[str, Any],
    histories: Sequence[Mapping[str, Sequence[float]]],
    best_epochs: Sequence[int],
    patients: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """The content of cv_summary.json: each fold's last epoch, its best validation accuracy, mean and population std.

    Args:
        histories: of each fold, as in its history.json.
        best_epochs: of each fold.
        patients: figures of all folds' patients together, with 95 % intervals from resampling patients.
    """
    folds = {f"fold_{name}": [history[name][-1] for history in histories] for name in LISTS}
    folds["fold_best_val_acc"] = [max(history["val_acc"]) for history in histories]
    averages = {}
    for name, values in folds.items():
        averages[name.replace("fold_", "avg_", 1)] = float(np.mean(values))
        averages[name.replace("fold_", "std_", 1)] = float(np.std(values))
    return {
        "config": dict(config),
        "fold_results": folds | {"fold_best_epoch": list(best_epochs)},
        "average_results": averages,
        "patients": {name: dict(figures) for name, figures in patients.items()},
    }


def judged(prepared: Prepared, checkpoints: Sequence[str], seed: int) -> dict[str, dict[str, float]]:
    """Figures over the patients that the checkpoints were validated on, with 95 % intervals.

    Args:
        checkpoints: address of the best checkpoint of each fold, or of the only run.
    """
    rows, probabilities = [], []
    for checkpoint in checkpoints:
        with Folder.at(checkpoint).open("predictions.npz") as file, np.load(file) as stored:
            rows.append(stored["row"])
            probabilities.append(softmax(stored["logits"]))
    columns = prepared.columns(np.concatenate(rows), ["patient", "label", "source"])
    patients = to_patients(np.concatenate(probabilities), columns["patient"], columns["label"], columns["source"])
    return {name: asdict(each) for name, each in evaluate(patients, prepared.labels.names, seed=seed).metrics.items()}


def best_epoch(history: Mapping[str, Sequence[float]], monitor: Monitor) -> int:
    """The first epoch with the best value of the monitored metric."""
    choose = np.argmax if HIGHER_IS_BETTER[monitor] else np.argmin
    return int(choose(history[monitor])) + 1
