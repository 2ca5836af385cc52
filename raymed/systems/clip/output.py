"""The files that CLIP runs leave in their output folders: configuration, checkpoints, history.

Everything in them is taken from the runs' checkpoints in the storage, so a folder can always be made again by the command
that made it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
import torch
from optuna.trial import TrialState
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.systems.clip import checkpoint as clip_checkpoint
from raymed.systems.clip.checkpoint import BEST, LATEST
from raymed.systems.clip.recipe import ClipRecipe
from raymed.systems.clip.resume import is_same
from raymed.training.checkpoint import PREDICTIONS, PROGRESS, Progress, copy_to_local, fetch_newest, sealed_names
from raymed.training.loop import SAVED
from raymed.training.spec import RunSpec
from raymed.training.state import read_state

log = logging.getLogger("raymed")

HISTORY, FIGURE = "history.json", "training_history.png"
ABOUT = "about"  # of history.json: what each list is
PATIENCE = 60.0  # seconds, for files that are being written when a search is interrupted


@dataclass(frozen=True)
class RunOutput:
    """The output folder of one run.

    Attributes:
        folder: where its files go.
        spec: the run.
        config: what its files say of its settings.
        save_best: whether the best epoch's checkpoint is written too.
    """

    folder: Path
    spec: RunSpec
    config: dict[str, Any]
    save_best: bool

    def update(self, checkpoint: str) -> None:
        """Bring the files up to date with a checkpoint's epoch; nothing where they are, or where it is gone already."""
        source = Folder.at(checkpoint)
        with tempfile.TemporaryDirectory() as temporary:
            local = Path(source.path if source.is_local else temporary)
            try:
                if not source.is_local:
                    copy_to_local(source, local)
                self._write(local)
            # the run, which keeps the best and the two newest, removed it meanwhile
            except (OSError, IndexError, KeyError, RuntimeError):
                log.info("%s: the files of this checkpoint come with a later one", checkpoint)

    def take_up(self) -> None:
        """Go on from what another job left of the same run in the folder, if anything."""
        with contextlib.suppress(UserError):  # none there, or another run's: this one begins
            content = clip_checkpoint.read(self.folder / LATEST)
            if is_same(content["config"], self.config):
                clip_checkpoint.take_up(self.folder / LATEST, self.spec)

    def best_checkpoint(self) -> str | None:
        """Address of the run's best checkpoint, where it has one."""
        folder = self.spec.folder
        names = sealed_names(folder)
        model = json.loads(folder.child(names[-1]).read(PROGRESS))["model"] if names else ""
        return folder.child(model).uri if model else None

    def finish(self, best: str | None) -> None:
        """Bring the files up to date with the run's end, and draw its history."""
        if best is not None and self.save_best:
            self.update(best)
        with tempfile.TemporaryDirectory() as temporary:
            newest = fetch_newest(self.spec.folder, Path(temporary))
            if newest is None:
                return
            self._write(newest)
            if not self._epoch(LATEST, Progress.read(newest)):  # no epoch was completed: the history is an earlier run's
                return
        from raymed.evaluation.figures import training_history  # matplotlib is for the end

        training_history(self.history()).savefig(self.folder / FIGURE)

    def history(self) -> dict[str, list[float]]:
        """By epoch, without what `ABOUT` says of it."""
        content = json.loads((self.folder / HISTORY).read_text("utf-8"))
        return {name: content[name] for name in clip_checkpoint.LISTS}

    def _write(self, checkpoint: Path) -> None:
        progress = Progress.read(checkpoint)
        if not progress.history or progress.step:
            return
        late = progress.epoch > self._epoch(LATEST, progress)
        best = self.save_best and progress.best.epoch == progress.epoch != self._epoch(BEST, progress)
        if not (late or best):
            return
        recipe = self.spec.recipe
        assert isinstance(recipe, ClipRecipe)
        predictions: dict[str, np.ndarray] = {}
        if (checkpoint / PREDICTIONS).is_file():  # not in one that a run went on from, out of a file of an earlier raymed
            with np.load(checkpoint / PREDICTIONS) as stored:
                predictions = dict(stored)
        content = clip_checkpoint.pack(progress, read_state(checkpoint), recipe, self.config, predictions)
        if best:
            clip_checkpoint.write(self.folder / BEST, content)
        if late:
            about = clip_checkpoint.meanings(recipe, self.config.get("unit", "image"))
            write_json(self.folder / HISTORY, clip_checkpoint.history(progress) | {ABOUT: about})
            clip_checkpoint.write(self.folder / LATEST, content)

    def _epoch(self, name: str, progress: Progress) -> int:
        """The epoch of a checkpoint file of this run; 0 where there is none, or only one of another run."""
        path = self.folder / name
        if not path.is_file():
            return 0
        try:
            content = clip_checkpoint.read(path)
        except UserError:  # some other program's, which is about to be replaced
            return 0
        ours, theirs = clip_checkpoint.history(progress), content["history"]
        same = all(a == b for name in ours for a, b in zip(ours[name], theirs[name], strict=False))
        return int(content["epoch"]) if content["config"] == self.config and same else 0


class Ending(Protocol):
    """What is done once runs have come to their end: see `raymed.systems.clip.conclusion`."""

    @property
    def outputs(self) -> Mapping[str, RunOutput]: ...

    def write(self) -> None: ...


class OutputWriter:
    """Keeps output folders up to date while a search runs, in a process of its own on this machine."""

    def __init__(self, outputs: Mapping[str, RunOutput], endings: Sequence[Ending] = ()) -> None:
        """
        Args:
            outputs: of each run, by the run's name.
            endings: what is written as soon as all runs of a configuration have ended.
        """
        self._outputs = outputs
        self._under_way = {ending: set(ending.outputs) for ending in endings}
        self._written: set[str] = set()  # runs whose ends are written
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._process: Any = ray.remote(_Writer).options(num_cpus=0, scheduling_strategy=here).remote()
        self._waiting: list[ray.ObjectRef] = []

    def __enter__(self) -> OutputWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """What was under way is written, also when the search was interrupted."""
        if self._waiting:
            ray.wait(self._waiting, num_returns=len(self._waiting), timeout=PATIENCE)
        ray.kill(self._process)

    def watch(self, spec: RunSpec, happened: str, result: Mapping[str, Any]) -> None:
        """For `run_search`."""
        if happened == TrialState.COMPLETE.name:
            for ending, runs in self._under_way.items():
                if spec.name in runs:
                    runs.discard(spec.name)
                    if not runs:
                        self._waiting.append(self._process.end.remote(ending))
                        self._written |= ending.outputs.keys()
        if happened == "epoch" and SAVED in result:
            checkpoint = spec.folder.child(result[SAVED])
            self._waiting.append(self._process.update.remote(self._outputs[spec.name], checkpoint.uri))

    def finish(self, best: Mapping[str, str | None]) -> None:
        """Write what is still to be written.

        Args:
            best: address of the best checkpoint of each run, where it has one.

        Raises:
            UserError: an output folder cannot be written to.
        """
        left = {name: each for name, each in best.items() if name not in self._written}
        self._waiting += [self._process.finish.remote(self._outputs[name], each) for name, each in left.items()]
        try:
            ray.get(self._waiting)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None


class _Writer:
    def __init__(self) -> None:
        torch.set_num_threads(1)

    def update(self, output: RunOutput, checkpoint: str) -> None:
        output.update(checkpoint)

    def finish(self, output: RunOutput, best: str | None) -> None:
        output.finish(best)

    def end(self, ending: Ending) -> None:
        ending.write()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole, UTF-8."""
    Folder.at(path.parent).write(path.name, json.dumps(content, ensure_ascii=False, indent=2, default=str).encode())
