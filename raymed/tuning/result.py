"""What comes of a search: who won, what ties with it, the winner assessed and registered, and the report."""

from __future__ import annotations

import _thread
import logging
import math
from datetime import datetime
from importlib.metadata import version

from optuna.trial import FrozenTrial, TrialState

from raymed.data.leak import guard
from raymed.errors import RunError
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.search_summary import DataSummary, SearchSummary, State, TrialSummary
from raymed.job.job import Outcome, resume_command
from raymed.language import in_english, say
from raymed.registry.alias import is_there, known_by
from raymed.registry.assessment import AssessmentSettings
from raymed.registry.candidate import Refit
from raymed.registry.model_card import near_duplicates
from raymed.registry.register import Registered, assess_and_register
from raymed.storage.availability import require_there
from raymed.storage.folder import Folder
from raymed.tracking.tracker import Tracker
from raymed.tuning import room
from raymed.tuning.cost import COST, Cost
from raymed.tuning.importance import importance
from raymed.tuning.refit import SPLITS, train_again
from raymed.tuning.search import Search
from raymed.tuning.storage_watch import StorageWatch
from raymed.tuning.study import BEST_POINT, CHECKPOINT, DONE, REASON, REFITTING, Study
from raymed.tuning.trial_epochs import curve

log = logging.getLogger("raymed")

TIE = "raymed.tie"  # a tag: what it says stands in a column of the table of runs
PACKAGES = ("raymed", "torch", "transformers", "deepspeed", "ray", "optuna", "mlflow")
STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "COMPLETE",
    TrialState.PRUNED: "PRUNED",
    TrialState.FAIL: "FAILED",
    TrialState.RUNNING: "RUNNING",
}


def conclude_search(search: Search, study: Study, refit: str = "none", alias: str | None = None) -> Outcome:
    """Assess and register the best trial, mark what ties with it, and write the report.

    Args:
        refit: train the winner again on train and val (``trainval``) or on every split (``all``) before it is registered.
        alias: see `SearchOptions`.

    Raises:
        RunError: no trial completed an epoch, MLflow lacks the winner's run or the search's, or the storage was away for too
            long.
    """
    search, best = search.of_generation(study.generation), best_trial(search, study)
    tracker = search.reopen_tracker()
    run_ids = {trial.number: tracker.find(search.trial_key(trial)) or "" for trial in study.trials}
    if not run_ids[best.number] or tracker.find(search.name) is None:
        lacking = search.name if run_ids[best.number] else search.label(best)
        raise RunError(
            f"MLflow has no run of {lacking}: it was deleted there, or MLflow was away too long. The same command writes it "
            f"again: {resume_command()}"
        )
    if refit != "none" and study.phase != DONE:
        study.enter(REFITTING)
    again = train_again(search, best, SPLITS[refit]) if refit != "none" else None
    folder, minutes = search.template.folder, search.template.train.storage_minutes
    with StorageWatch(folder, minutes, resume_command(), _thread.interrupt_main) as storage:
        return storage.outlast(lambda: _judge(search, study, best, again, alias, tracker, run_ids))


def _judge(
    search: Search,
    study: Study,
    best: FrozenTrial,
    again: Refit | None,
    alias: str | None,
    tracker: Tracker,
    run_ids: dict[int, str],
) -> Outcome:
    """What `conclude_search` does once nothing is trained any more; done again, it changes nothing."""
    seen = replaceable(search, study, tracker) if alias is None else None
    candidate = search.candidate(run_ids[best.number], best)
    how = AssessmentSettings(workers=room.judging_workers(search))
    if how.workers > 1:
        log.info("judging %s on %d workers", search.label(best), how.workers)
    else:
        log.info("judging %s", search.label(best))
    with in_english():
        found_by = _found_by(search, study, best)
    registered = assess_and_register(tracker, candidate, alias, again, how=how, seen=seen, found_by=found_by)
    others = {
        trial.number: Folder.at(trial.user_attrs[CHECKPOINT])
        for trial in study.trials
        if trial.number != best.number
        and CHECKPOINT in trial.user_attrs
        and search.spec_of(trial).data == candidate.data  # others were validated on other patients
    }
    differences = registered.assessment.differences(study.objective, others)
    ties = [number for number, difference in differences.items() if difference.low is None or difference.low <= 0]
    for number in run_ids:  # of a search that went on, another trial may have won before
        tie = f"not surely worse than trial {best.number}" if number in ties else ""
        if run_ids[number] and tie != tracker.describe(run_ids[number]).tags.get(TIE, ""):
            tracker.tags(run_ids[number], {TIE: tie})
    folder, parent = search.template.folder, str(tracker.find(search.name))
    require_there(folder)  # or the storage is away, and nothing is to be written below its mount point
    for name, content in registered.assessment.files().items():
        folder.write(name, content)
    report, text = registered.assessment.page(
        _summary(search, study, best, registered, differences, ties, run_ids), registered.facts
    )
    folder.write(report, text.encode())
    tracker.text(parent, text, report)
    tracker.metrics(parent, {study.objective.name: study.best_value(best)})
    with in_english():
        tracker.describe_as(parent, _description(search, study, best, registered, ties, run_ids, report))
    search.prune_checkpoints(study, best)
    if alias is None:
        study.note_registered(known_by(tracker.client.get_model_version(registered.name, registered.version)))
    study.enter(DONE)
    return _outcome(search, study, best, registered, ties, f"{folder.uri}/{report}")


def replaceable(search: Search, study: Study, tracker: Tracker) -> str | None:
    """The champion that the winner may take the place of: the search's own version, if it has registered one, else the one
    that it saw at its beginning, see `Study.champion`. Of a database that was set back to before its own, also that one."""
    own = study.registered
    return own if own and is_there(tracker, search.model, own) else study.champion


def _found_by(search: Search, study: Study, best: FrozenTrial) -> str:
    """How the winner was chosen, for its card."""
    return (
        f"The search {search.name}, {search.label(best)}: {study.objective.show(study.best_value(best))} in "
        f"{study.best_point(best)}, the best of {len(study.trials)} trials. It was started with `{search.command}`."
    )


def _description(
    search: Search,
    study: Study,
    best: FrozenTrial,
    registered: Registered,
    ties: list[int],
    run_ids: dict[int, str],
    report: str,
) -> str:
    """What the search's page says, as Markdown: who won, where the report is, and how another trial is taken instead."""
    page = f"#/experiments/{search.open_tracker().experiment_id}/runs/"
    return "\n\n".join(
        [
            f"**Trial {best.number} won** of {len(study.trials)}: {study.objective.show(study.best_value(best))} in "
            f"{study.best_point(best)} ([its page]({page}{run_ids[best.number]})). It is registered as "
            f"`{registered.uri}`, version {registered.version}.",
            *filter(None, [registered.assessment.headline()]),
            *([f"Not surely worse: trials {', '.join(map(str, ties))}."] if ties else []),
            f"Report: `{report}` under Artifacts, and `{search.template.folder.uri}/{report}`.",
            "Another trial instead: `python jobs/promote.py RUN_ID`.",
        ]
    )


def best_trial(search: Search, study: Study) -> FrozenTrial:
    """The best trial by the search's objective.

    Raises:
        RunError: no trial completed an epoch.
    """
    if study.best is None:
        reasons = {trial.user_attrs.get(REASON) or say("stopped before its first epoch") for trial in study.trials}
        why = "; ".join(sorted(reasons)) or say("none was started")
        raise RunError(f"no trial of {search.name} completed an epoch: {why}")
    return study.best


def _summary(
    search: Search,
    study: Study,
    best: FrozenTrial,
    registered: Registered,
    differences: dict[int, Estimate],
    ties: list[int],
    run_ids: dict[int, str],
) -> SearchSummary:
    prepared = search.spec_of(best).open_data()
    started = min(trial.datetime_start or datetime.now() for trial in study.trials)
    ended = max(trial.datetime_complete or datetime.now() for trial in study.trials)
    each, _ = room.trial_resources(search)
    cost = Cost.stated(each)
    return SearchSummary(
        name=search.name,
        system=search.template.recipe.name,
        counted=study.noun,
        model=registered.uri,
        started=started,
        seconds=(ended - started).total_seconds(),
        trials=[
            _trial(study, trial, differences.get(trial.number), trial.number in ties, run_ids[trial.number], cost)
            for trial in study.trials
        ],
        objective=study.objective,
        champion=best.number,
        data=DataSummary(
            source=prepared.manifest.source,
            digest=prepared.digest,
            usage=registered.assessment.usage,
            quarantined=prepared.manifest.quarantined,
            left_out=len(prepared.manifest.left_out),
            near_duplicates=near_duplicates(prepared),
            guard=str(guard(prepared.index, search.template.fold, prepared.manifest.patients_known)),
        ),
        command=search.command,
        looks=registered.facts.looks,
        cost={say(name): took for name, took in cost.of_search(study).items()},
        importance=importance(study.study, search.template.seed),
        versions={name: version(name) for name in PACKAGES},
    )


def _trial(
    study: Study, trial: FrozenTrial, difference: Estimate | None, tie: bool, run_id: str, cost: Cost
) -> TrialSummary:
    value = study.best_value(trial)
    return TrialSummary(
        number=trial.number,
        state=STATES[trial.state],
        params=trial.params,
        curve=[{"epoch": epoch, "value": value} for epoch, value in curve(trial).items()],
        best_epoch=trial.user_attrs.get(BEST_POINT),
        value=value if math.isfinite(value) else None,
        difference=difference,
        tie=tie,
        run_id=run_id,
        reason=trial.user_attrs.get(REASON, ""),
        took=cost.of_trial(trial),
    )


def _outcome(
    search: Search, study: Study, best: FrozenTrial, registered: Registered, ties: list[int], report: str
) -> Outcome:
    assessment = registered.assessment
    states = {state: sum(trial.state.name == state for trial in study.trials) for state in ("COMPLETE", "PRUNED", "FAIL")}
    took = Cost.stated(room.trial_resources(search)[0]).of_search(study)
    units, cost = [f"{value} {say(name)}" for name, value in took.items() if name != COST], took.get(COST)
    lines = [
        say(
            "{count} trials: {finished} finished, {stopped} stopped early, {failed} failed; {took}",
            count=len(study.trials),
            finished=states["COMPLETE"],
            stopped=states["PRUNED"],
            failed=states["FAIL"],
            took=", ".join(units),
        ),
        *([say("cost: {cost}", cost=cost)] if cost else []),
        say(
            "best: trial {number}, {value} in {point}",
            number=best.number,
            value=study.objective.show(study.best_value(best)),
            point=study.best_point(best),
        )
        + (say("; not surely worse: trials {ties}", ties=", ".join(map(str, ties))) if ties else ""),
        *assessment.lines(),
        say("registered: {uri} (version {version})", uri=registered.uri, version=registered.version),
        assessment.next_step(registered.uri, search.tracking_uri),
        search.open_tracker().look_at_it,
        say("report: {report}", report=report),
    ]
    data = {
        "name": search.name,
        "best_trial": best.number,
        study.objective.name: study.best_value(best),
        "ties": ties,
        "model": registered.uri,
        "version": registered.version,
        "tracking_uri": search.tracking_uri,
        "figures": assessment.figures(),
        "states": states,
        "report": report,
    }
    return Outcome("\n".join(filter(None, lines)), data)
