"""Conversations with their pictures as arrays: encoded one by one, and laid end to end as what the network takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raymed.data.record import Record
from raymed.data.tiles import TOKEN_SIDE, cut
from raymed.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raymed.models.internvl_text import ChoiceQuestion


@dataclass(frozen=True)
class Sample:
    """One encoded conversation.

    Attributes:
        ids, labels: of its tokens, int64 [length]; a label below 0 is not learned.
        is_image, kept: which tokens are a picture's, and which the language model sees, bool [length].
        tiles: uint8 [tiles, size, size, 3].
        questions: those with declared choices.
        silent: which of the image backbone's tokens are set to zero, those of one image token side by side, bool
            [image tokens, 4]; None where none ever is.
    """

    ids: np.ndarray
    labels: np.ndarray
    is_image: np.ndarray
    kept: np.ndarray
    tiles: np.ndarray
    questions: list[ChoiceQuestion]
    silent: np.ndarray | None = None

    @property
    def learned(self) -> int:
        return int((self.labels >= 0).sum())

    @property
    def asked(self) -> list[int]:
        """Which of the supervised tokens answer `questions`: the same however many image tokens are dropped."""
        return [int((self.labels[: question.place] >= 0).sum()) for question in self.questions]


def encode_sample(record: Record, size: int, tokenizer: PreTrainedTokenizerBase) -> Sample:
    """A record's text and tiles of `size` pixels; nothing is dropped.

    Raises:
        UserError: its pictures do not fit its text or the size, or a question its declared choices.
    """
    from raymed.models.internvl_text import choice_questions, encode_turns, token_id
    from raymed.models.marks import CONTEXT

    pictures = list(_tiles(record, size))
    image_tokens = [len(tiles) * (size // TOKEN_SIDE) ** 2 for tiles in pictures]
    try:
        encoded = encode_turns(tokenizer, record.messages, image_tokens)
        questions = choice_questions(tokenizer, record.messages, encoded[1])
    except UserError as error:
        raise UserError(f"record {record.id}: {error}") from error
    ids, labels = (np.array(each) for each in encoded)
    is_image = ids == token_id(tokenizer, CONTEXT)
    if is_image.sum() != sum(image_tokens):
        raise UserError(f"record {record.id}: its text holds {CONTEXT}, which stands for a picture: take it out")
    tiles = np.concatenate([np.empty((0, size, size, 3), np.uint8), *pictures])
    return Sample(ids, labels, is_image, np.ones(len(ids), bool), tiles, questions)


def lay(samples: Sequence[Sample], weight: Callable[[int], float]) -> dict[str, np.ndarray]:
    """Samples end to end, as `InternVLChat.forward` takes them.

    Args:
        weight: of each supervised token of a sample with so many. The declared choices of a sample weigh together as much as
            its tokens.
    """
    counts = [sample.learned for sample in samples]
    learned = np.concatenate([sample.labels[sample.kept] for sample in samples]) >= 0
    ids = np.concatenate([sample.ids[sample.kept] for sample in samples])
    places = np.flatnonzero(learned)
    starts = np.cumsum([0, *counts[:-1]]).tolist()
    questions = [question for sample in samples for question in sample.questions]
    choices = np.full((len(questions), max((len(question.choices) for question in questions), default=1)), -1)
    for row, question in enumerate(questions):
        choices[row, : len(question.choices)] = question.choices
    shares = [weight(count) * count / max(1, len(each.questions)) for each, count in zip(samples, counts, strict=True)]
    silent = [sample.silent for sample in samples if sample.silent is not None]
    return ({"silent": np.concatenate(silent)} if silent else {}) | {
        "pixels": np.concatenate([sample.tiles for sample in samples]).transpose(0, 3, 1, 2),
        "kept": np.flatnonzero(np.concatenate([sample.kept[sample.is_image] for sample in samples])),
        "image_places": np.flatnonzero(np.concatenate([sample.is_image[sample.kept] for sample in samples])),
        "ids": ids,
        "positions": np.concatenate([np.flatnonzero(sample.kept) for sample in samples]),
        "lengths": np.array([int(sample.kept.sum()) for sample in samples]),
        "places": places - 1,  # a token is predicted where the one before it is read
        "targets": ids[places],
        "weights": np.repeat([weight(count) for count in counts], counts).astype(np.float32),
        "asked": np.array(
            [start + row for start, each in zip(starts, samples, strict=True) for row in each.asked], np.int64
        ),
        "choices": choices,
        "answers": np.array([question.answer for question in questions], np.int64),
        "choice_weights": np.repeat(shares, [len(each.questions) for each in samples]).astype(np.float32),
    }


def _tiles(record: Record, size: int) -> Iterator[np.ndarray]:
    """The tiles of each picture in the order of their marks, the thumbnail last: uint8 [tiles, size, size, 3]."""
    places: dict[int, list[np.ndarray]] = {}
    for image in sorted(record.images, key=lambda image: (image.place, image.role == "thumbnail")):
        height, width, _ = image.pixels.shape
        if height % size or width % size:
            raise UserError(f"record {record.id}: a picture of {width}x{height} pixels is no grid of tiles of {size} pixels")
        places.setdefault(image.place, []).append(cut(image.pixels, size))
    yield from (np.concatenate(tiles) for tiles in places.values())
