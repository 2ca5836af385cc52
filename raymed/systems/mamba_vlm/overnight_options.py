"""The overnight search as a person says it: how many epochs, which stage, and whether the guide's grid begins it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.systems.mamba_vlm.options import GUIDE as STAGES
from raymed.systems.mamba_vlm.options import TrainBridge, TrainVlm
from raymed.systems.options import CONFIGS
from raymed.tuning.budget import Budget
from raymed.tuning.space import Dimension, Value

if TYPE_CHECKING:
    from raymed.recipes.recipe import Recipe

LR, BATCH = "train.lr", "train.global_batch"
# In the guide's order: the point that goes furthest in an epoch is the first, so that the others are measured by it early.
GRID: tuple[dict[str, Value], ...] = tuple({LR: lr, BATCH: batch} for lr in (1e-4, 5e-5) for batch in (2, 4))
SPACE = {LR: Dimension(1e-5, 1e-2, log=True), BATCH: Dimension(choices=(2, 4))}
GUIDE = {name: alias for name, alias in STAGES.items() if name != "epochs"}  # --epochs are those of a trial


@dataclass(frozen=True, kw_only=True)
class OvernightOptions(TrainBridge, TrainVlm):
    """Options of an overnight search.

    Attributes:
        stage: 1 searches the bridge's own training, 2 that with the language model.
        epochs: Epochs of a trial that is not stopped early; all trials together have four times as many, as the guide's grid
            has.
        trials: Most trials.
        hours: Most hours (0 = no limit).
        no_grid: One run with the guide's default settings in place of a search.
    """

    MATTERS: ClassVar[tuple[str, ...]] = ("stage", "epochs", "trials", "hours", "no_grid")

    phantom_settings: ClassVar[Path] = CONFIGS / "mamba_overnight.yaml"

    stage: Literal[1, 2] = 1
    epochs: int = 300
    trials: int = 20
    hours: float = 0.0
    no_grid: bool = False

    @property
    def budget(self) -> Budget:
        if self.no_grid:
            return Budget(trials=1)
        return Budget(self.trials, len(GRID) * self.epochs, seconds=self.hours * 3600)

    def completed(self) -> Self:
        """As the stages' jobs complete them, but for how long and how a trial is trained, which is the search's.

        Raises:
            UserError: as theirs, or batches are to be accumulated, of which the search varies the size.
        """
        if self.gradient_accumulation_steps != 1:
            raise UserError("--gradient_accumulation_steps: the search varies the batch of a step; leave it out")
        completed = super().completed()
        train = replace(self.train, epochs=self.epochs, micro_batch=min(self.train.packs_at_once, 2))
        settings = completed.search
        if not self.no_grid:
            settings = replace(settings, space=settings.space or SPACE, first=settings.first or GRID)
            if (settings.space, settings.first) == (SPACE, GRID) and {LR: train.lr, BATCH: train.global_batch} in GRID:
                train = replace(train, lr=1e-4, global_batch=2)  # what a search is configured with is tried first
        return replace(completed, train=train, search=settings)

    def recipe(self, prepared: Prepared) -> Recipe:
        return (TrainBridge if self.stage == 1 else TrainVlm).recipe(self, prepared)
