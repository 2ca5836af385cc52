"""Data sets of a configuration -> prepared data: sequences with their pictures as both networks see them, and their length.

Pictures are decoded and resized once. A record's messages are the elements of its sequence (sequence.py); its pictures have
the role input as the ViT sees them and output as the autoencoder does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from raymed.data.image import ImageError, ImageSettings
from raymed.data.labels import LabelTable
from raymed.data.prepare import PrepareResult, curate, expected_split, plain_settings
from raymed.data.pseudonyms import Pseudonyms
from raymed.data.record import Image
from raymed.data.shards import Content
from raymed.data.sources import Refusal, Slice, Study, read_whole
from raymed.data.survey import Survey
from raymed.data.tiles import stretch
from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.listing import list_sequences, source_of, tidy_paths
from raymed.systems.unimedvl.mixture_config import MixtureConfig
from raymed.systems.unimedvl.packs import token_count
from raymed.systems.unimedvl.prepare_settings import SequenceSettings
from raymed.systems.unimedvl.registry import plan_digest
from raymed.systems.unimedvl.resize import ResizeSettings, target_size
from raymed.systems.unimedvl.samples import read_sample
from raymed.systems.unimedvl.sequence import Plan, sequence_of, to_messages
from raymed.systems.unimedvl.settings import PRESETS, checkpoint_folder
from raymed.systems.unimedvl.tokens import TextTokens

WHITE = 255
MAX_SIDE, MAX_PIXELS = 4096, 20_000_000  # a larger picture is cut into smaller ones by whoever makes the data
SHARED_AREA = ("vlm_sft",)  # classes whose max_pixels is for all pictures of a sample together


@dataclass(frozen=True)
class SetReading:
    """How the lines of a data set become records; `shared` divides an area among the pictures of a sample."""

    folder: str
    plan: Plan
    cfg_dropout: bool
    vit: ResizeSettings
    vae: ResizeSettings
    shared: bool


@dataclass(frozen=True)
class Encoding:
    """What decides about a record besides its line and pictures, as plain values."""

    image: ImageSettings
    tokenizer: str
    sets: Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class LoadSequences:
    """The sequences of a study: lines read again, pictures at their sizes.

    Attributes:
        root: folder that paths are relative to.
        sets: how each data set is read, by its source.
        settings: what decides.
        tokenizer: absolute path of a folder, or preset.
    """

    root: Path
    sets: Mapping[str, SetReading]
    settings: Encoding
    tokenizer: str

    @property
    def row_bytes(self) -> int:
        return max(each.vit.max_image_size**2 + each.vae.max_image_size**2 for each in self.sets.values())

    def __call__(self, study: Study) -> Iterator[tuple[Slice, Content | Refusal]]:
        reading = self.sets[study.source]
        for piece in study.slices:
            try:
                yield piece, self._content(piece, reading)
            except ImageError as error:
                yield piece, Refusal(piece.id, piece.where, study.patient, str(error))

    def _content(self, piece: Slice, reading: SetReading) -> Content:
        """Raises: ImageError: a picture cannot be used."""
        try:
            with (self.root / piece.path).open("rb") as file:
                file.seek(piece.frame or 0)
                sample = read_sample(file.readline())
            elements = sequence_of(sample, reading.plan, reading.cfg_dropout)
            paths = tidy_paths(sample, Path(reading.folder), piece.where)
        except (OSError, ValueError) as error:
            raise UserError(f"{piece.where} changed while it was being prepared: {error}. Prepare it again") from error
        images: dict[tuple[str, int], Image] = {}
        areas = []
        many = len(paths) if reading.shared else 1
        for element in elements:
            if element.is_text:
                continue
            role, settings = ("input", reading.vit) if element.kind == "vit" else ("output", reading.vae)
            key = role, element.place
            if key not in images:
                try:
                    picture = read_whole(Path(reading.folder, paths[element.place]), self.settings.image, WHITE)
                    height, width = picture.shape[:2]
                    if max(height, width) >= MAX_SIDE or height * width > MAX_PIXELS:
                        raise ImageError(
                            f"{width}x{height} pixels: sides must be below {MAX_SIDE}, and {MAX_PIXELS // 10**6} megapixels "
                            "are the most"
                        )
                except ImageError as error:
                    raise ImageError(f"picture {element.place + 1} of {len(paths)}: {error}") from error
                images[key] = Image(role, element.place, stretch(picture, *target_size(width, height, settings, many)))
            down, across = images[key].pixels.shape[:2]
            areas.append((down // settings.image_stride) * (across // settings.image_stride))
        tokens = _tokens(self.tokenizer)
        cost = token_count(elements, lambda text: len(tokens.ids(text)), areas)
        return Content(tuple(images.values()), to_messages(elements), cost)


@dataclass(frozen=True)
class SequenceSurvey:
    """Data sets of a configuration, every line checked.

    Attributes:
        survey: what is to be prepared.
        lines: of each data set, how many lines there are, are used and are refused.
    """

    survey: Survey
    lines: dict[str, dict[str, int]]


def survey_sequences(config: MixtureConfig, settings: SequenceSettings) -> SequenceSurvey:
    """What a configuration names. Decodes no picture, and writes nothing.

    Raises:
        UserError: everything that is wrong with it.
    """
    listing, lines = list_sequences(config, settings.source, private=settings.pseudonymise is not None)
    found = Survey(listing, LabelTable(()), listing.studies, {})
    expected_split(found, settings)
    return SequenceSurvey(found, lines)


def prepare_sequences(config: MixtureConfig, out: str, settings: SequenceSettings) -> PrepareResult:
    """Bring the folder `out` in line with the configuration: new and changed lines are read, removed ones leave.

    Raises:
        UserError: too many lines are unusable, or two patients share identical pixels. What stood in `out` before is then
            untouched.
    """
    tokenizer = located(settings.tokenizer)
    digest = _tokens(tokenizer).digest
    surveyed = survey_sequences(config, settings)
    found, folder = surveyed.survey, Folder.at(out)
    sets = {
        source_of(group, part): SetReading(
            part.info.data_dir and str(Path(part.info.data_dir).expanduser().absolute()),
            *(group.plan, group.cfg_dropout, group.vit, group.vae, group.class_key in SHARED_AREA),
        )
        for group in config.groups
        for part in group.sets
    }
    encoded = {
        name: (plan_digest(each.plan), each.cfg_dropout, asdict(each.vit), asdict(each.vae), each.shared)
        for name, each in sorted(sets.items())
    }
    load = LoadSequences(found.listing.root, sets, Encoding(settings.image, digest, encoded), tokenizer)
    if settings.pseudonymise:
        pseudonyms = Pseudonyms.open(settings.pseudonymise, folder)
        found, settings = pseudonyms.rename(found), replace(settings, pseudonymise=pseudonyms.key_name)
    described = plain_settings(settings, SequenceSettings) | {
        "tokenizer": digest,
        "groups": config.described(),
        "lines": surveyed.lines,
        "encoding": repr(encoded),
    }
    return curate(found, load, folder, settings, described, ("image", "tokenizer", "encoding"))


def located(name: str) -> str:
    """A preset, or the absolute path of a model's folder: workers have another working folder."""
    return name if name in PRESETS else str(checkpoint_folder(name))


@lru_cache(maxsize=1)
def _tokens(name: str) -> TextTokens:
    return TextTokens.bytes() if name in PRESETS else TextTokens.read(Path(name))
