"""A corpus for pretraining: samples of pictures and text, checked, cut into tiles, split by patient, written as shards."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raymed.data.image import ImageError, ImageSettings
from raymed.data.labels import LabelTable
from raymed.data.prepare import PrepareResult, curate, expected_split, plain_settings
from raymed.data.pseudonyms import Pseudonyms
from raymed.data.record import Image, Message
from raymed.data.settings import CorpusSettings
from raymed.data.shards import Content
from raymed.data.sources import Refusal, Slice, Study, read_whole
from raymed.data.sources.sample import read_sample
from raymed.data.sources.samples import list_samples
from raymed.data.survey import Survey
from raymed.data.tiles import TOKEN_SIDE, TileSettings, grid, stretch, tile_count
from raymed.errors import UserError
from raymed.models.internvl_text import byte_tokenizer, choice_questions, encode_turns, read_tokenizer, tokenizer_digest
from raymed.models.model_folders import find_model
from raymed.storage.folder import Folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("raymed")

TOKENIZER_FILES = "config.json and the tokenizer's files"  # of a model's folder


@dataclass(frozen=True)
class Encoding:
    """What decides how long a sample is and what its pictures look like; `tokenizer` is its digest."""

    image: ImageSettings
    tiles: TileSettings
    tokenizer: str
    max_tokens: int


@dataclass(frozen=True)
class LoadSamples:
    """The samples of a study: text read again from its line, pictures as grids of tiles.

    Attributes:
        root: folder that paths are relative to.
        folders: of each data set's pictures, relative to the root.
        most: most tiles of a picture, for each data set.
        settings: what else decides.
        tokenizer: absolute path of a folder, or preset.
    """

    root: Path
    folders: Mapping[str, str]
    most: Mapping[str, int]
    settings: Encoding
    tokenizer: str

    @property
    def row_bytes(self) -> int:
        return 4 * self.settings.image.size**2

    def __call__(self, study: Study) -> Iterator[tuple[Slice, Content | Refusal]]:
        for piece in study.slices:
            images, messages = self._read(piece, study.source)
            try:
                yield piece, self._content(images, messages, self.most[study.source])
            except ImageError as error:
                yield piece, Refusal(piece.id, piece.where, study.patient, str(error))

    def _read(self, piece: Slice, source: str) -> tuple[tuple[str, ...], tuple[Message, ...]]:
        """Paths relative to the root, and turns."""
        if piece.frame is None:
            return (piece.path,), piece.messages
        try:
            with (self.root / piece.path).open("rb") as file:
                file.seek(piece.frame)
                sample = read_sample(file.readline())
        except (OSError, ValueError) as error:
            raise UserError(f"{piece.where} changed while it was being prepared: {error}. Prepare it again") from error
        return tuple(f"{self.folders[source]}/{image.strip()}" for image in sample.images), sample.messages

    def _content(self, paths: tuple[str, ...], messages: tuple[Message, ...], most: int) -> Content:
        """Raises: ImageError: a picture cannot be used, or the sample is too long."""
        settings, size = self.settings, self.settings.image.size
        each = max(1, most // max(1, len(paths)))
        images: list[Image] = []
        tiles: list[int] = []
        for place, path in enumerate(paths):
            try:
                picture = read_whole(self.root / path.replace("\\", "/"), settings.image)
            except ImageError as error:
                raise ImageError(f"picture {place + 1} of {len(paths)}: {error}") from error
            height, width = picture.shape[:2]
            columns, rows = grid(width, height, min(settings.tiles.least, each), each, size)
            images.append(Image("input", place, stretch(picture, columns * size, rows * size)))
            tiles.append(tile_count(columns, rows, settings.tiles.thumbnail))
            if tiles[-1] > columns * rows:
                images.append(Image("thumbnail", place, stretch(picture, size, size)))
        tokenizer = _tokenizer(self.tokenizer)
        ids, labels = encode_turns(tokenizer, messages, [0] * len(paths))
        try:
            choice_questions(tokenizer, messages, labels)
        except UserError as error:
            raise ImageError(str(error)) from error
        text = len(ids)
        tokens = text + sum(tiles) * (size // TOKEN_SIDE) ** 2
        if tokens > settings.max_tokens:
            raise ImageError(
                f"{tokens} tokens ({text} of text, {sum(tiles)} tiles), more than max_tokens {settings.max_tokens}"
            )
        return Content(tuple(images), messages, tokens)


def survey_corpus(source: Path, settings: CorpusSettings) -> tuple[Survey, dict[str, dict[str, Any]]]:
    """What a source holds, every line checked, and how each data set is used. Opens no picture, and writes nothing but the
    lines of a JSON array, beside it.

    Raises:
        UserError: everything that is wrong with it.
    """
    listing, used = list_samples(source, settings, settings.tiles.most, private=settings.pseudonymise is not None)
    found = Survey(listing, LabelTable(()), listing.studies, {})
    expected_split(found, settings)
    return found, used


def prepare_corpus(source: Path, out: str, settings: CorpusSettings) -> PrepareResult:
    """Bring the folder `out` in line with `source`: new and changed samples are read, removed ones leave.

    Raises:
        UserError: lines are wrong, too many samples are unusable, or two patients share identical pixels. What stood in
            `out` before is then untouched.
    """
    digest = open_tokenizer_digest(settings.tokenizer)
    found, used = survey_corpus(source, settings)
    folder = Folder.at(out)
    load = LoadSamples(
        root=found.listing.root,
        folders={name: use["root"] for name, use in used.items()},
        most={name: use["max_dynamic_patch"] for name, use in used.items()},
        settings=Encoding(settings.image, settings.tiles, digest, settings.max_tokens),
        tokenizer=_located(settings.tokenizer),
    )
    if settings.pseudonymise:
        if telling := sorted(used.keys() & {study.patient for study in found.studies}):
            raise UserError(f"data sets are named like patients, whose names would stay: {', '.join(telling)}. Rename them")
        pseudonyms = Pseudonyms.open(settings.pseudonymise, folder)
        found, settings = pseudonyms.rename(found), replace(settings, pseudonymise=pseudonyms.key_name, root=None)
        used = {name: use | {"root": None, "annotation": None} for name, use in used.items()}
    described = plain_settings(settings, CorpusSettings) | {"tokenizer": digest, "datasets": used}
    return curate(found, load, folder, settings, described, ("image", "tiles", "tokenizer", "max_tokens"))


def open_tokenizer_digest(name: str) -> str:
    """The digest of a model's tokenizer.

    Raises:
        UserError: neither a model folder with a usable tokenizer nor the name of a preset.
    """
    from raymed.models.internvl_config import PRESETS

    try:
        return tokenizer_digest(_tokenizer(_located(name)))
    except UserError as error:
        raise UserError(f"--tokenizer takes a model's folder or one of the presets {', '.join(PRESETS)}; {error}") from error


def _located(name: str) -> str:
    """A preset, or the absolute path of a model's folder: workers have another working folder."""
    from raymed.models.internvl_config import PRESETS

    return name if name in PRESETS else str(find_model(name, TOKENIZER_FILES))


@lru_cache(maxsize=1)
def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    from raymed.models.internvl_config import PRESETS

    if name in PRESETS:
        return byte_tokenizer()
    return read_tokenizer(Path(name), int(np.iinfo(np.int64).max))
