"""What the lung jobs share: their options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.models.settings import ModelSettings
from raymed.recipes.settings import AugmentSettings
from raymed.systems.lung.settings import LossSettings
from raymed.systems.options import SystemOptions, prepare_phantoms
from raymed.training.settings import TrainSettings

if TYPE_CHECKING:
    from raymed.systems.lung.recipe import LungRecipe


@dataclass(frozen=True, kw_only=True)
class LungOptions(SystemOptions):
    """Options of a lung training run or search.

    Attributes:
        data: Folder or URI of prepared data (jobs/prepare_lung.py); without it, phantom patients are made and used.
        phantom_size: Height and width of the prepared phantom slices, in pixels.
        slices: Which slices of a patient are used.
        model: The network.
        loss: The loss.
        augment: How training pictures are varied.
    """

    MATTERS: ClassVar[tuple[str, ...]] = (
        "data",
        "slices.per_patient",
        "slices.limit",
        "model.preset",
        "model.path",
        "augment.preset",
    )
    CAN_REFIT: ClassVar[bool] = True

    data: str | None = None
    phantom_size: int = 112
    slices: SliceSettings = field(default_factory=SliceSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)

    @property
    def sampling(self) -> SliceSettings:
        return self.slices

    def prepared(self) -> Prepared:
        if self.data is not None:
            return Prepared.open(self.data)
        return prepare_phantoms(self.folder, self.phantom, self.phantom_size)

    def recipe(self, prepared: Prepared) -> LungRecipe:
        from raymed.models.classifiers import family_of
        from raymed.systems.lung.recipe import LungRecipe

        if self.model.path and self.train.lr >= TrainSettings.lr and family_of(self.model) == "internvl":
            raise UserError(
                f"train.lr {self.train.lr:g} is for small networks from random weights and would ruin "
                f"{self.model.path}: give --config configs/guide_lung.yaml (for a search, "
                "configs/lung_internvl.yaml), or --train.lr"
            )
        return LungRecipe.for_data(prepared.labels, prepared.size, self.model, self.loss, self.augment)
