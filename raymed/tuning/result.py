"""The morning after a night: who won, what ties with it, the winner judged and registered, and the report."""

from __future__ import annotations

import logging
import math
from datetime import datetime
from importlib.metadata import version

from optuna.trial import FrozenTrial, TrialState

from raymed.data.leak import guard
from raymed.data.prepared import Prepared
from raymed.errors import RunError
from raymed.evaluation import summary
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.metrics import difference_interval
from raymed.evaluation.patients import Patients, softmax, to_patients
from raymed.evaluation.report import DataSummary, SearchReport, State, TrialSummary, render
from raymed.job.job import Outcome
from raymed.recipes.metric import VAL_LOSS
from raymed.registry.assessment import Refit
from raymed.registry.model_card import near_duplicates
from raymed.registry.register import Registered, judge_and_register
from raymed.storage.folder import Folder
from raymed.training.predictions import read_predictions
from raymed.tuning.importance import importance
from raymed.tuning.refit import SPLITS, train_again
from raymed.tuning.search import Night
from raymed.tuning.study import BEST_EPOCH, CHECKPOINT, CURVE, DONE, REASON, REFITTING, SECONDS, Study

log = logging.getLogger("raymed")

PACKAGES = ("raymed", "torch", "transformers", "deepspeed", "ray", "optuna", "mlflow")
STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "COMPLETE",
    TrialState.PRUNED: "PRUNED",
    TrialState.FAIL: "FAILED",
    TrialState.RUNNING: "RUNNING",
}


def judge_night(night: Night, study: Study, refit: str = "none", alias: str | None = None) -> Outcome:
    """Judge and register the best trial, mark what ties with it, and write the report.

    Args:
        refit: train the winner again on train and val (``trainval``) or on every split (``all``) before it is registered.
        alias: see `SearchOptions`.

    Raises:
        RunError: no trial completed an epoch.
    """
    night, best = night.of_generation(study.generation), best_trial(night, study)
    tracker = night.open_tracker()
    runs = {trial.number: tracker.find(night.trial_key(trial)) or "" for trial in study.trials}
    if refit != "none" and study.phase != DONE:
        study.enter(REFITTING)
    again = Refit(train_again(night, best, SPLITS[refit]), SPLITS[refit]) if refit != "none" else None
    seen = study.champion if alias is None else None
    registered = judge_and_register(tracker, night.candidate(runs[best.number], best), alias, again, seen=seen)
    differences = compare(night, study, best) if study.objective == VAL_LOSS else {}  # they are compared by that loss
    ties = [number for number, difference in differences.items() if difference.low is None or difference.low <= 0]
    for number in ties:
        tracker.tags(runs[number], {"raymed.tie": f"not surely worse than trial {best.number}"})
    folder = night.template.folder
    folder.write("patients.csv", registered.judgement.predictions())
    page = render(_report(night, study, best, registered, differences, ties, runs, again))
    folder.write("report.html", page.encode())
    parent = str(tracker.find(night.name))
    tracker.text(parent, page, "report.html")
    tracker.metrics(parent, {study.objective.name: study.best_value(best)})
    tracker.describe_as(parent, _description(night, study, best, registered, ties, runs))
    night.thin_out(study, best)
    study.note_champion(registered.version)
    study.enter(DONE)
    return _outcome(night, study, best, registered, ties)


def _description(
    night: Night, study: Study, best: FrozenTrial, registered: Registered, ties: list[int], runs: dict[int, str]
) -> str:
    """What the search's page says, as Markdown: who won, where the report is, and how another trial is taken instead."""
    judged = registered.judgement.test or registered.judgement.validation
    named = [name for name in ("loss", "accuracy", "macro_auc") if name in judged.metrics]
    figures = ", ".join(f"{name} {summary.show(judged.metrics[name])}" for name in named)
    where = "test" if registered.judgement.test else "validation"
    page = f"#/experiments/{night.open_tracker().experiment_id}/runs/"
    return "\n\n".join(
        [
            f"**Trial {best.number} won** of {len(study.trials)}: {study.objective.show(study.best_value(best))} in epoch "
            f"{best.user_attrs[BEST_EPOCH]} ([its page]({page}{runs[best.number]})). It is registered as "
            f"`{registered.uri}`, version {registered.version}.",
            f"{judged.patients} {where} patients: {figures}.",
            *([f"Not surely worse: trials {', '.join(map(str, ties))}."] if ties else []),
            f"Report: `report.html` under Artifacts, and `{night.template.folder.uri}/report.html`.",
            "Another trial instead: `python jobs/promote.py RUN_ID`.",
        ]
    )


def best_trial(night: Night, study: Study) -> FrozenTrial:
    """The best trial by the search's objective.

    Raises:
        RunError: no trial completed an epoch.
    """
    if study.best is None:
        reasons = {trial.user_attrs.get(REASON, "stopped before its first epoch") for trial in study.trials}
        raise RunError(f"no trial of {night.name} completed an epoch: {'; '.join(sorted(reasons)) or 'none was started'}")
    return study.best


def compare(night: Night, study: Study, best: FrozenTrial) -> dict[int, Estimate]:
    """By trial, how much larger its loss is than the best's over the same patients, each at its own best epoch.

    A trial whose 95 % interval holds zero is not surely worse.

    Raises:
        RunError: the best trial's predictions are damaged; another's are said to be and left out.
    """
    prepared = night.template.open_data()
    winner = _validation_patients(prepared, best)
    differences = {}
    for trial in study.trials:
        if trial.number != best.number and CHECKPOINT in trial.user_attrs:
            try:
                patients = _validation_patients(prepared, trial)
            except RunError as error:
                log.warning("trial %d is not compared with the best: %s", trial.number, error)
                continue
            differences[trial.number] = difference_interval(patients, winner, seed=night.template.seed)
    return differences


def _validation_patients(prepared: Prepared, trial: FrozenTrial) -> Patients:
    predictions = read_predictions(Folder.at(trial.user_attrs[CHECKPOINT]))
    columns = prepared.columns(predictions["row"], ["patient", "label", "source"])
    return to_patients(softmax(predictions["logits"]), columns["patient"], columns["label"], columns["source"])


def _report(
    night: Night,
    study: Study,
    best: FrozenTrial,
    registered: Registered,
    differences: dict[int, Estimate],
    ties: list[int],
    runs: dict[int, str],
    refit: Refit | None,
) -> SearchReport:
    prepared, judgement = night.template.open_data(), registered.judgement
    manifest = prepared.manifest
    started = min(trial.datetime_start or datetime.now() for trial in study.trials)
    ended = max(trial.datetime_complete or datetime.now() for trial in study.trials)
    each, _ = night.resources()
    hours = sum(trial.user_attrs.get(SECONDS, 0.0) for trial in study.trials) * each.workers / 3600
    notes = ["Probabilities are temperature-scaled: figures are those after that."]
    if refit is not None:
        notes.append(
            f"The registered model was trained again on {' + '.join(refit.splits)}; "
            "the figures belong to the model before that."
        )
    return SearchReport(
        name=night.name,
        system=night.template.recipe.name,
        model=registered.uri,
        started=started,
        seconds=(ended - started).total_seconds(),
        trials=[
            _summary(study, trial, differences.get(trial.number), trial.number in ties, runs[trial.number])
            for trial in study.trials
        ],
        objective=study.objective,
        champion=best.number,
        names=prepared.labels.titles,
        validation=judgement.validation,
        test=judgement.test,
        temperature=judgement.temperature,
        data=DataSummary(
            source=manifest.source,
            digest=prepared.digest,
            usage=judgement.usage,
            quarantined=manifest.quarantined,
            left_out=len(manifest.left_out),
            near_duplicates=near_duplicates(prepared),
            guard=str(guard(prepared.index, night.template.fold)),
        ),
        command=night.command,
        looks=registered.looks,
        hardest=judgement.hardest(prepared),
        hardest_split="test" if judgement.test_patients else "validation",
        cost={"epochs": str(study.epochs), "GPU hours" if each.gpu else "CPU worker hours": f"{hours:.2f}"},
        importance=importance(study.study, night.template.seed),
        versions={name: version(name) for name in PACKAGES},
        notes=notes,
    )


def _summary(study: Study, trial: FrozenTrial, difference: Estimate | None, tie: bool, run_id: str) -> TrialSummary:
    value = study.best_value(trial)
    return TrialSummary(
        number=trial.number,
        state=STATES[trial.state],
        params=trial.params,
        curve=[{"epoch": int(epoch), "value": value} for epoch, value in trial.user_attrs.get(CURVE, {}).items()],
        best_epoch=trial.user_attrs.get(BEST_EPOCH),
        value=value if math.isfinite(value) else None,
        difference=difference,
        tie=tie,
        run_id=run_id,
        reason=trial.user_attrs.get(REASON, ""),
    )


def _outcome(night: Night, study: Study, best: FrozenTrial, registered: Registered, ties: list[int]) -> Outcome:
    judgement = registered.judgement
    states = {state: sum(trial.state.name == state for trial in study.trials) for state in ("COMPLETE", "PRUNED", "FAIL")}
    hours = sum(trial.user_attrs.get(SECONDS, 0.0) for trial in study.trials) / 3600
    lines = [
        f"{len(study.trials)} trials: {states['COMPLETE']} finished, {states['PRUNED']} stopped early, "
        f"{states['FAIL']} failed; {study.epochs} epochs, {hours:.2f} worker hours",
        f"best: trial {best.number}, {study.objective.show(study.best_value(best))} in epoch {best.user_attrs[BEST_EPOCH]}"
        + (f"; not surely worse: trials {', '.join(map(str, ties))}" if ties else ""),
    ]
    if judgement.test is not None:
        lines += ["test patients:", *(f"  {line}" for line in summary.lines(judgement.test))]
    lines += [
        f"registered: {registered.uri} (version {registered.version})",
        night.open_tracker().look_at_it,
        f"report: {night.template.folder.uri}/report.html",
    ]
    data = {
        "name": night.name,
        "best_trial": best.number,
        study.objective.name: study.best_value(best),
        "ties": ties,
        "model": registered.uri,
        "version": registered.version,
        "tracking_uri": night.tracking_uri,
        "test": judgement.test.flat() if judgement.test else None,
        "states": states,
        "report": f"{night.template.folder.uri}/report.html",
    }
    return Outcome("\n".join(lines), data)
