"""What a prepared picture's bytes mean to the encoder that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from raymed.data.image import MINMAX
from raymed.errors import UserError

if TYPE_CHECKING:
    import torch

LEAST_DEVIATION = 1e-8  # as nnU-Net divides


@dataclass(frozen=True)
class Intensity:
    """How bytes become what an encoder was trained on.

    Attributes:
        scheme: unit, from 0 to 1; plans, Hounsfield units less a mean and over a deviation, as nnU-Net's CTNormalization;
            zscore, each picture less its mean and over its deviation, as nnU-Net's ZScoreNormalization.
        low: Hounsfield units of byte 0 under plans; likewise `high` of byte 255.
        mean: subtracted under plans; `std` divides.
    """

    scheme: Literal["unit", "plans", "zscore"] = "unit"
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def of_plans(cls, values: Mapping[str, Any] | None, where: str) -> Intensity:
        """That of an nnU-Net's plans: its normalisation's name, and the properties of the foreground.

        Raises:
            UserError: no or an unknown normalisation, or properties that are none.
        """
        if not values:
            raise UserError(f"{where}: the plans say nothing of intensities: pass --normalize window or minmax")
        scheme = values.get("scheme")
        if scheme == "ZScoreNormalization":
            return cls("zscore")
        if scheme == "NoNormalization" or scheme == "RescaleTo01Normalization":
            return cls("unit")
        if scheme != "CTNormalization":
            raise UserError(f"{where}: the encoder was trained on {scheme!r}, which is not known here: --normalize minmax")
        try:
            low, high, mean, std = (float(values[key]) for key in ("percentile_00_5", "percentile_99_5", "mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: the plans' intensities lack {error}: import the checkpoint again") from error
        if not (low < high and std > 0):
            raise UserError(f"{where}: the plans say percentiles {low:g} and {high:g} and a deviation of {std:g}")
        return cls("plans", low, high, mean, std)

    @property
    def window(self) -> str:
        """The window by which Hounsfield units become bytes, as `ImageSettings` writes it."""
        return f"{self.high - self.low!r},{(self.low + self.high) / 2!r}" if self.scheme == "plans" else MINMAX

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [..., height, width] -> float32 of the same shape."""
        unit = pixels.float() / 255
        if self.scheme == "unit":
            return unit
        if self.scheme == "plans":
            return (unit * (self.high - self.low) + (self.low - self.mean)) / self.std
        mean = unit.mean(dim=(-2, -1), keepdim=True)
        std = unit.std(dim=(-2, -1), keepdim=True, correction=0)
        return (unit - mean) / std.clamp(min=LEAST_DEVIATION)
