"""The checkpoint files that the guide's scripts leave, made from a run's checkpoints while it trains and at its end."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raymed.errors import RunError
from raymed.recipes.metric import VAL_LOSS
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.file_names import STAGE_1_BEST, STAGE_1_FINAL, STAGE_2_BEST, STAGE_2_FINAL, STEP
from raymed.systems.mamba_vlm.guide_files import OPTIMIZER, moments_of, read_checkpoint, write_checkpoint
from raymed.systems.mamba_vlm.loss_log import LossLog
from raymed.systems.mamba_vlm.pretraining import COLLAPSED
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.training.checkpoint import Progress, copy_to_local, fetch_newest, step_of
from raymed.training.loop import MODEL, SAVED
from raymed.training.spec import RunSpec
from raymed.training.state import StartMoments, read_state
from raymed.training.step_log import STEPS

log = logging.getLogger("raymed")

EVERY = 10  # steps between two printed losses of stage 1
LAST = 5  # epochs whose mean loss is told at the end


class StageFiles:
    """The files of a run of one of the stages, as the guide's scripts leave them; a watcher for `run_search`."""

    def __init__(self, folder: Path, template: RunSpec) -> None:
        self._folder = folder
        self._of_stage_2 = isinstance(template.recipe, ReportRecipe)
        best, last = (STAGE_2_BEST, STAGE_2_FINAL) if self._of_stage_2 else (STAGE_1_BEST, STAGE_1_FINAL)
        self._best, self._last = folder / best, folder / last
        self._log = LossLog(folder, template) if self._of_stage_2 else None

    def watch(self, spec: RunSpec, happened: str, result: Mapping[str, Any]) -> None:
        """Writes the weights of every epoch, and of every checkpoint between two; the guide's lines, stage 2's heartbeat."""
        if self._log is not None:
            self._log.watch(spec, happened, result)
        else:
            for row in result[STEPS] if happened == STEPS else ():
                step = int(row["global_step"])
                if step == 1 or step % EVERY == 0:
                    log.info("step %d  train_loss %.4f", step, row["train_loss"])
        if SAVED not in result or (happened == STEPS and "finished" in result):  # an epoch's is told of once more
            return
        address = spec.folder.child(result[SAVED])
        if happened == STEPS:
            total = step_of(result[SAVED]) + (self._log.after_step if self._log else 0)
            self._write(spec, address, self._folder / STEP.format(total), continued=True)
            return
        self._write(spec, address, self._last, continued=self._of_stage_2)
        if result.get(MODEL) == address.uri:
            self._write(spec, address, self._best)

    def finish(self, spec: RunSpec, best: str) -> list[str]:
        """Write the best and the last weights of a run that has ended; lines about them.

        Args:
            best: address of its best checkpoint.
        """
        write_best(best, self._best, spec)
        with tempfile.TemporaryDirectory() as temporary:
            newest = fetch_newest(spec.folder, Path(temporary))
            if newest is None:
                raise RunError(f"{spec.folder.uri} holds no whole checkpoint")
            progress = _write(newest, self._last, spec, continued=self._of_stage_2)
        if self._log is not None:
            self._log.finish()
            lines = means_of_epochs(progress.history, self._log.after_epoch, self._log.earlier_means)
        else:
            lines = collapse(progress.history[-1])
        return [*lines, f"files of stage {2 if self._of_stage_2 else 1}: {self._best}, {self._last}"]

    def _write(self, spec: RunSpec, address: Folder, file: Path, continued: bool = False) -> None:
        try:
            with _local(address) as checkpoint:
                _write(checkpoint, file, spec, continued)
        except (OSError, RunError) as error:  # the run goes on, and removes what is older than its two newest
            log.warning("%s stays as it was: %s", file, error)


def collapse(epoch: Mapping[str, float]) -> list[str]:
    """A warning where an epoch's visual tokens carry nothing any more."""
    energy, spread = epoch["train_energy"], epoch["train_token_std"]
    if energy >= COLLAPSED:
        return []
    return [
        f"WARNING: the visual tokens have collapsed: their mean square is {energy:.1e} (below {COLLAPSED:g}), their spread "
        f"{spread:.1e}. Nothing of the picture is left in them: take --loss masked or contrast, or begin stage 2 with "
        "--from_scratch"
    ]


def means_of_epochs(
    history: Sequence[Mapping[str, float]], after_epoch: int = 0, earlier: Sequence[float] = ()
) -> list[str]:
    """The guide's lines about each epoch of a run of stage 2, and about the last ones.

    Args:
        after_epoch: the last epoch of the runs that it goes on from.
        earlier: the mean loss of each of theirs.
    """
    losses = [epoch["train_loss"] for epoch in history]
    last = [*earlier, *losses][-LAST:]
    return [
        *(f"epoch {number} 平均 caption_loss {loss:.4f}" for number, loss in enumerate(losses, start=after_epoch + 1)),
        f"最近 {len(last)} 个 epoch 平均 caption_loss {sum(last) / len(last):.4f}",
    ]


def write_best(best: str, file: Path, spec: RunSpec) -> None:
    """Write the weights of a run's best checkpoint, with the settings and the address of the data that they belong to.

    Args:
        best: its address.
    """
    with _local(Folder.at(best)) as checkpoint:
        _write(checkpoint, file, spec)


def _write(checkpoint: Path, file: Path, spec: RunSpec, continued: bool = False) -> Progress:
    """
    Args:
        continued: with what the optimizer goes on from, besides.
    """
    progress, state = Progress.read(checkpoint), read_state(checkpoint)
    weights, recipe = state.module | state.averaged, spec.recipe
    trained = isinstance(recipe, ReportRecipe) and not recipe.language.frozen
    said: dict[str, Any] = {"settings": recipe.settings(), "data": spec.data}
    if progress.history and VAL_LOSS.name in progress.history[-1]:  # and not where all patients are trained on
        said["val_loss"] = progress.history[-1][VAL_LOSS.name]
    if continued:
        start = recipe.start if isinstance(recipe, ReportRecipe) else None
        before = moments_of(read_checkpoint(Path(start))) if start else None
        steps = state.step + (before.step if before else 0)
        said[OPTIMIZER] = vars(StartMoments(state.exp_avg, state.exp_avg_sq, steps))
    write_checkpoint(file, weights, progress.global_step, trained, **said)
    return progress


@contextmanager
def _local(source: Folder) -> Iterator[Path]:
    """A folder of the storage on this machine."""
    with tempfile.TemporaryDirectory() as temporary:
        if not source.is_local:
            copy_to_local(source, Path(temporary))
        yield Path(source.path if source.is_local else temporary)
