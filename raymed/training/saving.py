"""A run's checkpoints on their way into the storage, one at a time, while training or a validation goes on.

The state is copied where the run stands. A thread of its own writes the files, lists their digests and brings them into the
storage. What makes a checkpoint one, where the run stands and the list of all files, follows when the run comes back to it:
a process that is killed before leaves nothing that counts, and nobody is told of it before.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from safetensors import SafetensorError

from raymed.errors import StorageError
from raymed.recipes.exported import RECIPE_FILE
from raymed.recipes.recipe import Predictions
from raymed.storage.folder import Folder
from raymed.training.agreement import Agreement
from raymed.training.checkpoint import Progress, digests, new_name, seal
from raymed.training.engine import Engine
from raymed.training.predictions import write_predictions
from raymed.training.retention import scratch
from raymed.training.staging import refuse_full
from raymed.training.upload import upload

LEAVING = 5.0  # seconds at most for what is under way, where a worker of several fails
STATE, REST = "state", "rest"  # folders of what the thread writes, and of what follows


@dataclass(frozen=True)
class Checkpoint:
    """One that is under way.

    Attributes:
        name: in the run's folder.
        folder: holds its files until they are in the storage.
        digests: of the files of the state, by name, once they are there.
        room: holds `folder`.
    """

    name: str
    folder: Path
    digests: Future[dict[str, str]]
    room: contextlib.ExitStack


class Saving:
    """A run's checkpoints as one of its workers saves them. All workers call every method together."""

    def __init__(self, engine: Engine, run: Folder, agreement: Agreement) -> None:
        self._engine, self._run, self._agreement = engine, run, agreement
        self._under_way: Checkpoint | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether a checkpoint was begun and is not complete."""
        return self._under_way is not None

    @property
    def is_written(self) -> bool:
        """Whether this worker's thread has nothing more to do."""
        return self._under_way is None or self._under_way.digests.done()

    def begin(self, global_step: int, saved: int, usable: bool) -> str:
        """Copy the training state, and begin to write it; the one before is complete.

        Args:
            saved: see `Progress`.
            usable: write the model, too, as it is loaded without DeepSpeed.

        Returns:
            The checkpoint's name.
        """
        assert self._under_way is None
        name = [new_name(global_step, saved)]
        dist.broadcast_object_list(name)
        with contextlib.ExitStack() as room:
            folder = room.enter_context(scratch(self._run, self._engine.worker))
            state = folder / STATE
            for each in (state, folder / REST):
                each.mkdir()
            write_state = self._engine.save(state)
            write_model = self._engine.export(state / "model") if usable else lambda: None

            def write() -> dict[str, str]:
                try:
                    write_state()
                    write_model()
                except (OSError, RuntimeError, SafetensorError) as error:  # torch.save knows no OSError
                    refuse_full(error)
                    raise
                listed = digests(state)
                self._agreement.attempt(lambda: upload(state, self._run, name[0]))
                return listed

            self._under_way = Checkpoint(name[0], folder, beside(write), room.pop_all())
        return name[0]

    def note(self, progress: Progress, predictions: Predictions | None = None) -> None:
        """Write down where the run stood, and what it predicted for its validation rows."""
        assert self._under_way is not None
        if self._engine.worker == 0:
            rest = self._under_way.folder / REST
            progress.write(rest)
            if predictions is not None:
                write_predictions(rest, predictions)

    def complete(self) -> str:
        """Wait until the state is in the storage, and make a checkpoint of it.

        Returns:
            Its name.

        Raises:
            StorageError: the storage is full, or was away for too long; earlier checkpoints are as they were.
        """
        assert self._under_way is not None
        checkpoint, self._under_way = self._under_way, None
        rest, worker, workers = checkpoint.folder / REST, self._engine.worker, self._engine.workers
        with checkpoint.room:
            self._agreement.may_wait()
            listed, refusal = _outcome(checkpoint.digests)
            if refusal is None:  # or it would be met again here, on one worker alone
                seal(rest, worker, workers, listed)  # once: a second list would have the first one in it

            def finish() -> None:
                if refusal is not None:
                    raise refusal
                upload(rest, self._run, checkpoint.name)

            try:
                self._agreement.reach(finish)
            except StorageError:
                if worker == 0:
                    with contextlib.suppress(OSError):
                        self._run.delete(checkpoint.name)
                raise
        return checkpoint.name

    def add_network(self, name: str) -> None:
        """Put the network beside the state of a checkpoint that lacks it, as it is loaded without DeepSpeed. Whoever is
        killed meanwhile, or finds no room, leaves the state, from which training goes on.
        """
        with scratch(self._run, self._engine.worker) as folder:
            write = self._engine.export(folder / "network" / "model")

            def bring() -> None:
                try:
                    write()
                except (OSError, RuntimeError, SafetensorError) as error:
                    refuse_full(error)
                    raise
                if self._engine.worker == 0:
                    (folder / "recipe" / "model").mkdir(parents=True, exist_ok=True)
                    (folder / "network" / "model" / RECIPE_FILE).replace(folder / "recipe" / "model" / RECIPE_FILE)
                    for part in ("network", "recipe"):  # without its recipe it is none
                        upload(folder / part, self._run, name)

            try:
                self._agreement.reach(bring)
            except StorageError:
                if self._engine.worker == 0:
                    with contextlib.suppress(OSError):
                        self._run.delete(f"{name}/model")

    def abandon(self) -> None:
        """The run ends before its time: what is under way will be no checkpoint."""
        if self._under_way is None:
            return
        checkpoint, self._under_way = self._under_way, None
        self._agreement.may_wait()
        with checkpoint.room, contextlib.suppress(Exception):  # what ends the run is told of, and not this
            checkpoint.digests.result(None if self._engine.workers == 1 else LEAVING)  # others hang until this one is gone
            if self._engine.workers == 1:  # others may still be writing theirs
                self._run.delete(checkpoint.name)


def _outcome(written: Future[dict[str, str]]) -> tuple[Mapping[str, str], StorageError | None]:
    """What a thread has done, or why the storage refused it; anything else that it met is raised."""
    try:
        return written.result(), None
    except StorageError as refusal:
        return {}, refusal


def beside(work: Callable[[], dict[str, str]]) -> Future[dict[str, str]]:
    """Do it in a thread that nothing waits for at the end of the process."""
    outcome: Future[dict[str, str]] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return outcome
