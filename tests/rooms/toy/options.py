"""Options of a toy training run or search."""

from __future__ import annotations

from dataclasses import dataclass, field

from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.systems.options import SystemOptions, prepare_phantoms
from raymed.systems.toy.recipe import ToyRecipe


@dataclass(frozen=True, kw_only=True)
class ToyOptions(SystemOptions):
    """Options of a toy training run or search.

    Attributes:
        data: Folder of prepared data; without it, phantom patients are made and used.
        slices: Which slices of a patient are used.
    """

    data: str | None = None
    slices: SliceSettings = field(default_factory=SliceSettings)

    @property
    def sampling(self) -> SliceSettings:
        return self.slices

    def prepared(self) -> Prepared:
        return Prepared.open(self.data) if self.data else prepare_phantoms(self.folder, self.phantom, 28)

    def recipe(self, prepared: Prepared) -> ToyRecipe:
        return ToyRecipe.for_data(prepared.labels, prepared.size)
