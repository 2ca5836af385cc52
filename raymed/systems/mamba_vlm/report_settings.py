"""How reports and their pictures become prepared data, as a person says it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from raymed.data.image import ImageSettings
from raymed.data.settings import CurationSettings
from raymed.data.split import SplitSettings
from raymed.errors import UserError
from raymed.systems.mamba_vlm.intensity import Intensity
from raymed.systems.mamba_vlm.paths import local_path
from raymed.systems.mamba_vlm.radfm import CaptionSettings
from raymed.systems.mamba_vlm.slices import Reading, SliceSettings

ENCODER = "encoder.json"  # of an imported encoder: among others what its plans say of intensities


@dataclass(frozen=True)
class ReportSettings(CaptionSettings, CurationSettings):
    """How reports and their pictures become prepared data.

    Attributes:
        image: size and resizing of the pictures; image.window is used with --normalize window.
        split: shares of train/val/test patients, where one CSV is divided.
        slices: which slices of a volume are seen.
        normalize: how values become grey levels: each slice's own least and greatest (minmax), Hounsfield units through a
            window (window), or as the encoder was trained (plans); auto takes plans where --encoder is given, else minmax.
        encoder: folder of an imported nnU-Net encoder (jobs/import_nnunet.py).
    """

    image: ImageSettings = field(default_factory=lambda: ImageSettings(size=512))
    split: SplitSettings = field(default_factory=lambda: SplitSettings("75/15/15", folds=0))
    slices: SliceSettings = field(default_factory=SliceSettings)
    normalize: Literal["auto", "minmax", "window", "plans"] = "auto"
    encoder: str | None = None

    @property
    def intensity(self) -> Intensity:
        """What the bytes of a prepared picture will mean.

        Raises:
            UserError: plans are asked for and no encoder is named, or its folder does not hold them.
        """
        if self.normalize in ("minmax", "window") or (self.normalize == "auto" and self.encoder is None):
            return Intensity()
        if self.encoder is None:
            raise UserError("normalize is plans: name the imported encoder with --encoder (jobs/import_nnunet.py)")
        path = local_path(self.encoder, Path.cwd()) / ENCODER
        if not path.is_file():
            raise UserError(f"{path} is missing: --encoder takes the folder that jobs/import_nnunet.py wrote")
        try:
            return Intensity.of_plans(json.loads(path.read_text("utf-8"))["intensity"], str(path))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged; import the checkpoint again") from error

    @property
    def reading(self) -> Reading:
        """What decides about the pictures."""
        intensity = self.intensity
        image = self.image if self.normalize == "window" else replace(self.image, window=intensity.window)
        return Reading(image, self.slices, self.orientation, hounsfield=intensity.scheme == "plans")
