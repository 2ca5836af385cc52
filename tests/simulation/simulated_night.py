"""A simulated night: the command of a search, given again and again until it is done, through everything that befalls it.

The product's own search, study, journal, outbox, lease, recorder, scheduler and checkpoints run over simulated disks,
clocks, MLflow and Ray. What must hold is checked on the way and at the end.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import logging
import math
import os
import random
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import worker_model
from conftest import write_prepared
from disks import Disk, Storages
from faults import Fault, set_clocks, strike
from machines import Background, Host, Process, Stuck, World
from mlflow.exceptions import MlflowException
from mlflow_model import Client, Database
from pyarrow.fs import LocalFileSystem
from pytest import MonkeyPatch
from ray_model import Attempt, Job, ray_model
from setting import Setting
from worker_model import WEIGHTS, Toy, Worker, first_weights, loss, trained

from raymed import clock
from raymed.data import prepared as prepared_data
from raymed.data import readers
from raymed.data.leak import guard
from raymed.data.prepared import MANIFEST, Manifest, MissingError, Prepared, digest_of
from raymed.data.publish import remove_unread
from raymed.errors import RunError, UserError
from raymed.recipes.exported import RECIPE_FILE
from raymed.registry import alias, candidate, register
from raymed.registry.alias import give_alias
from raymed.registry.candidate import CHECKPOINT as CHECKPOINT_TAG
from raymed.registry.candidate import DATA_DIGEST
from raymed.registry.logged_model import LoggedModel
from raymed.storage import disk, heartbeat, holder, lease, mirror
from raymed.storage.folder import Folder
from raymed.tracking import outbox
from raymed.tracking.tracker import KEY, PARENT, Tracker
from raymed.training import checkpoint
from raymed.training.checkpoint import checkpoint_names, verify
from raymed.training.fit import Resources
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning import room
from raymed.tuning.budget import Budget
from raymed.tuning.execution import run_search
from raymed.tuning.journal import COPY
from raymed.tuning.progress import Progress
from raymed.tuning.recorder import STATE, STATUS
from raymed.tuning.result import best_trial, replaceable
from raymed.tuning.search import Search
from raymed.tuning.settings import Halving, SearchSettings
from raymed.tuning.space import Dimension
from raymed.tuning.study import BEST_POINT, CHECKPOINT, DONE, Study
from raymed.tuning.timetable import Timetable
from raymed.tuning.trial_epochs import curve, decisions

NAME, DATA, MODEL_NAME = "night", "/shared/data", "raymed-toy"
COMMANDS = 200  # that a night takes at most, one every 30 s; those that find no storage are not counted
LENGTH = 100_000.0  # and seconds
LEASE = 60.0  # seconds without a heartbeat after which a process is taken for dead


class Violation(AssertionError):  # noqa: N818
    """Something that must hold does not."""


_OPEN: dict[str, pa.Table] = {}  # by digest, indexes of prepared data that are not read anew for every process


@cache
def prepared_files(number: int) -> dict[str, bytes]:
    """Prepared data of some patients, others for each number, as they lie in their folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        write_prepared(folder, patients=16, slices=2, size=2, seed=number)
        index = pq.read_table(folder / "index.parquet")
        names = [f"{name}-{number}" for name in index["id"].to_pylist()]
        index = index.set_column(index.schema.get_field_index("id"), "id", pa.array(names, index.schema.field("id").type))
        sink = io.BytesIO()
        pq.write_table(index, sink)
        manifest = json.loads((folder / MANIFEST).read_bytes())
        digest = digest_of(sink.getvalue())
        name = f"index-{digest[:12]}.parquet"
        manifest |= {"index": name, "digest": digest, "index_digest": digest}
        _OPEN[manifest["index_digest"]] = index.combine_chunks()
        prepared_data._INDEXES.update(_OPEN)
        return {name: sink.getvalue(), MANIFEST: json.dumps(manifest).encode()}


class Night:
    """One night, of a seed. `faults` strike in their order."""

    def __init__(self, seed: int, faults: Sequence[Fault], setting: Setting | None = None) -> None:
        self.seed, self.setting = seed, setting or Setting.of(seed)
        self.world = World(seed, self.setting.hosts)
        self.storages = Storages(self.world, seed)
        self.mlflow = Database(self.world, seed)
        self._faults = list(faults)
        self.mlflow.is_copied = any(fault.what == "set_mlflow_back" for fault in faults)
        set_clocks(self.world.hosts, seed)
        self._head = self.world.hosts[0]
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._jobs: list[Job] = []
        self.saved: dict[str, list[str]] = {}
        self.decided: dict[tuple[str, str, int], bool] = {}
        self.full_until = 0.0
        self.is_done = self.is_excused = self._has_begun = False
        self._commands, self._next_command, self._told_of = 0, self.world.now, set[int]()
        self._unmentioned: set[str] = set()  # runs that a person has deleted, by key
        self._promoted, self._is_promoted = "", False
        self._data = 0
        self._preparing: Process | None = None
        self._acknowledged: tuple[Disk, str, bytes] | None = None  # the record, as it was when a decision was acted on

    # what it runs on

    def install(self, patch: MonkeyPatch) -> None:
        """Put the simulated world in the place of the real one."""
        world, storages = self.world, self.storages
        for name in ("exists", "read", "size", "write", "append", "copy", "rename", "remove", "make", "keep"):
            patch.setattr(disk, name, getattr(storages, name))
        patch.setattr(clock, "now", lambda: world.now + (world.current.host.offset if world.current else 0))
        patch.setattr(clock, "seconds", lambda: world.now)
        patch.setattr(clock, "uptime", lambda: world.now)
        patch.setattr(clock, "sleep", world.sleep)
        patch.setattr(Folder, "at", staticmethod(lambda uri: storages.reach(str(uri))))
        patch.setattr(holder, "myself", self._myself)
        patch.setattr(holder, "has_ended", self._has_ended)
        patch.setattr(holder, "end", lambda code, reason: world.kill(world.current))
        patch.setattr(lease, "_held", _Held(world, "holds"))
        patch.setattr("raymed.storage.folder._marks", _Held(world, "marks"))
        patch.setattr(readers, "_read", _Held(world, "reads"))
        patch.setattr(mirror, "atexit", SimpleNamespace(register=lambda _: None, unregister=lambda _: None))
        background = type("Background", (Background,), {"world": world})
        patch.setattr(heartbeat, "Background", type("Heart", (background,), {"beats": True}))
        for module in (checkpoint, candidate):
            patch.setattr(module, "copy_to_local", storages.copy_to_local)
        for module in (mirror, outbox):
            patch.setattr(module, "Background", background)
        patch.setattr(
            Tracker, "open", staticmethod(lambda uri, name="": Tracker(uri, name, "1", Client(world, self.mlflow)))
        )
        patch.setattr(Manifest, "from_json", _manifest)
        patch.setattr(prepared_data, "digest_of", _digest_of)
        patch.setattr(
            "raymed.tuning.search.reading", lambda *_: nullcontext()
        )  # what is prepared here removes what it replaces
        patch.setattr(RunSpec, "plan", _plan)
        patch.setattr(RunSpec, "usage", _usage)
        patch.setattr(worker_model, "guard", _guard)
        patch.setattr(room, "trial_resources", lambda _: (Resources(1, 1, 1, 0), self.setting.concurrent))
        patch.setattr(Progress, "show", lambda *_: None)  # as with `_silence`
        names = random.Random(self.seed)
        patch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=names.getrandbits(128)))

    def _myself(self) -> dict[str, Any]:
        process = self.world.current
        return {"host": process.host.name, "machine": self._machine(process.host), "pid": process.number, "started": ""}

    def _has_ended(self, other: dict[str, Any]) -> bool | None:
        if other.get("machine") != self._machine(self.world.current.host):
            return None
        return all(process.number != other["pid"] or not process.is_alive for process in self.world.processes)

    def _machine(self, host: Host) -> str:
        return f"{host.name} {host.booted}"

    # how it goes

    def run(self, scratch: Path) -> None:
        """Through the night; once more when it is done, and the power has been cut.

        Raises:
            Violation: something that must hold does not.
        """
        self._scratch = scratch
        self.world.strike, self.world.watch = self._strike, self._watch
        self._write_data(0)
        try:
            self.world.run(lambda: self.is_done)
        except Stuck as error:
            raise Violation(f"the night does not end: {error}") from error
        self._faults.clear()
        self._heal()
        for process in self.world.processes:
            self.world.kill(process)
        for there in (self.storages.shared, *self.storages.own.values()):
            there.lose_power(None, random.Random(self.setting.seed))
        before = outcome_of(self._study())
        self.is_done, self._next_command = False, self.world.now
        self.world.run(lambda: self.is_done)
        for process in self.world.processes:
            self.world.kill(process)
        study = self._study()
        self._require(outcome_of(study) == before, "the same command, given after the end, changed what was there")
        self._check_end(study, before)

    def _write_data(self, number: int) -> None:
        folder = self.storages.shared
        folder.make(DATA)
        for name, content in prepared_files(number).items():
            folder.write(f"{DATA}/{name}", content)
            folder.keep(f"{DATA}/{name}")
        if not self.setting.storage.startswith("s3"):
            folder.make(self.setting.storage)
        for name in ("/shared", DATA):
            folder.keep(name)

    def search(self, digest: str = "") -> Search:
        """As the job makes it of its options, and of the data that are there if it is told of none."""
        setting, digest = self.setting, digest or Prepared.open(DATA).digest
        train = TrainSettings(
            epochs=setting.epochs, global_batch=8, micro_batch=8, lr=1e-3, checkpoint_steps=setting.checkpoint_steps
        )
        template = RunSpec(NAME, setting.storage, DATA, Toy(), train, seed=setting.seed, data_digest=digest)  # type: ignore[arg-type]
        settings = SearchSettings({"train.lr": Dimension(1e-5, 1e-1, log=True)}, halving=Halving(setting.halving, 2))
        return Search(template, settings, Budget(setting.trials), "simulated")

    def _command(self) -> None:
        search = self.search()
        with search.alone():
            self._require_one_writer()
            study = run_search(search, trainer=self._trainer)
            self._conclude(search, study)
        self.is_done = True

    @contextmanager
    def _trainer(
        self, search: Search, study: Study, timetable: Timetable, each: Resources, concurrent: int
    ) -> Iterator[Any]:
        def work(spec: RunSpec, attempt: Attempt) -> None:
            Worker(self.world, spec, attempt, self._scratch, self.saved).work()

        job = Job(self.world, search, study, work, self._scratch, lambda: not self.storages.is_away)
        give = job._give

        def given(name: str, epoch: int, stop: bool) -> None:
            place = (study.generation, name, epoch)
            self._require(self.decided.setdefault(place, stop) == stop, f"a decision changed: {place}, now {stop}")
            path = str(search.study_path)
            record = self.storages.disk(path)
            self._acknowledged = record, path, record.names[path].content
            give(name, epoch, stop)

        job._give, job.give = given, SimpleNamespace(remote=given)  # type: ignore[method-assign]
        for earlier in self._jobs:
            earlier.is_outlived = True
        self._jobs.append(job)
        self._has_begun = True
        self.world.current.is_training = True  # type: ignore[union-attr]
        with ray_model(job, timetable, concurrent) as train:
            yield train

    def _conclude(self, search: Search, study: Study) -> None:
        """What follows a search, as far as it touches what may be lost: the winner's files, its version, the alias."""
        self.world.current.is_training = False  # type: ignore[union-attr]
        search = search.of_generation(study.generation)
        best, tracker = best_trial(search, study), search.open_tracker()
        run = tracker.find(search.trial_key(best)) or ""
        winner = search.candidate(run, best)
        prepared = winner.open_data()
        into = self._scratch / f"judged-{next(_COUNT)}"
        weights = (winner.fetch(winner.checkpoint, into) / RECIPE_FILE).read_text()
        shutil.rmtree(into)
        key = register._key(winner, None, prepared)
        seen = replaceable(search, study, tracker)
        number = register._version(tracker, search.model, key)
        if number is None:
            says = {CHECKPOINT_TAG: winner.checkpoint, WEIGHTS: weights, DATA_DIGEST: prepared.digest}
            number = register._create_version(tracker, search.model, key, run, LoggedModel("", ""), says, "")
        give_alias(tracker, winner, search.model, number, None, seen)
        search.prune_checkpoints(study, best)
        study.note_registered(alias.known_by(tracker.client.get_model_version(search.model, number)))
        study.enter(DONE)
        study.close()

    # who does what

    @property
    def drivers(self) -> list[Process]:
        return [process for process in self.world.processes if process.kind == "driver" and process.is_alive]

    def start_driver(self, host: Host) -> Process:
        return self.world.start("driver", host, self._command, 1.0)

    def may_kill(self, process: Process | None) -> bool:
        """Whether a kill leaves the night's outcome what it is to be."""
        attempt = self._attempt_of(process)
        return process is not None and (attempt is None or attempt.may_be_killed)

    def may_lose(self, host: Host) -> bool:
        """Whether its power may be cut, as `may_kill`: a worker whose search goes with it does not count as lost."""
        there = [process for process in self.world.processes if process.host is host and process.is_alive]
        return any(process.kind == "driver" for process in there) or all(map(self.may_kill, there))

    def _attempt_of(self, process: Process | None) -> Attempt | None:
        attempts = (attempt for job in self._jobs for attempt in job.attempts)
        return next((attempt for attempt in attempts if attempt.worker is process), None)

    def _watch(self) -> None:
        """What goes on beside all processes: Ray, timers, and whoever gives the command again."""
        if self.world.now > 1e6 + LENGTH:
            raise Violation(f"the night does not end; it said last: {self._said}")
        for timer in [timer for timer in self._timers if timer[0] <= self.world.now] if self._timers else ():
            self._timers.remove(timer)
            timer[1]()
        for job in self._jobs:
            job.look()
            if any((attempt.ended or "").startswith("RunError: the worker was lost") for attempt in job.attempts):
                self.is_excused = True
        self._jobs = [job for job in self._jobs if job.driver.is_alive or job.attempts]
        for process in self.world.processes:
            if not process.is_alive and process.number not in self._told_of:
                self._told_of.add(process.number)
                self._look_at(process)
        ours = [process for process in self.drivers if process.host is self._head]
        if not ours and not self.is_done and self.world.now >= self._next_command:
            self._commands += not self.storages.is_away
            if self._commands > COMMANDS:
                raise Violation(f"the night does not end; it said last: {self._said}")
            self.start_driver(self._head)
            self._next_command = self.world.now + 30.0
        times = [timer[0] for timer in self._timers] + ([] if ours or self.is_done else [self._next_command])
        self.world.wake_by = min(times, default=math.inf)

    _said = ""

    def _look_at(self, process: Process) -> None:
        """Once it has ended: a person is told what is wrong, and nothing else may end a process."""
        if process.kind == "driver":
            self._said = process.ended or ""
        if process.error is not None and not isinstance(process.error, UserError | RunError | OSError | MlflowException):
            if isinstance(process.error, Violation):
                raise process.error
            raise Violation(f"a {process.kind} ended with {process.error!r}") from process.error
        if process.is_training and isinstance(process.error, OSError | MissingError):
            raise Violation(f"a storage that was away ended a search: {process.error!r}") from process.error

    def _require_one_writer(self) -> None:
        """But for one that stands still, or was cut off: its heart ends it once it is back."""
        mine, now = self.world.current, self.world.now
        others = [each for each in self.drivers if each is not mine and each.holds]
        inside = [each for each in others if not (each.was_cut or self._is_below(each)) and each.frozen_until <= now]
        assert mine is not None
        if not (mine.was_cut or self._is_below(mine)):
            self._require(not inside, "two processes hold the search's lease")

    def _is_below(self, process: Process) -> bool:
        """Whether it came while the storage was away, which it cannot know, and began below the mount point."""
        return any(str(mark) in self.storages.shared.below for marks in process.marks.values() for mark in marks)

    # faults

    def _strike(self, kind: str, target: Any) -> None:
        process = self.world.current
        assert process is not None
        if process.is_told and process.kind == "driver" and not process.is_training:
            self.world.kill(process)
        if kind in ("write", "write more", "make"):
            self._require_room(str(target))
        for fault in self._faults:
            if fault.moment > self.world.moments:
                break
            if fault.where in ("", kind) and (kind != "object" or fault.what == "kill"):
                self._faults.remove(fault)
                strike(self, fault, kind, target)
                break

    def _require_room(self, path: str) -> None:
        if not path.startswith("/shared"):
            self.world.require_room()
        elif self.world.now < self.full_until and path.startswith("/shared/storage"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self._timers.append((self.world.now + seconds, action))

    def take_storage_away(self, seconds: float) -> None:
        """What holds the search; the data are cached."""
        if seconds > LEASE / 2:
            self._cut_off()
        self.storages.is_away = True
        self.later(seconds, self._bring_storage_back)

    def deny_uploads(self, seconds: float) -> None:
        """To this account, until somebody mends it. Only an object store asks who writes."""
        if seconds > LEASE / 2 and self.setting.storage.startswith("s3"):
            self._cut_off()
        self.storages.store.denied_until = self.world.now + seconds

    def be_slow(self, seconds: float) -> None:
        """In the running process, whose heart beats meanwhile, unless it is what waits."""
        process = self.world.current
        assert process is not None
        if seconds > LEASE / 2 and process.is_beating:
            process.was_cut = True
        self.world.sleep(seconds)

    def _bring_storage_back(self) -> None:
        self.storages.is_away = False

    def bring_mlflow_back(self) -> None:
        self.mlflow.is_away = False

    def _cut_off(self) -> None:
        for process in self.drivers:
            process.was_cut = True

    def cut_power(self, host: Host, draw: random.Random) -> None:
        """A host goes dark, and comes back."""
        self.storages.own[host.name].lose_power(None, draw)
        self.storages.shared.lose_power(host, draw)
        host.booted = self.world.now
        host.off_until = self.world.now + draw.uniform(1, 300)
        self._require_whole()
        for process in [each for each in self.world.processes if each.host is host and each is not self.world.current]:
            self.world.kill(process)
        if self.world.current is not None and self.world.current.host is host:
            self.world.kill(self.world.current)

    def cut_all_power(self, draw: random.Random) -> None:
        self.storages.shared.lose_power(None, draw)
        current = self.world.current
        for host in self.world.hosts:
            if current is None or host is not current.host:
                self.cut_power(host, draw)
        if current is not None:
            self.cut_power(current.host, draw)

    def _require_whole(self) -> None:
        """What was decided is in the record, and of every run the newest checkpoint that was reported is whole."""
        if self._acknowledged is not None:
            record, path, content = self._acknowledged
            there = record.names[path].content if path in record.names else b""
            self._require(there.startswith(content), "a power cut took a decision that was acted on")
        for uri, names in self.saved.items():
            current, self.world.current = self.world.current, None
            away, self.storages.is_away = self.storages.is_away, False
            try:
                if names[-1] not in checkpoint_names(self.storages.reach(uri)):
                    raise Violation(f"a power cut took the checkpoint {names[-1]}, which was reported")
                self._verify(uri, names[-1])
            finally:
                self.world.current, self.storages.is_away = current, away

    def _verify(self, uri: str, name: str) -> None:
        into = self._scratch / f"verified-{next(_COUNT)}"
        start = f"{self.storages.reach(uri).path}/{name}/"
        for path, content in self.storages.files().items():
            if path.startswith(start):
                target = into / path.removeprefix(start)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        try:
            verify(into)
        except (RunError, ValueError, KeyError, OSError) as error:
            raise Violation(f"the checkpoint {name} is not whole: {error}") from error
        finally:
            shutil.rmtree(into, ignore_errors=True)

    def delete_run(self, draw: random.Random) -> None:
        runs = [row for row in self.mlflow.runs.values() if row.stage == "active" and PARENT in row.tags]
        if runs:
            row = draw.choice(runs)
            row.stage = "deleted"
            self._unmentioned.add(row.tags[KEY])

    def set_mlflow_back(self, seconds: float) -> None:
        self.mlflow.set_back(seconds)
        model = self.mlflow.models.get(MODEL_NAME, {"aliases": {}})
        if model["aliases"].get("champion") != self._promoted:
            self._promoted = ""  # what a person did meanwhile is gone, too

    def lose_verdicts(self) -> None:
        for job in self._jobs:
            job.verdicts.clear()
            job.has_lost_verdicts = True

    def change_head(self, draw: random.Random) -> None:
        if len(self.world.hosts) == 1 or self._head is not self.world.hosts[0]:
            return
        lost, self._head = self._head, self.world.hosts[1]
        self.cut_power(lost, draw)

    def prepare_others(self, draw: random.Random) -> None:
        if self._data == 0 and self._is_bound():
            self._data = 1
            self._others = self.world.start("prepare", draw.choice(self.world.hosts), lambda: self._prepare(1))
            self.later(draw.uniform(10, 400), self._prepare_again)

    def _is_bound(self) -> bool:
        """Whether the storage holds what the search began with: one that begins with other data is another night."""
        return any(b"space" in content for path, content in self.storages.files().items() if path.endswith(COPY))

    def _prepare(self, number: int) -> None:
        """As `raymed.data.publish.publish`: the index, the manifest, and then what nobody reads goes, by its own hand."""
        while self._preparing is not None and self._preparing.is_alive:
            self.world.sleep(1.0)  # for the lock on the folder, which its process holds
        self._preparing = self.world.current
        folder, files = Folder.at(DATA), prepared_files(number)
        manifest = Manifest.from_json(files[MANIFEST], MANIFEST)
        folder.write(manifest.index, files[manifest.index])
        if (earlier := Manifest.from_json(folder.read(MANIFEST), MANIFEST)).index != manifest.index:
            folder.write(earlier.earlier_name, earlier.to_json())
        folder.write(MANIFEST, files[MANIFEST])
        remove_unread(folder, manifest)
        self._data = number

    def _prepare_again(self) -> None:
        self.world.kill(self._others)
        content = self.storages.shared.names.get(f"{DATA}/{MANIFEST}")
        if content is None or content.content != prepared_files(0)[MANIFEST] or self._data:
            self.world.start("prepare", self._head, lambda: self._prepare(0))
            self.later(30.0, self._prepare_again)

    def promote(self) -> None:
        """A person gives the alias to a version of an earlier night; to stay where the search has seen another one."""
        number = self.mlflow.add_version(MODEL_NAME, {})
        self.mlflow.models[MODEL_NAME]["aliases"]["champion"] = number
        self._is_promoted = True
        if self._has_begun:
            self._promoted = number

    def _heal(self) -> None:
        self._bring_storage_back()
        self.bring_mlflow_back()
        self.storages.store.heal()
        for host in self.world.hosts:
            host.full_until = 0.0
        self.full_until, self.mlflow.lose_answers, self.mlflow.twice = 0.0, 0, 0
        self.mlflow.fates.clear()

    # what must hold

    def _require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Violation(otherwise)

    def _study(self) -> Study:
        """The record, read as a process on the head reads it."""
        found: list[Study] = []
        reader = self.world.start("reader", self._head, lambda: found.append(self.search(_digest()).open_study()))
        faults, self._faults = self._faults, []
        watch, self.world.watch, self.world.wake_by = self.world.watch, lambda: None, math.inf
        self.world.run(lambda: not reader.is_alive)
        self._faults, self.world.watch = faults, watch
        if not found:
            raise Violation(f"the record cannot be read: {reader.ended}")
        return found[0]

    def _check_end(self, study: Study, outcome: dict[str, Any]) -> None:
        self._require(study.phase == DONE, f"the search is at its end, and its record says {study.phase}")
        self._require(len(study.trials) == self.setting.trials, f"{len(study.trials)} trials of {self.setting.trials}")
        for trial in study.trials:
            expected = expected_curve(_plain(self.setting), trial.params["train.lr"])
            losses = curve(trial)
            where = f"trial {trial.number}: {losses}"
            self._require(losses == {epoch: expected[epoch] for epoch in losses}, f"other losses than undisturbed: {where}")
            self._require(sorted(losses) == list(range(1, len(losses) + 1)), f"an epoch is missing: {where}")
            if CHECKPOINT in trial.user_attrs:
                best = trial.user_attrs.get(BEST_POINT)
                self._require(best == min(losses, key=losses.__getitem__), f"epoch {best} is called the best: {where}")
        if self.setting.concurrent == 1 and not self.is_excused:
            self._require(outcome == undisturbed(_plain(self.setting)), f"another outcome than undisturbed: {outcome}")
        self._check_storage(study)
        self._check_mlflow(study)

    def _check_storage(self, study: Study) -> None:
        claims = ("/shared/storage", f"/shared/storage/{lease.CLAIMS}", DATA)  # of who comes, or prepares, while it is away
        below = {path for path in self.storages.shared.below if path != claims[0] and not path.startswith(claims[1:])}
        self._require(not below, f"written below the mount point: {sorted(below)}")
        run_names = {f"trial-{trial.number:04d}" for trial in study.trials}
        for name in run_names:
            run = self.storages.reach(f"{self.setting.storage}/{NAME}/trials/{name}")
            kept = checkpoint_names(run)
            self._require(len(kept) <= 4, f"{len(kept)} checkpoints of {name} are left")
            self._require(run.names() == kept, f"something lies beside the checkpoints of {name}: {run.names()}")
            if run.uri in self.saved:
                self._verify(run.uri, self.saved[run.uri][-1])
        best = study.best
        assert best is not None
        run = self.storages.reach(best.user_attrs[CHECKPOINT])
        self._require(
            run.read(WEIGHTS).decode() == expected_weights(_plain(self.setting), best),
            "the winner is of other data or settings",
        )
        for trial in study.trials:  # judging reads what each predicted, by its list
            uri, _, name = trial.user_attrs.get(CHECKPOINT, "").rpartition("/")
            if name:
                self._verify(uri, name)

    def _check_mlflow(self, study: Study) -> None:
        active: dict[str, list[Any]] = {}
        for row in self.mlflow.runs.values():
            if row.stage == "active":
                active.setdefault(row.tags.get(KEY, ""), []).append(row)
        for trial in study.trials:
            key = f"{NAME}/trial-{trial.number:04d}"
            if key in self._unmentioned:
                continue
            rows = active.get(key, [])
            self._require(len(rows) == 1, f"MLflow has {len(rows)} runs of {key}")
            (row,) = rows
            said = (row.tags.get(STATE), row.status)
            self._require(
                said == (trial.state.name, STATUS[trial.state.name]), f"MLflow says {said} of {key}: {trial.state}"
            )
            losses = sorted(curve(trial).items())
            shown = sorted((step, value) for name, value, _, step in row.metrics if name == "val_loss")
            self._require(shown == losses, f"MLflow shows {shown} of {key}: {losses}")
        parent = active.get(NAME, [])
        self._require([row.status for row in parent] == ["FINISHED"], f"MLflow shows {len(parent)} runs of the search")
        self._check_registry(study)

    def _check_registry(self, study: Study) -> None:
        model, best = self.mlflow.models[MODEL_NAME], study.best
        assert best is not None
        champion = model["aliases"].get("champion")
        if self._promoted and self._promoted not in self.mlflow.overruled:
            self._require(champion == self._promoted, "a person's champion was replaced")
        keys = [tags[KEY] for tags in model["versions"].values() if tags]
        self._require(len(keys) == len(set(keys)), f"a model is registered twice: {model['versions']}")
        facts = {
            CHECKPOINT_TAG: best.user_attrs[CHECKPOINT],
            WEIGHTS: expected_weights(_plain(self.setting), best),
            DATA_DIGEST: _digest(),
        }
        ours = [number for number, tags in model["versions"].items() if tags and facts.items() <= tags.items()]
        self._require(bool(ours), f"the winner is not registered: {model['versions']}, {facts}")
        if not self._is_promoted:
            self._require(champion in ours, f"champion is version {champion}, and the winner {ours}")


def _digest() -> str:
    """Of the data that the night begins with."""
    return Manifest.from_json(prepared_files(0)[MANIFEST], MANIFEST).digest


# What follows from prepared data and a seed alone, and touches nothing, is computed once for all nights.

_COMPUTED: dict[tuple[Any, ...], Any] = {}


def _once(key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
    if key not in _COMPUTED:
        _COMPUTED[key] = compute()
    return _COMPUTED[key]


def _plan(spec: RunSpec, prepared: Prepared, epoch: int, compute: Callable[..., Any] = RunSpec.plan) -> Any:
    return _once(("plan", prepared.digest, spec.seed, epoch), lambda: compute(spec, prepared, epoch))


def _usage(spec: RunSpec, prepared: Prepared, compute: Callable[..., Any] = RunSpec.usage) -> Any:
    return _once(("usage", prepared.digest, spec.seed), lambda: compute(spec, prepared))


def _manifest(content: bytes, where: str, compute: Callable[..., Manifest] = Manifest.from_json) -> Manifest:
    return _once(("manifest", content), lambda: compute(content, where))


def _digest_of(content: bytes) -> str:
    return _once(("digest", content), lambda: digest_of(content))


def _guard(index: pa.Table, fold: Any) -> None:
    _once(("guard", id(index)), lambda: guard(index, fold))  # of `_OPEN`, which stay


class _Held:
    """As the set, or the dictionary, of what a process holds."""

    def __init__(self, world: World, of: str) -> None:
        """
        Args:
            of: the process's own.
        """
        self._world, self._of = world, of

    def _own(self) -> Any:
        return getattr(self._world.current, self._of)

    def __contains__(self, each: Any) -> bool:
        return each in self._own()

    def __getitem__(self, name: str) -> Any:
        return self._own()[name]

    def __setitem__(self, name: str, each: Any) -> None:
        self._own()[name] = each

    def get(self, name: str, otherwise: Any) -> Any:
        return self._own().get(name, otherwise)

    def pop(self, name: str, otherwise: Any) -> Any:
        return self._own().pop(name, otherwise)

    def add(self, each: Any) -> None:
        self._own().add(each)

    def discard(self, each: Any) -> None:
        self._own().discard(each)


_COUNT = itertools.count()


def outcome_of(study: Study) -> dict[str, Any]:
    """What a study says of every trial."""
    return {
        str(trial.number): (
            trial.params,
            trial.state.name,
            curve(trial),
            {epoch: bool(reason) for epoch, reason in decisions(trial).items()},
        )
        for trial in study.trials
    }


def run_night(
    seed: int, faults: Sequence[Fault], setting: Setting | None = None, plant: Callable[[MonkeyPatch], None] | None = None
) -> Night:
    """Simulate a night.

    Args:
        plant: puts a mistake into the product.

    Raises:
        Violation: something that must hold does not.
    """
    for number in (0, 1):
        prepared_files(number)  # while there is a real disk
    night = Night(seed, faults, setting)
    with _silence():
        if night.setting.concurrent == 1:
            undisturbed(_plain(night.setting))  # while the product is as it is
        with tempfile.TemporaryDirectory(dir=_memory(), prefix="night-") as scratch, MonkeyPatch.context() as patch:
            night.install(patch)
            if plant is not None:
                plant(patch)
            night.run(Path(scratch))
    return night


@contextmanager
def _silence() -> Iterator[None]:
    """What a search would tell a person is told to nobody."""
    logger = logging.getLogger("raymed")
    before, logger.disabled = logger.disabled, True  # a level would clear what all loggers have looked up
    try:
        yield
    finally:
        logger.disabled = before


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _plain(setting: Setting) -> Setting:
    """The setting of a night whose outcome is the same: where it is stored, and on how many hosts, changes nothing."""
    return replace(setting, storage="/shared/storage", hosts=1)


@cache
def undisturbed(setting: Setting) -> dict[str, Any]:
    """The outcome of a night without faults."""
    night = Night(0, [], setting)
    night.setting = setting
    with tempfile.TemporaryDirectory(dir=_memory()) as scratch, MonkeyPatch.context() as patch:
        night.install(patch)
        night._scratch = Path(scratch)
        night.world.strike, night.world.watch = night._strike, night._watch
        night._write_data(0)
        night.world.run(lambda: night.is_done)
        return outcome_of(night._study())


@cache
def _course(setting: Setting, lr: float) -> tuple[str, ...]:
    """The weights of a trial after each step, as they follow from its settings and data alone."""
    files = prepared_files(0)
    manifest = Manifest.from_json(files[MANIFEST], MANIFEST)
    prepared = Prepared(Folder(LocalFileSystem(), "", ""), manifest, _OPEN[manifest.index_digest])
    train = TrainSettings(
        epochs=setting.epochs, global_batch=8, micro_batch=8, lr=lr, checkpoint_steps=setting.checkpoint_steps
    )
    spec = RunSpec("", "", "", Toy(), train, seed=setting.seed)  # type: ignore[arg-type]
    weights, ids = [first_weights(spec)], prepared.index["id"].to_pylist()
    ends: list[str] = []
    for epoch in range(setting.epochs):
        for batch in spec.plan(prepared, epoch).batches:
            weights.append(trained(weights[-1], [ids[row] for pack in batch for row in pack]))
        ends.append(weights[-1])
    return tuple(ends)


def expected_curve(setting: Setting, lr: float) -> dict[int, float]:
    """The losses of a trial after each epoch."""
    return {epoch: loss(weights) for epoch, weights in enumerate(_course(setting, lr), 1)}


def expected_weights(setting: Setting, trial: Any) -> str:
    """The weights of a trial's best epoch."""
    return _course(setting, trial.params["train.lr"])[trial.user_attrs["best_epoch"] - 1]
