"""The search: Ray Tune runs the trials of one over one decoded data set, and MLflow gets one child run per trial.

Running the same search again goes on with it: finished trials stay, unfinished ones continue from their checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from ray import tune
from ray.exceptions import RayError
from ray.tune import TuneError

from raymed.cluster import connection as cluster
from raymed.cluster.connection import HEAD
from raymed.data.plan import EpochPlan
from raymed.data.stream import open_reader
from raymed.errors import RunError, StorageError, UserError
from raymed.job.job import resume_command
from raymed.job.library_log import essence
from raymed.language import reworded, say
from raymed.registry.alias import seen_version
from raymed.storage.availability import UNWRITTEN, once, wait_for
from raymed.storage.folder import Folder
from raymed.tracking.tracker import GENERATION, Tracker
from raymed.training.fit import Resources, fit_trial
from raymed.training.frozen import Source, keep_features
from raymed.training.lone_worker import leaves_nothing, suffices
from raymed.training.retention import scratch
from raymed.training.spec import RunSpec
from raymed.training.stop_decisions import Hearing, deciding
from raymed.tuning import card_share, room
from raymed.tuning.budget import Budget
from raymed.tuning.cost import Cost
from raymed.tuning.interrupt import Interrupt
from raymed.tuning.machine_wait import NONE_CAME, MachineWait
from raymed.tuning.progress import Progress
from raymed.tuning.ray_tune import Observer, StudyScheduler, StudySearcher
from raymed.tuning.recorder import Recorder, Watch, parameters
from raymed.tuning.reminder import Reminder
from raymed.tuning.search import TRIALS, Search
from raymed.tuning.storage_watch import StorageWatch
from raymed.tuning.study import JUDGING, SEARCHING, Study
from raymed.tuning.timetable import Timetable
from raymed.tuning.trial_epochs import decisions

log = logging.getLogger("raymed")

Training = Callable[[Observer], Mapping[int, str]]
"""Trains a study's trials until none is left, or the time is over; why those did not end that it lost sight of.
KeyboardInterrupt: told to stop, and runs have saved."""

Trainer = Callable[[Search, Study, Timetable, Resources, int], contextlib.AbstractContextManager[Training]]
"""What trains: each trial with these resources, so many at once."""

NOTES = "tune-"  # begins the names of folders that Ray Tune had in the storage of an earlier raymed


def run_search(search: Search, watch: Watch | None = None, trainer: Trainer | None = None) -> Study:
    """Search until the budget is used up; the study tells how every trial ended.

    Args:
        watch: told of every run's start, epochs and end, with what it reported.
        trainer: in place of Ray Tune.

    Raises:
        UserError: another process runs this search.
    """
    with search.alone():
        return _run(search, watch, trainer or ray_tune)


def _run(search: Search, watch: Watch | None, trainer: Trainer) -> Study:
    search.finish_forgetting()
    for spec in search.specs:
        spec.open_data()  # others may have taken their place before it was noted that these are read
    study, tracker = search.open_study(), search.open_tracker()
    search = search.of_generation(study.generation)
    budget = study.begin(search.enqueue_retries(study))
    if study.phase == SEARCHING:
        card_share.settle(search, budget)
    each, concurrent = room.trial_resources(search)
    Cost.stated(each)  # a mistake in the prices is told now, and not in the morning
    if study.phase != SEARCHING:
        return _already_searched(search, study, budget, tracker, each)
    if study.champion is None:
        study.note_champion(seen_version(tracker, search.model))
    if budget.end:
        log.info("%s", budget.plan)
    if later := search.later_rung(study.warm_up):
        log.info("%s", later)
    for line in filter(None, (room.idle_workers(search, each), room.workers_apart(each))):
        log.warning(line)
    parent = _start_parent(search, tracker, study.generation, each)
    folder, minutes = search.template.folder, search.template.train.storage_minutes
    waiting = once(lambda error: log.warning(UNWRITTEN, folder.uri, error, minutes))
    wait_for(folder.child(TRIALS).make, folder, minutes, waiting)
    wait_for(lambda: _sweep(folder), folder, minutes, waiting)
    timetable = Timetable.of(search, budget)
    with (
        Progress(study, budget, search.label, search.spec_of) as progress,
        trainer(search, study, timetable, each, concurrent) as train,
    ):
        recorder = Recorder(search, tracker, parent, study, progress, watch, each)
        try:
            unfinished = train(recorder.observe)
            if study.mistake:
                raise UserError(study.mistake)
            recorder.settle(unfinished)
            study.enter(JUDGING)
        except KeyboardInterrupt:  # trials under way stay RUNNING in the study: the same command goes on with them
            recorder.interrupt()
            raise
        except Exception as error:
            # MLflow shows nothing as running, unless what is for it cannot be noted, or another process goes on
            with contextlib.suppress(OSError, UserError):
                if search.is_held:
                    recorder.interrupt(f"{essence(str(error))}; the same command goes on")
            raise
        finally:
            recorder.close()
            study.close()
    return study


@contextlib.contextmanager
def ray_tune(search: Search, study: Study, timetable: Timetable, each: Resources, concurrent: int) -> Iterator[Training]:
    """Ray Tune as it trains a study's trials. While entered, signals are for it, and the storage is watched."""
    sources, folder, minutes = _sources(search), search.template.folder, search.template.train.storage_minutes
    with (
        deciding() as stop_decisions,
        Interrupt(stop_decisions) as interrupt,
        StorageWatch(folder, minutes, resume_command(), interrupt.stop, Hearing(stop_decisions).newest) as storage,
        Reminder(stop_decisions, lambda: _decisions(search, study)),
        MachineWait(each, lambda: timetable.is_over(study), timetable.budget.end) as machines,
        scratch(folder, 0) as notes,
    ):

        def train(observe: Observer) -> Mapping[int, str]:
            searcher = StudySearcher(
                study,
                timetable,
                search.run_spec,
                interrupt,
                storage,
                machines,
                room=lambda: room.fitting_runs(each, cluster.resources()),
            )
            alike = len(search.runs) < 2  # listed runs have settings of their own
            scheduler = StudyScheduler(study, timetable, stop_decisions, observe, interrupt, storage, machines, alike)
            trial = tune.with_parameters(
                fit_trial,
                sources=sources,
                each=each,
                stop_decisions=stop_decisions,
                keep_all=search.keep_checkpoints == "all",
            )
            driver = tune.with_resources(trial, _driver(each))
            tuner = _tuner(notes, driver, concurrent, searcher, scheduler, machines, _keeps_processes(search, each))
            try:
                tuner.fit()
            except (TuneError, RayError) as error:
                if (told := in_words(error, storage.absence)) is error:
                    raise
                raise told from error
            except KeyboardInterrupt:
                if storage.gave_up:
                    raise RunError(storage.gave_up) from None
                raise
            if storage.gave_up:
                raise RunError(storage.gave_up)
            if interrupt.told:
                raise KeyboardInterrupt
            if machines.trials and machines.gave_up and not timetable.is_over(study):
                raise RunError(machines.gave_up)
            return dict.fromkeys(machines.trials, NONE_CAME)

        yield train


def in_words(error: Exception, absence: str = "") -> Exception:
    """What a search raises of an error of Ray's; the same one where it has no words for it.

    Args:
        absence: what to tell where the storage is away (`StorageWatch.absence`).
    """
    # Tune wraps what was raised while it asked the study, or told it and the recorder.
    cause = error.__context__ if isinstance(error, TuneError) else error
    if isinstance(cause, StorageError) and absence:
        return RunError(absence)  # a write of this process waited as long as the watch does, and gave up a moment before it
    if isinstance(cause, UserError):
        return cause
    if isinstance(cause, RayError):
        return RunError(
            f"Ray ended in the middle of the search ({essence(str(cause))}): one of its own processes was killed, or its "
            f"machine is gone. Trials under way go on from their checkpoints: {resume_command()}"
        )
    return error


def _sweep(folder: Folder) -> None:
    """Remove what earlier processes left that nobody reads: Ray Tune's notes, and files that a kill left half-written."""
    for name in folder.names():
        if name.startswith(NOTES) or name.endswith(".tmp"):
            with contextlib.suppress(OSError):
                folder.delete(name)


def _decisions(search: Search, study: Study) -> list[tuple[str, int, bool]]:
    """Every decision that is recorded so far: of which run, after which epoch (or step), and whether to stop."""
    with study.at_rest():  # what was decided and is not written yet is nobody's to act on
        decided = [(search.spec_of(trial).name, decisions(trial)) for trial in study.trials]
    return [(name, epoch, bool(reason)) for name, reasons in decided for epoch, reason in reasons.items()]


def _already_searched(search: Search, study: Study, budget: Budget, tracker: Tracker, each: Resources) -> Study:
    """What an earlier process searched to its end; MLflow gets what it lacks."""
    more = say(" A larger --trials, --epochs or --hours, or another --until, goes on.") if search.settings.space else ""
    log.info("%s is at its end: nothing is trained again.%s", search.name, more)
    progress = Progress(study, budget, search.label, search.spec_of)
    recorder = Recorder(search, tracker, _start_parent(search, tracker, study.generation, each), study, progress, None, each)
    try:
        recorder.settle()
    finally:
        recorder.close()
        study.close()
    return study


def _driver(each: Resources) -> dict[str, float]:
    """What a trial's own process occupies: it trains, or only waits for those that do."""
    if suffices(each.workers):
        return {"CPU": each.cpus, "GPU": each.gpus}
    return {"CPU": room.DRIVER_CPUS} | HEAD


def _keeps_processes(search: Search, each: Resources) -> bool:
    """Whether a trial's own process may run the next one; where it trains, not all leave it as it was."""
    searched = "train.zero_stage" in search.settings.space
    return not (suffices(each.workers) and (searched or not all(leaves_nothing(spec.train) for spec in search.specs)))


def _tuner(
    notes: Path,
    train: Callable[..., None],
    concurrent: int,
    searcher: StudySearcher,
    scheduler: StudyScheduler,
    machines: MachineWait,
    keeps_processes: bool,
) -> tune.Tuner:
    """Ray Tune, which asks the study for trials, `concurrent` of them at a time.

    Args:
        notes: where it writes down what nobody reads. Not in the storage: while that is away, it would make its folder anew,
            below the mount point.
        keeps_processes: a trial is run by the process of the last one: a new one takes seconds to import the same.
    """
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
    return tune.Tuner(
        train,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=concurrent,
            reuse_actors=keeps_processes,
            trial_dirname_creator=lambda trial: trial.config["spec"].name,
        ),
        run_config=tune.RunConfig(name="notes", storage_path=str(notes), verbose=0, stop=machines),
    )


def _sources(search: Search) -> dict[str, Source]:
    """The rows of all runs, each prepared data set decoded once, by its URI; with what a frozen part makes of them."""
    specs: dict[str, list[RunSpec]] = {}
    for spec in search.specs:
        specs.setdefault(spec.data, []).append(spec)
    sources = dict[str, Source]()
    for data, same in specs.items():
        prepared = same[0].open_data()
        rows = [spec.all_rows(prepared, whole=search.varies_rows) for spec in same]
        staged = sum(source.size for source in sources.values())
        decoded = open_reader(prepared, np.unique(np.concatenate(rows)), same[0].train.storage_minutes, staged)
        each, concurrent = room.trial_resources(search)
        sources[data] = keep_features(same, decoded, search.varies_rows, each, each.workers * concurrent, staged)
    return sources


def _digest(runs: Mapping[str, RunSpec]) -> str:
    """Names the settings of listed runs."""
    described = {name: spec.settings() for name, spec in runs.items()}
    return hashlib.blake2b(json.dumps(described, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _start_parent(search: Search, tracker: Tracker, generation: str, each: Resources) -> str:
    prepared = search.template.open_data()
    plan: EpochPlan = search.template.plan(prepared, 0)
    settings, paths = parameters(search.template, search.template.settings()) if not search.runs else ({}, {})
    parent = tracker.run(
        search.name,
        search.name,
        tags={
            "raymed.system": search.template.recipe.name,
            "raymed.data": search.template.data,
            "raymed.command": search.command,
            "raymed.objective": f"{search.objective.direction} {search.objective.name}",
            GENERATION: generation,
            **({"raymed.gpus_per_worker": f"{each.gpus:g}"} if each.gpus else {}),
        },
        params={
            "data_digest": prepared.digest,
            "space": {n: repr(d) for n, d in search.settings.space.items()},
            **({"listed_runs": _digest(search.runs)} if search.runs else settings),
        },
        begun_with=paths,
    )
    tracker.input(parent, search.name, prepared.digest, search.template.data, "training")
    log.info(
        "plan: %d %s an epoch in %d steps, %d steps in all%s; left out: %s",
        plan.rows,
        say(search.template.sampling.noun),
        len(plan.batches),
        search.template.total_steps(prepared),
        "" if plan.fill_rate is None else say(", sequences filled to {share:.1%}", share=plan.fill_rate),
        ", ".join(f"{count} {reworded(reason)}" for reason, count in plan.left_out.items()) or say("none"),
    )
    log.info(say("recorded at {tracking}, files lie in {folder}", tracking=tracker.uri, folder=search.template.folder.uri))
    return parent
