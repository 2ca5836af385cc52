"""What comes of a search: who won, what ties with it, the winner judged and registered, and the report."""

from __future__ import annotations

import logging
import math
from datetime import datetime
from importlib.metadata import version

from optuna.trial import FrozenTrial, TrialState

from raymed.data.leak import guard
from raymed.errors import RunError
from raymed.evaluation import summary
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.metrics import difference_interval
from raymed.evaluation.report import DataSummary, SearchReport, State, TrialSummary, render
from raymed.job.job import Outcome
from raymed.recipes.metric import VAL_LOSS
from raymed.registry.assessment import Refit, validated_patients
from raymed.registry.model_card import near_duplicates
from raymed.registry.register import Registered, assess_and_register
from raymed.tuning.importance import importance
from raymed.tuning.refit import SPLITS, train_again
from raymed.tuning.search import Search
from raymed.tuning.study import BEST_POINT, CHECKPOINT, CURVE, DONE, REASON, REFITTING, SECONDS, Study

log = logging.getLogger("raymed")

PACKAGES = ("raymed", "torch", "transformers", "deepspeed", "ray", "optuna", "mlflow")
STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "COMPLETE",
    TrialState.PRUNED: "PRUNED",
    TrialState.FAIL: "FAILED",
    TrialState.RUNNING: "RUNNING",
}


def conclude_search(search: Search, study: Study, refit: str = "none", alias: str | None = None) -> Outcome:
    """Judge and register the best trial, mark what ties with it, and write the report.

    Args:
        refit: train the winner again on train and val (``trainval``) or on every split (``all``) before it is registered.
        alias: see `SearchOptions`.

    Raises:
        RunError: no trial completed an epoch.
    """
    search, best = search.of_generation(study.generation), best_trial(search, study)
    tracker = search.open_tracker()
    run_ids = {trial.number: tracker.find(search.trial_key(trial)) or "" for trial in study.trials}
    if refit != "none" and study.phase != DONE:
        study.enter(REFITTING)
    again = Refit(train_again(search, best, SPLITS[refit]), SPLITS[refit]) if refit != "none" else None
    seen = study.champion if alias is None else None
    registered = assess_and_register(tracker, search.candidate(run_ids[best.number], best), alias, again, seen=seen)
    differences = compare(search, study, best) if study.objective == VAL_LOSS else {}  # they are compared by that loss
    ties = [number for number, difference in differences.items() if difference.low is None or difference.low <= 0]
    for number in ties:
        tracker.tags(run_ids[number], {"raymed.tie": f"not surely worse than trial {best.number}"})
    folder = search.template.folder
    folder.write("patients.csv", registered.assessment.predictions())
    page = render(_report(search, study, best, registered, differences, ties, run_ids, again))
    folder.write("report.html", page.encode())
    parent = str(tracker.find(search.name))
    tracker.text(parent, page, "report.html")
    tracker.metrics(parent, {study.objective.name: study.best_value(best)})
    tracker.describe_as(parent, _description(search, study, best, registered, ties, run_ids))
    search.prune_checkpoints(study, best)
    study.note_champion(registered.version)
    study.enter(DONE)
    return _outcome(search, study, best, registered, ties)


def _description(
    search: Search, study: Study, best: FrozenTrial, registered: Registered, ties: list[int], run_ids: dict[int, str]
) -> str:
    """What the search's page says, as Markdown: who won, where the report is, and how another trial is taken instead."""
    judged = registered.assessment.test or registered.assessment.validation
    named = [name for name in ("loss", "accuracy", "macro_auc") if name in judged.metrics]
    figures = ", ".join(f"{name} {summary.show(judged.metrics[name])}" for name in named)
    where = "test" if registered.assessment.test else "validation"
    page = f"#/experiments/{search.open_tracker().experiment_id}/runs/"
    return "\n\n".join(
        [
            f"**Trial {best.number} won** of {len(study.trials)}: {study.objective.show(study.best_value(best))} in "
            f"{study.best_point(best)} ([its page]({page}{run_ids[best.number]})). It is registered as "
            f"`{registered.uri}`, version {registered.version}.",
            f"{judged.patients} {where} patients: {figures}.",
            *([f"Not surely worse: trials {', '.join(map(str, ties))}."] if ties else []),
            f"Report: `report.html` under Artifacts, and `{search.template.folder.uri}/report.html`.",
            "Another trial instead: `python jobs/promote.py RUN_ID`.",
        ]
    )


def best_trial(search: Search, study: Study) -> FrozenTrial:
    """The best trial by the search's objective.

    Raises:
        RunError: no trial completed an epoch.
    """
    if study.best is None:
        reasons = {trial.user_attrs.get(REASON, "stopped before its first epoch") for trial in study.trials}
        raise RunError(f"no trial of {search.name} completed an epoch: {'; '.join(sorted(reasons)) or 'none was started'}")
    return study.best


def compare(search: Search, study: Study, best: FrozenTrial) -> dict[int, Estimate]:
    """By trial, how much larger its loss is than the best's over the same patients, each at its own best epoch.

    A trial whose 95 % interval holds zero is not surely worse.

    Raises:
        RunError: the best trial's predictions are damaged; another's are said to be and left out.
    """
    prepared = search.template.open_data()
    winner = validated_patients(best.user_attrs[CHECKPOINT], prepared)
    differences = {}
    for trial in study.trials:
        if trial.number != best.number and CHECKPOINT in trial.user_attrs:
            try:
                patients = validated_patients(trial.user_attrs[CHECKPOINT], prepared)
            except RunError as error:
                log.warning("trial %d is not compared with the best: %s", trial.number, error)
                continue
            differences[trial.number] = difference_interval(patients, winner, seed=search.template.seed)
    return differences


def _report(
    search: Search,
    study: Study,
    best: FrozenTrial,
    registered: Registered,
    differences: dict[int, Estimate],
    ties: list[int],
    run_ids: dict[int, str],
    refit: Refit | None,
) -> SearchReport:
    prepared, assessment = search.template.open_data(), registered.assessment
    manifest = prepared.manifest
    started = min(trial.datetime_start or datetime.now() for trial in study.trials)
    ended = max(trial.datetime_complete or datetime.now() for trial in study.trials)
    each, _ = search.resources()
    hours = sum(trial.user_attrs.get(SECONDS, 0.0) for trial in study.trials) * each.workers / 3600
    notes = ["Probabilities are temperature-scaled: figures are those after that."]
    if refit is not None:
        notes.append(
            f"The registered model was trained again on {' + '.join(refit.splits)}; "
            "the figures belong to the model before that."
        )
    return SearchReport(
        name=search.name,
        system=search.template.recipe.name,
        counted=study.noun,
        model=registered.uri,
        started=started,
        seconds=(ended - started).total_seconds(),
        trials=[
            _summary(study, trial, differences.get(trial.number), trial.number in ties, run_ids[trial.number])
            for trial in study.trials
        ],
        objective=study.objective,
        champion=best.number,
        names=prepared.labels.titles,
        validation=assessment.validation,
        test=assessment.test,
        temperature=assessment.temperature,
        data=DataSummary(
            source=manifest.source,
            digest=prepared.digest,
            usage=assessment.usage,
            quarantined=manifest.quarantined,
            left_out=len(manifest.left_out),
            near_duplicates=near_duplicates(prepared),
            guard=str(guard(prepared.index, search.template.fold)),
        ),
        command=search.command,
        looks=registered.looks,
        hardest=assessment.hardest(prepared),
        hardest_split="test" if assessment.test_patients else "validation",
        cost={f"{study.noun}s": str(study.trained), "GPU hours" if each.gpu else "CPU worker hours": f"{hours:.2f}"},
        importance=importance(study.study, search.template.seed),
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
        best_epoch=trial.user_attrs.get(BEST_POINT),
        value=value if math.isfinite(value) else None,
        difference=difference,
        tie=tie,
        run_id=run_id,
        reason=trial.user_attrs.get(REASON, ""),
    )


def _outcome(search: Search, study: Study, best: FrozenTrial, registered: Registered, ties: list[int]) -> Outcome:
    assessment = registered.assessment
    states = {state: sum(trial.state.name == state for trial in study.trials) for state in ("COMPLETE", "PRUNED", "FAIL")}
    hours = sum(trial.user_attrs.get(SECONDS, 0.0) for trial in study.trials) / 3600
    lines = [
        f"{len(study.trials)} trials: {states['COMPLETE']} finished, {states['PRUNED']} stopped early, "
        f"{states['FAIL']} failed; {study.trained} {study.noun}s, {hours:.2f} worker hours",
        f"best: trial {best.number}, {study.objective.show(study.best_value(best))} in {study.best_point(best)}"
        + (f"; not surely worse: trials {', '.join(map(str, ties))}" if ties else ""),
    ]
    if assessment.test is not None:
        lines += ["test patients:", *(f"  {line}" for line in summary.lines(assessment.test))]
    lines += [
        f"registered: {registered.uri} (version {registered.version})",
        search.open_tracker().look_at_it,
        f"report: {search.template.folder.uri}/report.html",
    ]
    data = {
        "name": search.name,
        "best_trial": best.number,
        study.objective.name: study.best_value(best),
        "ties": ties,
        "model": registered.uri,
        "version": registered.version,
        "tracking_uri": search.tracking_uri,
        "test": assessment.test.flat() if assessment.test else None,
        "states": states,
        "report": f"{search.template.folder.uri}/report.html",
    }
    return Outcome("\n".join(lines), data)
