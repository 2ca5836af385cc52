"""How data sets become prepared sequences, as a person says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raymed.data.image import ImageSettings
from raymed.data.settings import CurationSettings
from raymed.data.sources.listing import SourceSettings
from raymed.data.split import SplitSettings
from raymed.errors import UserError


@dataclass(frozen=True)
class SequenceSettings(CurationSettings):
    """How data sets of a configuration become prepared data.

    Attributes:
        split: shares of train/val/test patients, where no group is held out.
        tokenizer: the model that will be trained, by whose tokens sequences are measured: its folder, or a preset's name.
        patient_regex: a regular expression searched in the path of a line's first picture, where the line has no
            patient_id; its first group is the patient.
        resize_rule: of pictures above max_pixels, how their sides shrink: by the root of what the area must (sqrt), or as
            BAGEL's published code does it, which shrinks them more (legacy).
    """

    split: SplitSettings = field(default_factory=lambda: SplitSettings("98/2/0", folds=0))
    tokenizer: str = "unimedvl-tiny"
    patient_regex: str | None = None
    resize_rule: Literal["sqrt", "legacy"] = "sqrt"

    def __post_init__(self) -> None:
        _ = self.source
        if (self.image.size, self.image.resize) != (ImageSettings().size, ImageSettings().resize):
            raise UserError("image.size and image.resize are not for sequences: the configuration's transform arguments are")

    @property
    def source(self) -> SourceSettings:
        """The part that all sources share, checked."""
        return SourceSettings(patient_regex=self.patient_regex)
