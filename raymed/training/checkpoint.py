"""Checkpoints that are whole or do not exist.

Each worker writes its files, and last a list of them with digests, into one folder of the run's. A checkpoint counts only
when every worker's list is there and every file in it is as listed, so a run that was killed while writing, or a file cut
short by a full disk, is passed over for the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyarrow import fs

from raymed.data.plan import SliceSettings
from raymed.errors import RunError, UserError
from raymed.models.pretrained import by_contents
from raymed.storage.availability import is_missing, require_there
from raymed.storage.folder import Folder
from raymed.storage.seal import digest_of_file
from raymed.training.best import Best
from raymed.training.means import LOSS
from raymed.training.upload import upload

log = logging.getLogger("raymed")

PREFIX = "step-"
FIRST_LIST = "sealed-000.json"  # of the first worker's files, within a checkpoint
PROGRESS = "progress.json"  # within a checkpoint
PREDICTIONS = "predictions.npz"  # of the epoch's validation, within a checkpoint at its end
JUDGED = "judged"  # in `Progress.origin`: which rows are validated on
OUTPUTS = "predictions.parquet"  # beside them, where a system gives texts or pictures


@dataclass
class Progress:
    """Where a run stands: what a resumed run needs besides the engine's state.

    Attributes:
        epoch: epochs completed.
        step: optimizer steps done of the epoch under way.
        global_step: optimizer steps done in all.
        best: the best epoch so far, and how long a better one has been waited for.
        model: name of the checkpoint that holds the best epoch's model; empty before the first.
        workers: how many workers wrote the checkpoint.
        saved: how many checkpoints the run has written, this one included.
        sums: (sum, count) of what is logged of the epoch under way, over all workers.
        steps: rows of single steps that were not told of before; see `StepLog`.
        history: the metrics of each completed epoch.
        origin: what it comes from: settings by name, and the search's generation; empty in checkpoints of before.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    best: Best = field(default_factory=Best)
    model: str = ""
    workers: int = 1
    saved: int = 0
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    steps: list[dict[str, float]] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)

    def check_origin(self, origin: Mapping[str, Any], uri: str, pretrained: Mapping[str, str] | None = None) -> None:
        """Refuse to go on from a checkpoint of another search, or of other settings.

        Args:
            pretrained: what weights hold, by their paths, which checkpoints of before have in its place.

        Raises:
            UserError: what differs, of what both have.
        """
        differences = list(_differences(by_contents(self.origin, pretrained or {}), origin))
        if differences:
            raise UserError(
                f"the checkpoint {uri} is of another run: {'; '.join(differences[:5])}. "
                "Move its run's folder away, give another --name, or start again with --resume never"
            )

    def write(self, folder: Path) -> None:
        (folder / PROGRESS).write_text(json.dumps({**vars(self), "best": vars(self.best)}), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Progress:
        values: dict[str, Any] = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        renamed = {"loss": f"{LOSS}/loss"}  # in checkpoints of before a loss had terms
        values["best"] = Best(**values["best"])
        values["sums"] = {renamed.get(name, name): (pair[0], pair[1]) for name, pair in values["sums"].items()}
        return cls(**values)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of settings that both have and that differ, with their values."""
    for name in sorted(before.keys() & now.keys()):
        old, new = before[name], now[name]
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} was {old}, and is {new} now"


def new_name(global_step: int, saved: int) -> str:
    """A name that no other attempt uses, so that files of two attempts never mix; names sort as they were written.

    Args:
        saved: see `Progress`. A step may be saved twice: within its epoch, by a run that was told to leave, and at its end.
    """
    return f"{PREFIX}{global_step:08d}-{saved:06d}-{uuid.uuid4().hex[:8]}"


def read_history(checkpoint: Folder) -> list[dict[str, float]]:
    """The metrics of each epoch up to a checkpoint, as the run had them.

    Raises:
        UserError: the checkpoint is not there any more.
    """
    try:
        history: list[dict[str, float]] = json.loads(checkpoint.read(PROGRESS))["history"]
    except FileNotFoundError as error:
        raise UserError(
            f"the checkpoint {checkpoint.uri} is not there any more. --resume never trains the run anew"
        ) from error
    return history


def judged_slices(checkpoint: Folder) -> SliceSettings:
    """Which rows a checkpoint's run is validated on; the usual ones where the folder is none, or of an earlier raymed."""
    try:
        origin: dict[str, Any] = json.loads(checkpoint.read(PROGRESS))["origin"]
    except (FileNotFoundError, ValueError, KeyError):
        return SliceSettings()
    return SliceSettings.read(origin[JUDGED]) if JUDGED in origin else SliceSettings()


def digests(folder: Path) -> dict[str, str]:
    """The digest of each file below a folder, by its name in it."""
    return {str(path.relative_to(folder)): digest_of_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def seal(folder: Path, worker: int, workers: int, others: Mapping[str, str] | None = None) -> None:
    """List this worker's files with digests; written last, it makes the worker's part valid.

    Args:
        folder: with files of the part.
        others: digests of those that are in the checkpoint already.
    """
    sealed = {"workers": workers, "files": {**(others or {}), **digests(folder)}}
    (folder / f"sealed-{worker:03d}.json").write_text(json.dumps(sealed), encoding="utf-8")


def publish(folder: Path, run: Folder, name: str) -> None:
    """Seal a local folder and make it a checkpoint of a run, as if one worker had written it there.

    Args:
        name: see `new_name`.
    """
    seal(folder, 0, 1)
    run.make()
    upload(folder, run, name)


def checkpoint_names(run: Folder) -> list[str]:
    """Names of a run's checkpoints, whole or not, as they were written."""
    return [name for name in run.names() if name.startswith(PREFIX)]


def sealed_names(run: Folder) -> list[str]:
    """Names of a run's checkpoints of which the list is there, without which none counts, as they were written."""
    return [name for name in checkpoint_names(run) if is_sealed(run, name)]


def is_sealed(run: Folder, name: str) -> bool:
    """Whether a checkpoint's list is there.

    Raises:
        OSError: the run's folder is not there, or its storage does not answer.
    """
    return not is_missing(run, f"{name}/{FIRST_LIST}")


def step_of(name: str) -> int:
    """The optimizer step of a checkpoint of that name."""
    return int(name.split("-")[1])


def newest_step(run: Folder) -> int:
    """The optimizer step of a run's newest checkpoint; 0 when it has none."""
    return max(map(step_of, sealed_names(run)), default=0)


@dataclass(frozen=True)
class Checkpoints:
    """A run's checkpoints, as one that goes on has found them.

    Attributes:
        names: of all, whole or not, as they were written.
        torn: those newer than the newest whole one. Each was tried.
        newest: the name of that one; empty where there is none.
    """

    names: Sequence[str] = ()
    torn: Sequence[str] = ()
    newest: str = ""


def find_newest(run: Folder, into: Path) -> Checkpoints:
    """Look for the checkpoint that a run goes on from, and copy it to a folder of its name in `into`.

    That there is none is believed when two looks say so, between which the run's folder was there: a storage may have been
    away for the first one alone.

    Raises:
        OSError: the run's folder is not there, or its storage does not answer.
    """
    names = checkpoint_names(run)
    if not names:
        require_there(run)
        names = checkpoint_names(run)
    return _newest_whole(run, names, into)


def fetch_newest(run: Folder, into: Path) -> Path | None:
    """Copy the newest whole checkpoint of a run to a local folder; None when the run has none.

    Checkpoints that are not whole are passed over, each with a line that names it and what is wrong.

    Raises:
        OSError: the storage does not answer, or went away meanwhile.
    """
    newest = _newest_whole(run, checkpoint_names(run), into).newest
    return into / newest if newest else None


def _newest_whole(run: Folder, names: Sequence[str], into: Path) -> Checkpoints:
    torn: list[str] = []
    for name in reversed(names):
        wrong = _fetch(run, name, into)
        if not wrong:
            return Checkpoints(names, torn, name)
        log.warning("checkpoint %s is not whole (%s): trying the one before", name, wrong)
        torn.append(name)
    return Checkpoints(names, torn)


def _fetch(run: Folder, name: str, into: Path) -> str:
    """As `fetch`; what is wrong with a checkpoint that is not whole. It is tried twice: the storage may have been away."""
    wrong = ""
    for _ in range(2):
        try:
            fetch(run, name, into)
            return ""
        except (RunError, FileNotFoundError, ValueError, KeyError) as error:
            wrong = str(error)
        shutil.rmtree(into / name, ignore_errors=True)
        require_there(run)
    return wrong


def fetch(run: Folder, name: str, into: Path) -> Path:
    """Copy a checkpoint of a run to a local folder.

    Raises:
        RunError, FileNotFoundError, ValueError, KeyError: it is not whole.
        OSError: the storage does not answer, or there is no room for it here.
    """
    if not run.exists(f"{name}/{FIRST_LIST}"):  # seen before anything large travels
        raise FileNotFoundError(f"{FIRST_LIST} is missing")
    copy_to_local(run.child(name), into / name)
    verify(into / name)
    return into / name


def verify(folder: Path) -> None:
    """Check a local copy of a checkpoint against its workers' lists.

    Raises:
        RunError: a list or a file is missing, or a file is not as listed.
    """
    first = folder / FIRST_LIST
    if not first.is_file():
        raise RunError(f"{FIRST_LIST} is missing")
    for worker in range(json.loads(first.read_text(encoding="utf-8"))["workers"]):
        path = folder / f"sealed-{worker:03d}.json"
        if not path.is_file():
            raise RunError(f"{path.name} is missing")
        for name, digest in json.loads(path.read_text(encoding="utf-8"))["files"].items():
            if not (folder / name).is_file() or digest_of_file(folder / name) != digest:
                raise RunError(f"{name} is missing or damaged")


def read_whole(checkpoint: Folder, name: str) -> bytes:
    """A file of a checkpoint that its first worker wrote, as its list has it.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        content = checkpoint.read(name)
        digest = json.loads(checkpoint.read(FIRST_LIST))["files"][name]
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise RunError(f"{checkpoint.uri}/{name} is missing or damaged") from error
    if hashlib.blake2b(content, digest_size=16).hexdigest() != digest:
        raise RunError(f"{checkpoint.uri}/{name} is damaged")
    return content


def copy_to_local(source: Folder, target: Path) -> None:
    """Copy a folder from any storage to a local path."""
    target.mkdir(parents=True, exist_ok=True)
    fs.copy_files(source.path, str(target), source_filesystem=source.filesystem, destination_filesystem=fs.LocalFileSystem())
