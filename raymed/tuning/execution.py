"""The search: Ray Tune runs the trials of a night over one decoded data set, and MLflow gets one child run per trial.

Running the same night again goes on with it: finished trials stay, unfinished ones continue from their checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from ray import tune
from ray.exceptions import RayError
from ray.tune import TuneError

from raymed.cluster.connection import HEAD
from raymed.data.plan import EpochPlan
from raymed.data.stream import Staged, Streamed, open_reader
from raymed.errors import RunError, UserError
from raymed.job.job import going_on
from raymed.job.library_log import essence
from raymed.registry.register import alias_version
from raymed.storage.folder import Folder
from raymed.tracking.tracker import GENERATION, Tracker
from raymed.training.fit import Resources, fit_trial
from raymed.training.retention import scratch
from raymed.training.spec import FitSpec
from raymed.training.stop_decisions import Verdicts
from raymed.tuning.budget import Budget
from raymed.tuning.interrupt import Interrupt
from raymed.tuning.progress import Progress
from raymed.tuning.ray_tune import StudyScheduler, StudySearcher
from raymed.tuning.recorder import Recorder, Watch
from raymed.tuning.reminder import Reminder
from raymed.tuning.search import DRIVER_CPUS, TRIALS, Night
from raymed.tuning.storage_watch import StorageWatch
from raymed.tuning.study import DECIDED, JUDGING, SEARCHING, Study
from raymed.tuning.timetable import Timetable

log = logging.getLogger("raymed")

NOTES = "tune-"  # begins the names of folders that Ray Tune had in the storage of an earlier raymed


def run_search(night: Night, watch: Watch | None = None) -> Study:
    """Search until the budget is used up; the study tells how every trial ended.

    Args:
        watch: told of every run's start, epochs and end, with what it reported.

    Raises:
        UserError: another process runs this search.
    """
    with night.alone():
        return _run(night, watch)


def _run(night: Night, watch: Watch | None) -> Study:
    night.finish_forgetting()
    study, tracker = night.open_study(), night.open_tracker()
    night = night.of_generation(study.generation)
    budget = study.begin(night.line_up(study))
    each, concurrent = night.resources()
    if study.phase != SEARCHING:
        return _already_searched(night, study, budget, tracker, each)
    if study.champion is None:
        study.note_champion(alias_version(tracker, night.model))
    if budget.end:
        log.info("%s", budget.plan)
    if idle := night.idle(each):
        log.warning(idle)
    parent = _start_parent(night, tracker, study.generation)
    folder = night.template.folder
    folder.filesystem.create_dir(folder.child(TRIALS).path, recursive=True)
    _sweep(folder)
    verdicts = Verdicts.options(resources=HEAD).remote()  # type: ignore[attr-defined]
    train = tune.with_parameters(
        fit_trial, sources=_sources(night), each=each, verdicts=verdicts, keep_all=night.keep_checkpoints == "all"
    )
    with (
        Progress(study, budget, night.label, night.spec) as progress,
        Interrupt(verdicts) as interrupt,
        StorageWatch(folder, night.template.train.storage_minutes, going_on(sys.argv), interrupt.stop) as storage,
        Reminder(verdicts, lambda: _decisions(night, study)),
        scratch(folder, 0) as notes,
    ):
        recorder = Recorder(night, tracker, parent, study, progress, watch, each)
        timetable = Timetable.of(night, budget)
        searcher = StudySearcher(study, timetable, night.trial, interrupt, storage)
        scheduler = StudyScheduler(study, timetable, verdicts, recorder.observe, interrupt, storage)
        tuner = _tuner(notes, train, concurrent, searcher, scheduler)
        try:
            tuner.fit()
            if interrupt.told:
                raise KeyboardInterrupt
            if study.mistake:
                recorder.interrupt(study.mistake)
                raise UserError(study.mistake)
            recorder.settle()
            study.enter(JUDGING)
        except TuneError as error:  # wraps what was raised while Tune asked the study or told the recorder
            if isinstance(error.__context__, UserError):
                raise error.__context__ from None
            raise
        except RayError as error:
            raise RunError(
                f"Ray ended in the middle of the search ({essence(str(error))}): one of its own processes was killed, or "
                f"its machine is gone. Trials under way go on from their checkpoints: {going_on(sys.argv)}"
            ) from error
        except KeyboardInterrupt:  # trials under way stay RUNNING in the study: the same command goes on with them
            if storage.gave_up:
                raise RunError(storage.gave_up) from None
            recorder.interrupt()
            raise
        finally:
            recorder.close()
            study.close()
    return study


def _sweep(folder: Folder) -> None:
    """Remove what earlier processes left that nobody reads: Ray Tune's notes, and files that a kill left half-written."""
    for name in folder.names():
        if name.startswith(NOTES) or name.endswith(".tmp"):
            with contextlib.suppress(OSError):
                folder.delete(name)


def _decisions(night: Night, study: Study) -> Iterator[tuple[str, int, bool]]:
    """Every decision so far: of which run, after which epoch, and whether to stop."""
    for trial in study.trials:
        for epoch, reason in trial.user_attrs.get(DECIDED, {}).items():
            yield night.spec(trial).name, int(epoch), bool(reason)


def _already_searched(night: Night, study: Study, budget: Budget, tracker: Tracker, each: Resources) -> Study:
    """What an earlier process searched to its end; MLflow gets what it lacks."""
    more = " A larger --trials, --epochs or --hours, or another --until, goes on." if night.search.space else ""
    log.info("%s is at its end: nothing is trained again.%s", night.name, more)
    progress = Progress(study, budget, night.label, night.spec)
    recorder = Recorder(night, tracker, _start_parent(night, tracker, study.generation), study, progress, None, each)
    try:
        recorder.settle()
    finally:
        recorder.close()
        study.close()
    return study


def _tuner(
    notes: Path, train: Callable[..., None], concurrent: int, searcher: StudySearcher, scheduler: StudyScheduler
) -> tune.Tuner:
    """Ray Tune, which asks the study for trials, `concurrent` of them at a time.

    Args:
        notes: where it writes down what nobody reads. Not in the storage: while that is away, it would make its folder anew,
            below the mount point.
    """
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
    return tune.Tuner(
        tune.with_resources(train, {"CPU": DRIVER_CPUS} | HEAD),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,  # a new process for every trial takes three seconds to import what the last one has
            trial_dirname_creator=lambda trial: trial.config["spec"].name,
        ),
        run_config=tune.RunConfig(name="notes", storage_path=str(notes), verbose=0),
    )


def _sources(night: Night) -> dict[str, Staged | Streamed]:
    """The rows of all runs, each prepared data set decoded once, by its URI."""
    specs: dict[str, list[FitSpec]] = {}
    for spec in night.variants.values() or [night.template]:
        specs.setdefault(spec.data, []).append(spec)
    sources = {}
    for data, same in specs.items():
        prepared = same[0].open_data()
        sources[data] = open_reader(prepared, np.unique(np.concatenate([spec.all_rows(prepared) for spec in same])))
    return sources


def _digest(runs: Mapping[str, FitSpec]) -> str:
    """Names the settings of listed runs."""
    described = {name: spec.settings() for name, spec in runs.items()}
    return hashlib.blake2b(json.dumps(described, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _start_parent(night: Night, tracker: Tracker, generation: str) -> str:
    prepared = night.template.open_data()
    plan: EpochPlan = night.template.plan(prepared, 0)
    parent = tracker.run(
        night.name,
        night.name,
        tags={
            "raymed.system": night.template.recipe.name,
            "raymed.data": night.template.data,
            "raymed.command": night.command,
            GENERATION: generation,
        },
        params={
            "data_digest": prepared.digest,
            "space": {n: repr(d) for n, d in night.search.space.items()},
            **({"runs": _digest(night.variants)} if night.variants else night.template.settings()),
        },
    )
    tracker.input(parent, night.name, prepared.digest, night.template.data, "training")
    log.info(
        "plan: %d %s an epoch in %d steps%s; left out: %s",
        plan.rows,
        night.template.sampling.noun,
        len(plan.batches),
        "" if plan.fill_rate is None else f", sequences filled to {plan.fill_rate:.1%}",
        ", ".join(f"{count} {reason}" for reason, count in plan.left_out.items()) or "none",
    )
    return parent
