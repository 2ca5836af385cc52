"""Records as arrays: each sample's tokens, and samples end to end as one packed sequence. Nothing is padded.

Text and marks go through the understanding expert, as do the patches that the ViT has read; latents go through the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from raymed.data.record import Record
from raymed.errors import UserError
from raymed.systems.unimedvl.modes import CAUSAL, FULL, NOISE
from raymed.systems.unimedvl.sequence import CondDropout, Element, from_messages
from raymed.systems.unimedvl.settings import GridSettings
from raymed.systems.unimedvl.tokens import TextTokens

PLACES = ("text_places", "patch_places", "latent_places", "supervised")  # fields that say where in the sequence


@dataclass(frozen=True, eq=False)
class PackedSequence:
    """One or more samples end to end: T tokens in S samples.

    Attributes:
        positions: rotary position of each token, from 0 in each sample; those of a picture share one. int64 [T].
        split_lengths: tokens of each run that is masked alike, in order. int64 [splits].
        split_modes: CAUSAL (a text), FULL (a picture) or NOISE (a picture to draw), both with their marks. int64 [splits].
        split_samples: which sample it belongs to. int64 [splits].
        text_ids: of texts, and of the marks around texts and pictures. int64 [text].
        text_places: where they stand. int64 [text].
        patches: of pictures that the ViT sees; element (row * patch + column) * 3 + channel. uint8 [patches, 3 * patch²].
        patch_positions: row * vit_side + column. int64 [patches].
        patch_places: where they stand. int64 [patches].
        patch_counts: patches of each picture. int64 [ViT pictures].
        pixels: pictures that the autoencoder sees, each [3, height, width], one after the other. uint8 [sum]; or none, and
        moments: what it made of them. float32 [latents, 2 * width].
        latent_grids: rows and columns of latent tokens of each. int64 [pictures, 2].
        latent_positions: row * latent_side + column. int64 [latents].
        latent_places: where they stand. int64 [latents].
        noisy: which of those pictures are to be drawn. bool [pictures].
        image_samples: which sample each belongs to. int64 [pictures].
        supervised: where the next token is learned. int64 [n].
        labels: that token. int64 [n].
        label_weights: 1, or one over the root of how many tokens its text has. float32 [n].
        supervised_counts: supervised tokens of each sample. int64 [S].
        target_counts: latent tokens of each sample that are to be drawn. int64 [S].
    """

    positions: np.ndarray
    split_lengths: np.ndarray
    split_modes: np.ndarray
    split_samples: np.ndarray
    text_ids: np.ndarray
    text_places: np.ndarray
    patches: np.ndarray
    patch_positions: np.ndarray
    patch_places: np.ndarray
    patch_counts: np.ndarray
    pixels: np.ndarray
    moments: np.ndarray
    latent_grids: np.ndarray
    latent_positions: np.ndarray
    latent_places: np.ndarray
    noisy: np.ndarray
    image_samples: np.ndarray
    supervised: np.ndarray
    labels: np.ndarray
    label_weights: np.ndarray
    supervised_counts: np.ndarray
    target_counts: np.ndarray

    @property
    def samples(self) -> int:
        return len(self.supervised_counts)


def encode_sample(
    record: Record,
    grids: GridSettings,
    tokens: TextTokens,
    dropout: CondDropout | None = None,
    draws: np.random.Generator | None = None,
    reweight: bool = False,
) -> PackedSequence:
    """A record as a sequence of one sample.

    Args:
        draws: from which it is drawn what is dropped; without it nothing is.
        reweight: whether long answers weigh less for each token (BAGEL's "square").

    Raises:
        UserError: the record is no sequence, or a picture does not fit the grids.
    """
    elements = from_messages(record.messages)
    pictures = {element: _picture(record, element) for element in elements if not element.is_text}
    dropped = dropout.dropped(elements, draws) if dropout else [False] * len(elements)
    sample = _Sample(record, grids, tokens, reweight)
    latents = 0  # of pictures before, dropped ones too
    for element, out in zip(elements, dropped, strict=True):
        if element.is_text:
            if not out:
                sample.add_text(element)
            continue
        pixels, moments = pictures[element], None
        if record.features is not None and element.kind != "vit":
            height, width, _ = pixels.shape
            first, latents = latents, latents + height * width // grids.latent_stride**2
            moments = record.features[first:latents]
        if out:
            sample.position += 1  # a picture's position stays free
        else:
            sample.add_picture(element, pixels, moments)
    return sample.finish()


def pack(samples: Sequence[PackedSequence]) -> PackedSequence:
    """Sequences end to end, as one."""
    starts = np.cumsum([0, *(len(sample.positions) for sample in samples)])
    numbers = np.cumsum([0, *(sample.samples for sample in samples)])
    joined = {}
    for field in fields(PackedSequence):
        shifts = starts if field.name in PLACES else numbers if field.name in ("split_samples", "image_samples") else None
        parts = [getattr(sample, field.name) for sample in samples]
        if shifts is not None:
            parts = [part + shift for part, shift in zip(parts, shifts, strict=False)]
        joined[field.name] = np.concatenate(parts)
    return PackedSequence(**joined)


def token_count(elements: Sequence[Element], text_length: Callable[[str], int], areas: Sequence[int]) -> int:
    """Tokens of a sequence from which nothing is dropped: two marks for each element.

    Args:
        areas: of each picture in `elements`, in order, its tokens.
    """
    texts = sum(text_length(element.text) for element in elements if element.is_text)
    return texts + sum(areas) + 2 * len(elements)


def _picture(record: Record, element: Element) -> np.ndarray:
    role = "input" if element.kind == "vit" else "output"
    for image in record.images:
        if (image.role, image.place) == (role, element.place):
            return image.pixels
    raise UserError(f"record {record.id} lacks picture {element.place + 1} of its sequence: prepare the data again")


def _patches(pixels: np.ndarray, patch: int) -> np.ndarray:
    """uint8 [h, w, 3] -> [rows * columns, patch * patch * 3], row by row."""
    height, width, _ = pixels.shape
    cut = pixels.reshape(height // patch, patch, width // patch, patch, 3).transpose(0, 2, 1, 3, 4)
    return cut.reshape(-1, patch * patch * 3)


class _Sample:
    """A sequence in the making; `position` is the next rotary position."""

    def __init__(self, record: Record, grids: GridSettings, tokens: TextTokens, reweight: bool) -> None:
        self.position = 0
        self._record, self._grids, self._tokens, self._reweight = record.id, grids, tokens, reweight
        self._length = self._target = 0
        self._parts: dict[str, list[np.ndarray]] = {field.name: [] for field in fields(PackedSequence)}
        if record.features is not None:
            self._parts["moments"].append(record.features[:0])  # as wide as those of samples with pictures

    def add_text(self, element: Element) -> None:
        tokens = self._tokens
        ids = [tokens.start, *tokens.ids(element.text), tokens.end]
        places = self._extend(len(ids), CAUSAL, self.position + np.arange(len(ids)))
        self.position += len(ids)
        self._put(text_ids=ids, text_places=places)
        if element.learned:
            weight = (len(ids) - 1) ** -0.5 if self._reweight else 1.0
            self._put(supervised=places[:-1], labels=ids[1:])
            self._put(label_weights=np.full(len(ids) - 1, weight, np.float32))

    def add_picture(self, element: Element, pixels: np.ndarray, moments: np.ndarray | None = None) -> None:
        by_vit, noisy = element.kind == "vit", element.kind == "target"
        grids = self._grids
        stride, side = (grids.vit_patch, grids.vit_side) if by_vit else (grids.latent_stride, grids.latent_side)
        height, width, channels = pixels.shape
        rows, columns = height // stride, width // stride
        if height % stride or width % stride or not 1 <= max(rows, columns) <= side:
            raise UserError(
                f"record {self._record}: a picture of {width}x{height} pixels fits no grid of {side}x{side} tokens of "
                f"{stride} pixels: prepare the data with the transform arguments of this model"
            )
        if channels == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        places = self._extend(rows * columns + 2, NOISE if noisy else FULL, np.full(rows * columns + 2, self.position))
        self.position += not noisy
        self._put(text_ids=[self._tokens.vision_start, self._tokens.vision_end], text_places=places[[0, -1]])
        positions = (np.arange(rows)[:, None] * side + np.arange(columns)).ravel()
        if by_vit:
            self._put(patch_positions=positions, patch_places=places[1:-1], patch_counts=[rows * columns])
            self._parts["patches"].append(_patches(pixels, stride))
            return
        self._put(latent_positions=positions, latent_places=places[1:-1], image_samples=[0])
        self._parts["latent_grids"].append(np.array([[rows, columns]]))
        self._parts["noisy"].append(np.array([noisy]))
        if moments is None:
            self._parts["pixels"].append(pixels.transpose(2, 0, 1).ravel())
        else:
            self._parts["moments"].append(moments)
        self._target += noisy * rows * columns

    def finish(self) -> PackedSequence:
        self._put(supervised_counts=[sum(map(len, self._parts["labels"]))], target_counts=[self._target])
        empty: dict[str, np.ndarray] = {
            "patches": np.zeros((0, 3 * self._grids.vit_patch**2), np.uint8),
            "latent_grids": np.zeros((0, 2), np.int64),
            "pixels": np.zeros(0, np.uint8),
            "moments": np.zeros((0, 0), np.float32),
            "noisy": np.zeros(0, bool),
            "label_weights": np.zeros(0, np.float32),
        }
        joined = {
            name: np.concatenate(parts) if parts else empty.get(name, np.zeros(0, np.int64))
            for name, parts in self._parts.items()
        }
        return PackedSequence(**joined)

    def _extend(self, length: int, mode: int, positions: np.ndarray) -> np.ndarray:
        """Make room for so many tokens; their places."""
        places = self._length + np.arange(length)
        self._length += length
        self._put(positions=positions, split_lengths=[length], split_modes=[mode], split_samples=[0])
        return places

    def _put(self, **values: Sequence[int] | np.ndarray) -> None:
        for name, value in values.items():
            self._parts[name].append(np.asarray(value) if isinstance(value, np.ndarray) else np.array(value, np.int64))
