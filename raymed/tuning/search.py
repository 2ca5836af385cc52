"""A search: what is searched, or listed, until when, and under which names its study, runs and checkpoints are kept."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from raymed.data.readers import reading
from raymed.errors import UserError
from raymed.language import say
from raymed.recipes.metric import LAST, VAL_LOSS, Metric
from raymed.registry.candidate import Candidate
from raymed.storage import disk
from raymed.storage.availability import wait_for
from raymed.storage.folder import Folder
from raymed.storage.lease import holds, lease
from raymed.tracking.tracker import Tracker
from raymed.training.checkpoint import FIRST_LIST, OUTPUTS, PREDICTIONS, checkpoint_names
from raymed.training.retention import sweep
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget
from raymed.tuning.forgotten import Forgotten
from raymed.tuning.journal import COPY, Journal, generations
from raymed.tuning.run_setting import run_setting, with_run_setting
from raymed.tuning.searched_data import SearchedData
from raymed.tuning.settings import Halving, KeepCheckpoints, SearchSettings
from raymed.tuning.space import Dimension, Value
from raymed.tuning.study import CHECKPOINT, Study

COMPARED = (PREDICTIONS, OUTPUTS, FIRST_LIST)  # what a trial is compared by, and the list that vouches for it

TRIALS = "trials"  # the folder of a search's runs
LISTED = "run"  # the name of a listed run, among a trial's settings


@dataclass(frozen=True)
class Search:
    """A search: the run that every trial is a variation of, what varies, and until when. Or a list of runs, such as folds.

    Attributes:
        template: name (the search's own), storage, data, recipe and settings that trials start from.
        settings: what varies and how trials are stopped.
        budget: when a search ends; listed runs are all trained to their end.
        tracking_uri: MLflow's address.
        command: what was typed, for the report.
        runs: listed runs by name, in place of a space to search.
        keep_checkpoints: see `SystemOptions`.
        data: what trials are trained on, where that is searched; see `specs`.
    """

    template: RunSpec
    settings: SearchSettings
    budget: Budget
    tracking_uri: str
    command: str = ""
    runs: Mapping[str, RunSpec] = field(default_factory=dict)
    keep_checkpoints: KeepCheckpoints = "best"
    data: SearchedData = field(default_factory=SearchedData)

    def __post_init__(self) -> None:
        if self.settings.space and self.runs:
            raise UserError(f"{', '.join(self.runs)} are fixed runs: leave search.space empty, or search without them")
        able = [metric.name for metric in self.template.recipe.metrics if metric.chooses_trial]
        if self.settings.objective not in able:
            raise UserError(
                f"search.objective is {self.settings.objective}: trials of {self.template.recipe.name} are compared by "
                f"one of {', '.join(able)}"
            )
        if self.settings.space and self.template.train.monitor != self.settings.objective:
            raise UserError(f"a search compares trials, and their epochs, by {self.objective.name}: leave train.monitor out")
        chosen_by = {spec.train.monitor for spec in (self.template, *self.runs.values())}
        if not self.settings.space and not chosen_by <= {self.objective.name} and self.objective != VAL_LOSS:
            raise UserError(
                f"search.objective {self.objective.name} compares the trials of a search. A run's best epoch is chosen by "
                f"train.monitor: give --train.monitor {self.objective.name}, and leave search.objective out"
            )
        for name, value in self.defaults.items():
            if not self.settings.space[name].holds(value):
                raise UserError(
                    f"the search begins with {name} {value}, which search.space does not hold: {self.settings.space[name]}. "
                    f"Widen it in a --config file, or give a --{name} within it (two whole numbers hold whole numbers only)"
                )
        for name, value in (item for params in self.settings.first for item in params.items()):
            if name not in self.settings.space or not self.settings.space[name].holds(value):
                raise UserError(f"search.first has {name} {value!r}, which search.space does not hold")
        if self.budget.epochs and self.template.train.validate_steps:
            raise UserError(
                "--epochs limits a search that counts in epochs, and train.validate_steps counts in steps: give --hours"
            )
        if (self.settings.space or len(self.runs) > 1) and self.template.min_workers:
            raise UserError("runs that share the cluster have a fixed number of workers: give --workers without a range")

    @property
    def name(self) -> str:
        return self.template.name

    @property
    def objective(self) -> Metric:
        """What trials are compared by; a run whose last epoch is kept, by how far it got."""
        if self.template.monitor == LAST:
            return LAST
        return next(metric for metric in self.template.recipe.metrics if metric.name == self.settings.objective)

    @property
    def model(self) -> str:
        """The name under which the winner is registered."""
        return f"raymed-{self.template.recipe.name}"

    def open_study(self) -> Study:
        """The search's record."""
        space, halving = self.settings.space, self.halving
        first = self.first if space else []
        if self.runs:
            space, halving = {LISTED: Dimension(choices=tuple(self.runs))}, Halving(first_rung=0)
            first = [{LISTED: name} for name in self.runs]
        folder, minutes = self.template.folder, self.template.train.storage_minutes
        journal = Journal(self.study_path, folder, self.forgotten.generations, minutes, lambda: self.is_held)
        return Study(
            *(journal, self.name, space, first, halving, self.template.seed, self.objective, self.template.train.counted),
            begun_with={"weights": self.weights, "data": self.data_digests},
            warm_up=self.warm_up,
        )

    @property
    def halving(self) -> Halving:
        """With its first rung as validations are counted."""
        asked = self.settings.halving
        return dataclasses.replace(asked, first_rung=asked.first_rung * (self.template.train.validate_steps or 1))

    @property
    def warm_up(self) -> int:
        """The epoch, or validated step, by which the longest warm-up ends that is searched; 0 where none is."""
        if (drawn := self.settings.space.get("train.warmup")) is None:
            return 0
        spec, prepared = self.template, self.template.open_data()
        longest = max(float(each or 0) for each in drawn.choices or (drawn.high,))
        rising, every = round(longest * spec.total_steps(prepared)), spec.train.validate_steps
        return -(-rising // (every or len(spec.plan(prepared, 0).batches))) * (every or 1)

    def later_rung(self, warm_up: int) -> str:
        """Of a first rung that lay inside that warm-up; empty where it does not."""
        asked, later = self.halving, self.halving.after(warm_up)
        if later == asked:
            return ""
        return say(
            "trials are stopped early from {noun} {later} on, not from {noun} {asked}: until then some of them warm up",
            noun=say(self.template.train.noun),
            later=later.first_rung,
            asked=asked.first_rung,
        )

    @property
    def data_digests(self) -> dict[str, str]:
        """What the data hold that runs begin with: a search's, or of each listed run."""
        specs = self.runs or {"": self.template}
        return {name: spec.data_digest for name, spec in specs.items() if spec.data_digest}

    @property
    def weights(self) -> dict[str, str]:
        """What the pretrained weights hold that runs begin with; searched ones are known by their paths."""
        specs, known = self.runs or {"": self.template}, self.template.pretrained
        searched = [choice for dimension in self.settings.space.values() for choice in dimension.choices if choice in known]
        return {
            **{f"{run} {name}".strip(): held for run, spec in specs.items() for name, held in spec.weights.items()},
            **{str(path): known[str(path)] for path in searched},
        }

    @property
    def study_path(self) -> Path:
        """Beside the search's runs, or, where the storage is remote, under the home folder."""
        folder = self.template.folder
        if folder.is_local:
            return Path(folder.path) / "study.journal"
        where = hashlib.blake2b(folder.uri.encode(), digest_size=3).hexdigest()
        return Path.home() / ".raymed" / f"{self.name}-{where}" / "study.journal"

    @property
    def outbox(self) -> Path:
        """Where what MLflow has not got yet is kept."""
        return self.study_path.with_name("outbox.jsonl")

    @property
    def outbox_copy(self) -> Folder | None:
        """Where that is copied to, since the home folder goes with its machine; None where it lies in the storage."""
        return None if self.template.folder.is_local else self.template.folder

    def open_tracker(self) -> Tracker:
        return Tracker.open(self.tracking_uri, f"raymed-{self.template.recipe.name}")

    def reopen_tracker(self) -> Tracker:
        """As `open_tracker`, after the search: a server that is away is waited for."""
        return Tracker.open_patiently(self.tracking_uri, f"raymed-{self.template.recipe.name}")

    @property
    def has_begun(self) -> bool:
        """Whether an earlier search of this name left a record."""
        is_there = disk.exists(self.study_path) or self.template.folder.exists(COPY)
        return is_there and not self.forgotten.is_unfinished

    @property
    def forgotten(self) -> Forgotten:
        """Earlier searches of this name that are over. A storage that is away is waited for."""
        storage = Folder.at(self.template.storage)
        return wait_for(lambda: Forgotten.read(storage, self.name), storage, self.template.train.storage_minutes)

    @property
    def is_held(self) -> bool:
        """Whether this process holds the search's lease, and nobody has taken it over since.

        Raises:
            OSError: the storage does not answer, or is not there.
        """
        return holds(Folder.at(self.template.storage), self.name)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the search's lease: no other process, on whatever machine, searches, judges, refits or forgets meanwhile. The
        data that its runs read stay, though others are prepared into their folder.

        Raises (on entering):
            UserError: another process holds it.
        """
        with lease(Folder.at(self.template.storage), self.name), ExitStack() as data:
            for uri, digest in {(spec.data, spec.data_digest) for spec in self.specs if spec.data_digest}:
                data.enter_context(reading(uri, digest))
            yield

    def forget(self) -> None:
        """Remove what an earlier search of this name left: its folder, its study and its runs in MLflow.

        Raises:
            UserError: another process runs this search, or the folder is of something else.
        """
        with self.alone():
            forgotten = self.forgotten
            if self.template.folder.names() and not self.has_begun and not forgotten.is_unfinished:
                raise UserError(
                    f"--resume never would remove {self.template.folder.uri}, which is no run's folder: give another --name"
                )
            over = forgotten.begin(generations(self.study_path, self.template.folder))
            over.write(Folder.at(self.template.storage), self.name)
            self.finish_forgetting()

    def finish_forgetting(self) -> None:
        """Remove what a process that was killed left of searches which it was forgetting."""
        forgotten = self.forgotten
        if forgotten.is_unfinished:
            disk.remove(self.study_path)
            disk.remove(self.outbox)
            self.template.folder.delete()
            self.open_tracker().forget(self.name)
            dataclasses.replace(forgotten, is_unfinished=False).write(Folder.at(self.template.storage), self.name)

    def run_name(self, number: int, params: Mapping[str, Value]) -> str:
        """What a trial's run is called; without settings that vary, all trials are tries of one."""
        return str(params[LISTED]) if self.runs else f"trial-{number if params else 0:04d}"

    def run_spec(self, number: int, params: Mapping[str, Value]) -> RunSpec:
        """The run of a trial: the template with the searched settings put in, or a listed run."""
        storage, name = self.template.folder.child(TRIALS).uri, self.run_name(number, params)
        spec = dataclasses.replace(self.runs[name] if self.runs else self.template, name=name, storage=storage)
        if self.runs:
            return spec
        for name, value in params.items():
            spec = spec if name in self.data.configured else with_run_setting(spec, name, value)
        return self.data.put_into(spec, params) if params else spec

    @property
    def specs(self) -> list[RunSpec]:
        """The listed runs; of a search a run on each of the data that its trials use."""
        return list(self.runs.values()) or self.data.specs(self.template)

    def of_generation(self, generation: str) -> Search:
        """With runs that go on from checkpoints of this search only, and not from those of another one under its name."""
        listed = {name: dataclasses.replace(spec, generation=generation) for name, spec in self.runs.items()}
        template = dataclasses.replace(self.template, generation=generation)
        return dataclasses.replace(self, template=template, runs=listed)

    def spec_of(self, trial: FrozenTrial) -> RunSpec:
        """The run of a trial."""
        return self.run_spec(trial.number, trial.params)

    def label(self, trial: FrozenTrial) -> str:
        """What a person calls a trial."""
        return self.run_name(trial.number, trial.params) if self.runs else say("trial {number}", number=trial.number)

    @property
    def defaults(self) -> dict[str, Value]:
        """What is searched, as the configuration has it: the first trial."""
        of_data, template = self.data.configured, self.template
        return {name: of_data[name] if name in of_data else run_setting(template, name) for name in self.settings.space}

    @property
    def varies_rows(self) -> bool:
        """Whether trials differ in the rows they use."""
        return any(name.startswith(f"{self.template.sampling.option}.") for name in self.settings.space)

    @property
    def first(self) -> list[Mapping[str, Value]]:
        """The settings of the trials before anything is drawn: as configured, then the listed ones, each once."""
        listed = [self.defaults, *({**self.defaults, **params} for params in self.settings.first)]
        return [params for place, params in enumerate(listed) if params not in listed[:place]]

    def candidate(self, run_id: str, trial: FrozenTrial) -> Candidate:
        """What a trial left to be judged: its best checkpoint so far, if any."""
        spec = self.spec_of(trial)
        return Candidate(
            run_id,
            trial.user_attrs.get(CHECKPOINT, ""),
            spec.data,
            spec.fold,
            spec.sampling.validation,
            spec.seed,
            spec.data_digest,
        )

    def prune_checkpoints(self, study: Study, champion: FrozenTrial) -> None:
        """Leave of finished trials the checkpoints that are to be kept, or of one only what it is compared by."""
        if self.keep_checkpoints == "all":
            return
        tries: dict[str, list[FrozenTrial]] = {}  # of a run, in its folder
        for trial in filter(lambda trial: trial.state.is_finished(), study.trials):
            tries.setdefault(self.run_name(trial.number, trial.params), []).append(trial)
        for trials in tries.values():
            folder = self.spec_of(trials[0]).folder
            sweep(folder, {trial.user_attrs.get(CHECKPOINT, "").rpartition("/")[2] for trial in trials})
            if self.keep_checkpoints == "champion" and all(trial.number != champion.number for trial in trials):
                for checkpoint in map(folder.child, checkpoint_names(folder)):
                    for part in {*checkpoint.names()} - {*COMPARED}:
                        checkpoint.delete(part)

    def trial_key(self, trial: FrozenTrial) -> str:
        """The key under which MLflow knows a trial."""
        return f"{self.name}/{self.run_name(trial.number, trial.params)}"

    def last_trials(self, study: Study) -> dict[str, FrozenTrial]:
        """Listed runs by name, as they ended last."""
        return {str(trial.params[LISTED]): trial for trial in study.trials}

    def has_succeeded(self, study: Study) -> bool:
        """Whether every listed run, or the only one, was trained to its end; of a search, whether there is a best trial."""
        if self.settings.space:
            return study.best is not None
        last = self.last_trials(study).values() if self.runs else study.trials[-1:]
        return all(trial.state == TrialState.COMPLETE for trial in last)

    def enqueue_retries(self, study: Study) -> Budget:
        """Runs that failed are tried again from their last checkpoint, but for those of a search; the budget holds them."""
        if self.settings.space:
            return self.budget
        if not self.runs:
            if study.trials and study.trials[-1].state == TrialState.FAIL and not study.waiting:
                study.enqueue({})
            return dataclasses.replace(self.budget, trials=max(1, len(study.trials) + len(study.waiting)))
        waiting, last = {str(params[LISTED]) for params in study.waiting}, self.last_trials(study)
        for name in self.runs:
            missing = name not in last  # the search was lost while its runs were put in line
            if name not in waiting and (missing or last[name].state == TrialState.FAIL):
                study.enqueue({LISTED: name})
        return Budget(trials=len(study.trials) + len(study.waiting))
