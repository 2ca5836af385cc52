"""What came out of CLIP runs: in words, as cv_summary.json for folds, and as figures in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from raymed.data.prepared import Prepared
from raymed.errors import RunError, UserError
from raymed.evaluation import summary
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.figures import confusion, training_history
from raymed.evaluation.intervals import over_folds
from raymed.evaluation.metrics import Evaluation, evaluate, judge_patients
from raymed.evaluation.patients import Patients
from raymed.job.job import Outcome
from raymed.recipes.metric import Metric
from raymed.recipes.recipe import Predictions
from raymed.registry.candidate import DATA_DIGEST
from raymed.storage.folder import Folder
from raymed.systems.clip.checkpoint import LISTS
from raymed.systems.clip.output import FIGURE, RunOutput, write_json
from raymed.systems.clip.result import Result, write_ranking
from raymed.systems.clip.runs import Configuration, Work
from raymed.tracking.tracker import Tracker
from raymed.training.loop import JUDGED_BY
from raymed.training.predictions import last_predictions, read_predictions
from raymed.tuning.study import CHECKPOINT, REASON

SUMMARY, CONFUSION = "cv_summary.json", "confusion_matrix.png"
_SEARCHED = (
    "  {} other runs were validated on these {}: where they chose these settings, the figures flatter. A configuration that "
    "was frozen before, or searched on other data, is judged without that"
)
PER_PATIENT = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc")  # of each fold's best epoch


@dataclass(frozen=True)
class Judged:
    """What the checkpoints of a configuration say of the patients that they were validated on.

    Attributes:
        together: all these patients, by the best checkpoints.
        folds: figures of each best checkpoint's, as `PER_PATIENT` names them; what cannot be formed everywhere is left out.
        last: the same of each run's last epoch; empty where one of them has none that can be read.
        patients: what is said of each.
        judged_by: which of the checkpoints says it, by patient, from 0.
    """

    together: Evaluation
    folds: dict[str, list[float]]
    last: dict[str, list[float]]
    patients: Patients
    judged_by: dict[str, int]

    @classmethod
    def of(cls, prepared: Prepared, checkpoints: Sequence[str], seed: int, runs: Sequence[Folder] = ()) -> Judged:
        """
        Args:
            checkpoints: address of the best checkpoint of each fold, or of the only run.
            runs: the folders of these runs, for their last epochs.
        """
        best = [read_predictions(Folder.at(checkpoint)) for checkpoint in checkpoints]
        last = [predictions for run in runs if (predictions := last_predictions(run)) is not None]
        together = {name: np.concatenate([np.asarray(each[name]) for each in best]) for name in ("row", "logits")}
        patients = Temperature().pool(
            together["logits"], prepared.columns(together["row"], JUDGED_BY), unit=prepared.manifest.unit
        )
        evaluation = evaluate(patients, prepared.labels.names, seed=seed)
        judged_by = {
            str(patient): number
            for number, each in enumerate(best)
            for patient in prepared.columns(np.asarray(each["row"]), ["patient"])["patient"]
        }
        by_last = _by_fold(prepared, last) if len(last) == len(best) else {}
        return cls(evaluation, _by_fold(prepared, best), by_last, patients, judged_by)

    def describe(self) -> dict[str, Any]:
        """Figures with 95 % intervals, of each class too, and who was taken for whom, as plain values."""
        return {
            "patients": {name: asdict(each) for name, each in self.together.metrics.items()},
            "classes": [asdict(each) for each in self.together.classes],
            "confusion": self.together.confusion,
        }

    def record(self, tracker: Tracker, run: str, name: str, folder: Path) -> None:
        """Write the figures into MLflow, and the confusion matrix into the output folder too.

        Args:
            name: of the configuration, put before the names of what is written.
        """
        before = f"{name}/" if name else ""
        tracker.metrics(run, {f"{before}patients_{each}": value for each, value in self.together.flat().items()})
        figure = confusion(self.together, [each.name for each in self.together.classes])
        figure.savefig(folder / CONFUSION)
        tracker.figure(run, figure, before + CONFUSION)


def _by_fold(prepared: Prepared, folds: Sequence[Predictions]) -> dict[str, list[float]]:
    """Figures of what was said of each fold, as `PER_PATIENT` names them."""
    figures = [
        judge_patients(
            np.asarray(each["logits"]), prepared.columns(np.asarray(each["row"]), JUDGED_BY), prepared.labels.names
        )
        for each in folds
    ]
    return {name: [each[name] for each in figures] for name in PER_PATIENT if all(name in each for each in figures)}


def summarise(
    work: Work, outputs: Mapping[str, RunOutput], trials: Mapping[str, FrozenTrial], wrong: Sequence[str]
) -> Outcome:
    """What a training job leaves.

    Args:
        outputs: of each run, by its name; likewise `trials`, how it ended.
        wrong: why some configurations were not trained.

    Raises:
        UserError: some configurations could not be trained; the message tells of all.
        RunError: some runs failed; the message tells of all.
    """
    configurations, search, output, results = work.configurations, work.search, work.output, list(work.finished)
    lines = _trained_before(results)
    figures: dict[str, dict[str, Any]] = {each.name: dict(each.figures) for each in results}
    tracker = search.open_tracker()
    runs = {name: str(tracker.find(search.trial_key(trial))) for name, trial in trials.items()}
    parent = str(tracker.find(search.name))
    for each in configurations:
        folder = output / each.name
        done = [name for name in each.specs if trials[name].state == TrialState.COMPLETE]
        for name in each.specs:
            if name not in done:
                lines.append(f"{name} failed: {trials[name].user_attrs.get(REASON, 'no epoch was completed')}")
        states = {name: trials[name].state.name for name in each.specs}
        found = figures[each.name] = {"output": str(folder), "runs": states}
        if not done:
            continue
        histories = {name: outputs[name].history() for name in done}
        for name, history in histories.items():
            tracker.figure(runs[name], training_history(history), FIGURE)
        # a run that went on from a .pth file and found nothing better has no best checkpoint of its own
        able = [name for name in done if CHECKPOINT in trials[name].user_attrs]
        checkpoints, folders = (
            [trials[name].user_attrs[CHECKPOINT] for name in able],
            [outputs[name].spec.folder for name in able],
        )
        judged = Judged.of(each.prepared, checkpoints, each.options.seed, folders) if able else None
        if judged:
            found |= judged.describe()
            judged.record(tracker, parent if each.options.use_cv else runs[done[0]], each.name, folder)
        if each.options.use_cv:
            numbers = [number for number, name in enumerate(each.specs, start=1) if name in done]
            told = summarise_folds(each, numbers, list(histories.values()), judged)
            write_json(folder / SUMMARY, told)
            before = f"{each.name}/" if each.name else ""
            tracker.metrics(parent, {before + name: value for name, value in told["average_results"].items()})
            tracker.text(parent, (folder / SUMMARY).read_text("utf-8"), before + SUMMARY)
            found["average_results"] = told["average_results"]
        else:
            found |= best_of(histories[done[0]], each.monitor) | {"run_id": runs[done[0]]}
        lines += _lines(each, found, judged, brief=len(configurations) + len(work.finished) > 1)
        if judged and len(done) == len(each.specs):
            by_fold = {patient: number + 1 for patient, number in judged.judged_by.items()} if each.options.use_cv else {}
            classes = each.prepared.labels.names
            results.append(Result(each.name, each.describe(), found, classes, judged.patients, by_fold))
            results[-1].write(output)
        others = tracker.count(DATA_DIGEST, each.prepared.digest) - len(able)
        if each.options.use_cv and others > 0:
            found["other_runs"] = others
            lines.append(_SEARCHED.format(others, f"{each.prepared.manifest.unit}s"))
    failed = [name for name, trial in trials.items() if trial.state != TrialState.COMPLETE]
    lines += [f"not trained: {each}" for each in wrong]
    if any(each.name for each in configurations):
        lines += write_ranking(output, results, [*wrong, *failed])
    if wrong or failed:
        raise (UserError if wrong else RunError)("\n".join(["not everything could be trained", *lines]))
    lines += [tracker.look_at_it, f"files: {output}"]
    data = {"name": search.name, "output": str(output), "tracking_uri": search.tracking_uri}
    return Outcome("\n".join(lines), data | figures.get("", {"configurations": figures}))


def summarise_finished(work: Work, wrong: Sequence[str]) -> Outcome:
    """What is told where every configuration was trained by an earlier job.

    Raises:
        UserError: some configurations could not be trained; the message tells of all.
    """
    lines = [*_trained_before(work.finished), *write_ranking(work.output, work.finished, wrong)]
    if wrong:
        raise UserError("\n".join(["not everything could be trained", *lines, *(f"not trained: {each}" for each in wrong)]))
    figures = {each.name: dict(each.figures) for each in work.finished}
    return Outcome("\n".join([*lines, f"files: {work.output}"]), {"output": str(work.output), "configurations": figures})


def _trained_before(finished: Sequence[Result]) -> list[str]:
    return [f"{each.name}: trained before; its folder holds the result of the same settings" for each in finished]


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
    """The first epoch with the best value of the monitored metric, and its figures."""
    place = history[monitor.name].index(monitor.best(history[monitor.name]))
    figures = {name: history[name][place] for name in ("val_acc", "val_loss")}
    return {"best_epoch": place + 1, "epochs": len(history["val_acc"]), **figures}


def _trained_anew(folds: Mapping[str, Sequence[float]]) -> str:
    """Figures over folds, with the intervals of training and judging anew."""
    return ", ".join(f"{name} {over_folds(values)}" for name, values in folds.items())


def _lines(configuration: Configuration, found: Mapping[str, Any], judged: Judged | None, brief: bool) -> list[str]:
    """What a person is told of a configuration that was trained."""
    title = f"{configuration.name}: " if configuration.name else ""
    if configuration.options.use_cv:
        averages = found["average_results"]

        def spread(name: str, digits: int) -> str:
            return f"{averages[f'avg_{name}']:.{digits}f} ± {averages[f'std_{name}']:.{digits}f}"

        count = sum(state == TrialState.COMPLETE.name for state in found["runs"].values())
        chosen = "where early stopping ended it" if configuration.options.train.patience else "which nothing chose"
        lines = [
            f"{title}{count} folds: best val_acc {spread('best_val_acc', 2)} %; of the last epoch, {chosen}: "
            f"val_acc {spread('val_acc', 2)} %, val_loss {spread('val_loss', 4)}"
        ]
        if judged:
            epochs = {
                f"in the last epoch, {chosen}": judged.last,
                "in the epoch that its fold chose, which flatters": judged.folds,
            }
            lines += [
                f"  per {judged.together.unit}, trained anew, {when}: {_trained_anew(folds)}"
                for when, folds in epochs.items()
                if folds
            ]
        whole = count == len(found["runs"])
        units = f"{configuration.prepared.manifest.unit}s"
        whose = (
            f"{'all' if whole else 'their'} {units}, each judged by the network that was not trained on it, in the epoch "
            "that its fold chose, which flatters"
        )
    else:
        lines = [
            f"{title}best epoch {found['best_epoch']} of {found['epochs']}: "
            f"val_acc {found['val_acc']:.2f} %, val_loss {found['val_loss']:.4f}"
        ]
        whose = f"the validation {configuration.prepared.manifest.unit}s, which chose that epoch: these figures flatter"
    if judged and brief:
        shown = {name: judged.together.metrics[name] for name in PER_PATIENT if name in judged.together.metrics}
        lines.append("  " + ", ".join(f"{name} {summary.show(each)}" for name, each in shown.items()))
    elif judged:
        lines += [f"{whose}:", *(f"  {line}".rstrip() for line in summary.lines(judged.together))]
    if judged and "run_id" in found:
        lines.append(f"calibrate and register it: python jobs/promote.py {found['run_id']}")
    return lines
