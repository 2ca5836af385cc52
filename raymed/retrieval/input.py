"""What features are computed of: prepared data, or pictures as they are."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from raymed.data.image import ImageSettings
from raymed.data.prepared import MANIFEST, Prepared
from raymed.data.sources import Refusal, SourceSettings
from raymed.errors import UserError
from raymed.retrieval.parts import Part, prepared_parts, source_listing, source_parts
from raymed.storage.folder import Folder

log = logging.getLogger("raymed")

OF_PREPARED = ("split",)
OWN_NAMES = {f"image.{name}": name for name in ("size", "resize", "window", "sixteen_bit", "exif")}
OF_OTHERS = (*OWN_NAMES.values(), "labels", "source")  # settled when data are prepared


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Pictures, listed.

    Attributes:
        parts: of them, each to become a shard.
        image: how they are treated.
        data: where they come from, for the manifest of the features.
        refused: those that cannot be used.
    """

    parts: list[Part]
    image: ImageSettings
    data: dict[str, str]
    refused: list[Refusal]

    @property
    def pictures(self) -> int:
        """How many are to be looked at."""
        return sum(len(part.rows) for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Input:
    """Which pictures, and how they are read.

    Attributes:
        input: Prepared data, or pictures: a folder, a CSV, DICOM or NIfTI.
        split: Of prepared data: train, val, test or all.
        source: How pictures are read.
        labels: Label table of pictures that are not prepared: a YAML file, a name, or source, which takes them as written.
        size: Side of the pictures that the ViT sees; its positions are resampled (default: as it was made).
        resize: squash stretches pictures to the square; pad keeps their shape and adds black borders.
        window: For slices in Hounsfield units, as in the prepare jobs.
        sixteen_bit: What the values of 16-bit pictures mean, as image.sixteen_bit in the prepare jobs.
        exif: Of pictures whose EXIF data ask for a rotation: apply turns all as they say, refuse takes none.
    """

    input: str
    split: Literal["train", "val", "test", "all"] = "all"
    source: SourceSettings = field(default_factory=SourceSettings)
    labels: str = "source"
    size: int | None = None
    resize: Literal["squash", "pad"] = "squash"
    window: str = "lung"
    sixteen_bit: str = "refuse"
    exif: Literal["refuse", "apply"] = "refuse"

    def open(self, size: int) -> Opened:
        """The pictures, for a ViT that was made for `size` pixels.

        Raises:
            UserError: an option does not apply to them, they cannot be read, or there is none.
        """
        is_prepared = Folder.at(self.input).exists(MANIFEST)
        usual = Input(input=self.input)
        idle = [name for name in (OF_OTHERS if is_prepared else OF_PREPARED) if getattr(self, name) != getattr(usual, name)]
        if idle:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
            known = "prepared data, whose pictures are as they were prepared" if is_prepared else "pictures without splits"
            raise UserError(f"{options} cannot be followed: {self.input} holds {known}")
        opened = self._prepared() if is_prepared else self._source(size)
        if not opened.pictures:
            raise UserError(f"there is no picture in {self.input} (--split {self.split}) to compute features of")
        return opened

    def _prepared(self) -> Opened:
        prepared = Prepared.open(self.input)
        if "datasets" in prepared.manifest.settings:
            raise UserError(f"{self.input} holds conversations, prepared for pretraining: give the folder of their pictures")
        data = {"kind": "prepared", "root": prepared.folder.uri, "split": self.split}
        return Opened(parts=prepared_parts(prepared, self.split), image=prepared.image, data=data, refused=[])

    def _source(self, size: int) -> Opened:
        image = ImageSettings(self.size or size, self.resize, self.window, self.sixteen_bit, self.exif)
        listing = source_listing(Path(self.input).expanduser().absolute(), self.source)
        parts, ignored = source_parts(listing, self.labels, image)
        for line in (*listing.notes, *(f"left out: {count} pictures labelled {name}" for name, count in ignored.items())):
            log.info("%s", line)
        data = {"kind": listing.format, "root": str(listing.root)}
        return Opened(parts=parts, image=image, data=data, refused=list(listing.refusals))
