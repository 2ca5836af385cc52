"""How raw studies and samples become prepared data, as a person says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raymed.data.image import ImageSettings
from raymed.data.sources import SourceSettings
from raymed.data.sources.samples import SampleSettings
from raymed.data.split import SplitSettings
from raymed.data.tiles import TOKEN_SIDE, TileSettings
from raymed.errors import UserError


@dataclass(frozen=True)
class CurationSettings:
    """How what was found becomes prepared data.

    Attributes:
        seed: which of the possible divisions into splits is taken.
        image: size, windowing and resizing of the pictures.
        split: shares of train/val/test, and folds.
        near_duplicates: pictures that two patients share, re-encoded or resized: group keeps those patients in one split,
            warn only lists them, error stops.
        max_quarantine: stop when more than this share of the slices, or of the patients, cannot be used, e.g. 5%.
        pseudonymise: replace the names of patients, studies and slices by keyed hashes. The value is the file of the key,
            made where there is none; keep it, and the table that is written beside it, where the originals are.
    """

    seed: int = 0
    image: ImageSettings = field(default_factory=ImageSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    near_duplicates: Literal["group", "warn", "error"] = "group"
    max_quarantine: str = "5%"
    pseudonymise: str | None = None


@dataclass(frozen=True)
class PrepareSettings(CurationSettings, SourceSettings):
    """How raw studies become prepared data; the fields of `SourceSettings` say how the source is read.

    Attributes:
        labels: a label table: a YAML file, the name of one that comes with raymed, or source, which takes the labels as they
            are written, sorted.
    """

    labels: str = "lung"


@dataclass(frozen=True)
class CorpusSettings(CurationSettings, SampleSettings):
    """How samples become prepared data for pretraining.

    Attributes:
        split: shares of train/val/test patients.
        tiles: into how many tiles a picture is cut; image.size is the side of a tile.
        tokenizer: the model that will be trained, by which samples are measured: its folder, or the name of a preset.
        max_tokens: tokens of the longest sample, image tokens included; longer ones go to the quarantine.
    """

    split: SplitSettings = field(default_factory=lambda: SplitSettings("98/2/0", folds=0))
    tiles: TileSettings = field(default_factory=TileSettings)
    tokenizer: str = "internvl-tiny"
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 1:
            raise UserError(f"max_tokens is {self.max_tokens}: it must be at least 1")
        if self.image.resize != "squash":
            raise UserError("image.resize pad is not for tiles, to which a picture is stretched: leave it at squash")
        if self.image.size % TOKEN_SIDE:
            lower = max(TOKEN_SIDE, self.image.size // TOKEN_SIDE * TOKEN_SIDE)
            raise UserError(
                f"image.size is {self.image.size}: InternVL takes tiles whose side is a multiple of {TOKEN_SIDE}, "
                f"for example {lower} or {lower + TOKEN_SIDE}"
            )
