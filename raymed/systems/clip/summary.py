"""What came out of CLIP runs: in words, as cv_summary.json for folds, and as figures in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from raymed.errors import RunError, UserError
from raymed.evaluation import summary
from raymed.evaluation.figures import training_history
from raymed.evaluation.intervals import over_folds
from raymed.evaluation.metrics import evaluate
from raymed.job.job import Outcome
from raymed.language import say
from raymed.recipes.metric import LAST
from raymed.registry.fold_mean import fold_mean
from raymed.registry.other_runs import OtherRuns
from raymed.systems.clip.conclusion import SUMMARY, as_result, conclude
from raymed.systems.clip.judged import PER_PATIENT, Judged
from raymed.systems.clip.output import FIGURE, RunOutput
from raymed.systems.clip.result import Result, write_ranking
from raymed.systems.clip.runs import Configuration, Work
from raymed.tuning.study import CHECKPOINT, REASON

MEAN = "folds"  # the run of the mean of a cross-validation's networks, and the folder of its checkpoint


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
        for name in done:
            tracker.figure(runs[name], training_history(outputs[name].history()), FIGURE)
        able = [name for name in done if CHECKPOINT in trials[name].user_attrs and each.monitor != LAST]
        best = {name: trials[name].user_attrs[CHECKPOINT] for name in able}
        figured, judged = conclude(each, {name: outputs[name] for name in done}, best, output)
        found |= figured
        others = OtherRuns(0, frozenset())
        if judged:
            judged.record(tracker, parent if each.options.use_cv else runs[done[0]], each.name, folder)
        if each.options.use_cv:
            before = f"{each.name}/" if each.name else ""
            tracker.metrics(parent, {before + name: value for name, value in found["average_results"].items()})
            tracker.text(parent, (folder / SUMMARY).read_text("utf-8"), before + SUMMARY)
            if judged:
                asked_by = [runs[name] for name in able]
                others = OtherRuns.of(tracker, each.prepared, map(str, judged.patients.ids), asked_by)
                found |= {"other_runs": others.count, "other_runs_patients": len(others.patients)}
            if len(able) == len(each.specs):
                candidates = [search.candidate(runs[name], trials[name]) for name in able]
                name, into = f"{each.name}-{MEAN}" if each.name else MEAN, search.template.folder.child(MEAN)
                mean = fold_mean(tracker, candidates, "clip", f"{search.name}/{name}", name, into)
                found["run_id"] = mean.run_id
        else:
            found["run_id"] = runs[done[0]]
        lines += _lines(each, found, judged, others, brief=len(configurations) + len(work.finished) > 1)
        if judged and len(done) == len(each.specs):
            results.append(as_result(each, found, judged))
            results[-1].write(output)
    failed = [name for name, trial in trials.items() if trial.state != TrialState.COMPLETE]
    lines += [say("not trained: {what}", what=each) for each in wrong]
    if any(each.name for each in configurations):
        lines += write_ranking(output, results, [*wrong, *failed])
    if wrong or failed:
        raise (UserError if wrong else RunError)("\n".join(["not everything could be trained", *lines]))
    lines += [tracker.look_at_it, say("files: {output}", output=output)]
    data = {"name": search.name, "output": str(output), "tracking_uri": search.tracking_uri}
    return Outcome("\n".join(lines), data | figures.get("", {"configurations": figures}))


def summarise_finished(work: Work, wrong: Sequence[str]) -> Outcome:
    """What is told where every configuration was trained by an earlier job.

    Raises:
        UserError: some configurations could not be trained; the message tells of all.
    """
    lines = [*_trained_before(work.finished), *write_ranking(work.output, work.finished, wrong)]
    if wrong:
        left = (say("not trained: {what}", what=each) for each in wrong)
        raise UserError("\n".join(["not everything could be trained", *lines, *left]))
    figures = {each.name: dict(each.figures) for each in work.finished}
    text = "\n".join([*lines, say("files: {output}", output=work.output)])
    return Outcome(text, {"output": str(work.output), "configurations": figures})


def _trained_before(finished: Sequence[Result]) -> list[str]:
    return [
        say("{name}: trained before; its folder holds the result of the same settings", name=each.name) for each in finished
    ]


def _trained_anew(folds: Mapping[str, Sequence[float]]) -> str:
    """Figures over folds, with the intervals of training and judging anew."""
    return ", ".join(f"{say(name)} {over_folds(values)}" for name, values in folds.items())


def _unasked(judged: Judged, others: OtherRuns, names: Sequence[str], last_epoch: str) -> list[str]:
    """Whether other runs were validated on the same patients, and the figures of those on whom none was."""
    if not others.count:
        return []
    ids, units = judged.patients.ids.astype(str), say(f"{judged.patients.unit}s")
    left = ~np.isin(ids, sorted(others.patients))
    runs = say("1 other run was") if others.count == 1 else say("{count} other runs were", count=others.count)
    lines = [
        say(
            "  {runs} validated on {count} of these {all} {units}: where they chose these settings, figures of those "
            "{units} flatter",
            runs=runs,
            count=len(others.patients),
            all=len(ids),
            units=units,
        )
    ]
    if not left.any():
        alone = say(
            ". Settings that are searched on a part of the {units} are judged on the others without that", units=units
        )
        return [lines[0] + alone]
    if judged.last_patients is not None:
        rest = evaluate(judged.last_patients.part(left), names)
        shown = {name: rest.metrics[name] for name in (*PER_PATIENT, "loss") if name in rest.metrics}
        figures = ", ".join(f"{say(name)} {summary.show(each)}" for name, each in shown.items())
        lines.append(
            say(
                "  the other {count} {units}, on whom no other run was validated, {when}: {figures}",
                count=rest.patients,
                units=units,
                when=last_epoch,
                figures=figures,
            )
        )
    return lines


def _lines(
    configuration: Configuration, found: Mapping[str, Any], judged: Judged | None, others: OtherRuns, brief: bool
) -> list[str]:
    """What a person is told of a configuration that was trained."""
    title = say("{name}: ", name=configuration.name) if configuration.name else ""
    labels, units = configuration.prepared.labels, say(f"{configuration.prepared.manifest.unit}s")
    if configuration.options.use_cv:
        averages = found["average_results"]

        def spread(name: str, digits: int) -> str:
            return f"{averages[f'avg_{name}']:.{digits}f} ± {averages[f'std_{name}']:.{digits}f}"

        count = sum(state == TrialState.COMPLETE.name for state in found["runs"].values())
        stops = configuration.options.train.patience
        chosen = say("where early stopping ended it") if stops else say("which nothing chose")
        lines = [
            title
            + say(
                "{count} folds: best val_acc {best} %; of the last epoch, {chosen}: val_acc {accuracy} %, val_loss {loss}",
                count=count,
                best=spread("best_val_acc", 2),
                chosen=chosen,
                accuracy=spread("val_acc", 2),
                loss=spread("val_loss", 4),
            )
        ]
        if judged:
            last = say("in the last epoch, {chosen}", chosen=chosen)
            epochs = {last: judged.last, say("in the epoch that its fold chose, which flatters"): judged.folds}
            lines += [
                say(
                    "  per {unit}, trained anew, {when}: {figures}",
                    unit=say(judged.together.unit),
                    when=when,
                    figures=_trained_anew(folds),
                )
                for when, folds in epochs.items()
                if folds
            ]
            lines += _unasked(judged, others, configuration.prepared.labels.names, last)
        whole = count == len(found["runs"])
        whose = say(
            "{all} {units}, each judged by the network that was not trained on it, in the epoch that its fold chose, which "
            "flatters",
            all=say("all") if whole else say("their"),
            units=units,
        )
    elif configuration.monitor == LAST:
        lines = [
            title
            + say(
                "{epochs} epochs, of which the last is kept: train_acc {accuracy:.2f} %, train_loss {loss:.4f}; nobody is "
                "left to judge it, so it is not registered",
                epochs=found["epochs"],
                accuracy=found["train_acc"],
                loss=found["train_loss"],
            )
        ]
    else:
        train = configuration.options.train
        early = found["epochs"] < next(iter(configuration.specs.values())).length(configuration.prepared)
        ended = ""
        if early:
            ended = say(
                ", where early stopping ended it ({patience} epochs without a better {metric})",
                patience=train.patience,
                metric=train.patience_monitor or train.monitor,
            )
        lines = [
            title
            + say(
                "best epoch {best} of {epochs}{ended}: val_acc {accuracy:.2f} %, val_loss {loss:.4f}",
                best=found["best_epoch"],
                epochs=found["epochs"],
                ended=ended,
                accuracy=found["val_acc"],
                loss=found["val_loss"],
            )
        ]
        whose = say("the validation {units}, which chose that epoch: these figures flatter", units=units)
    if judged and brief:
        shown = {name: judged.together.metrics[name] for name in PER_PATIENT if name in judged.together.metrics}
        lines.append("  " + ", ".join(f"{say(name)} {summary.show(each)}" for name, each in shown.items()))
    elif judged:
        lines += [
            say("{whose}:", whose=whose),
            *(f"  {line}".rstrip() for line in summary.lines(judged.together, labels.called)),
        ]
    if judged and "run_id" in found:
        model = say("the mean of its networks") if configuration.options.use_cv else say("it")
        lines.append(say("calibrate and register {model}: python jobs/promote.py {run}", model=model, run=found["run_id"]))
    return lines
