"""The files that the guide's scripts leave, made from what a run left in the storage."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from raymed.errors import RunError
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.file_names import STAGE_1_BEST, STAGE_1_FINAL, STAGE_2_BEST, STAGE_2_FINAL
from raymed.systems.mamba_vlm.guide_files import OPTIMIZER, read_checkpoint, write_checkpoint
from raymed.systems.mamba_vlm.pretraining import COLLAPSED
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.training.checkpoint import Progress, copy_to_local, fetch_newest
from raymed.training.spec import RunSpec
from raymed.training.state import StartMoments, read_state

LAST = 5  # epochs whose mean loss is told at the end


def write_stage_1(spec: RunSpec, best: str, folder: Path) -> list[str]:
    """Write the best and the last weights of a run of stage 1; gives lines about them.

    Args:
        best: address of the run's best checkpoint.
    """
    progress = _write_both(spec, best, folder / STAGE_1_BEST, folder / STAGE_1_FINAL)
    last = progress.history[-1]
    return [*collapse(last), f"files of stage 1: {folder / STAGE_1_BEST}, {folder / STAGE_1_FINAL}"]


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


def write_stage_2(spec: RunSpec, best: str, folder: Path) -> list[str]:
    """The same of stage 2.

    Args:
        best: address of the run's best checkpoint.
    """
    progress = _write_both(spec, best, folder / STAGE_2_BEST, folder / STAGE_2_FINAL)
    losses = [epoch["train_loss"] for epoch in progress.history]
    last = losses[-LAST:]
    return [
        *(f"epoch {number} 平均 caption_loss {loss:.4f}" for number, loss in enumerate(losses, start=1)),
        f"最近 {len(last)} 个 epoch 平均 caption_loss {sum(last) / len(last):.4f}",
        f"files of stage 2: {folder / STAGE_2_BEST}, {folder / STAGE_2_FINAL}",
    ]


def _write_both(spec: RunSpec, best: str, best_file: Path, last_file: Path) -> Progress:
    """The best and the last weights; gives how far the run came."""
    write_best(best, best_file, spec)
    with tempfile.TemporaryDirectory() as temporary:
        newest = fetch_newest(spec.folder, Path(temporary))
        if newest is None:
            raise RunError(f"{spec.folder.uri} holds no whole checkpoint")
        return _write(newest, last_file, spec, continued=isinstance(spec.recipe, ReportRecipe))


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
    weights, val_loss = state.module | state.averaged, progress.history[-1]["val_loss"]
    recipe = spec.recipe
    trained = isinstance(recipe, ReportRecipe) and not recipe.language.frozen
    said = {"val_loss": val_loss, "settings": recipe.settings(), "data": spec.data}
    if continued and isinstance(recipe, ReportRecipe):
        before = read_checkpoint(Path(recipe.start)).values.get(OPTIMIZER, {"step": 0}) if recipe.start else {"step": 0}
        said[OPTIMIZER] = vars(StartMoments(state.exp_avg, state.exp_avg_sq, before["step"] + state.step))
    write_checkpoint(file, weights, progress.global_step, trained, **said)
    return progress


@contextmanager
def _local(source: Folder) -> Iterator[Path]:
    """A folder of the storage on this machine."""
    with tempfile.TemporaryDirectory() as temporary:
        if not source.is_local:
            copy_to_local(source, Path(temporary))
        yield Path(source.path if source.is_local else temporary)
