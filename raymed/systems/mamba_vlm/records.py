"""Records of reports as tensors: pictures, masks, questions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raymed.data.record import Record
from raymed.errors import UserError
from raymed.recipes.pictures import stack_features
from raymed.systems.mamba_vlm.intensity import Intensity


@dataclass(frozen=True)
class Reports:
    """A batch of reports.

    Attributes:
        pictures: float32 [batch, slices, 1, height, width], as the encoder reads them; None where their features are there.
        features: what a frozen encoder made of them, float32 [batch, slices, channels, side, side].
        mask: float32 of the pictures' shape, 0 or 1; zeros where a report has no mask, None where none is wanted.
        questions: of each report.
        answers: the reports.
    """

    pictures: Tensor | None
    features: Tensor | None
    mask: Tensor | None
    questions: list[str]
    answers: list[str]


def read_reports(records: Sequence[Record], size: int, intensity: Intensity, masked: bool) -> Reports:
    """The batch that records make.

    Args:
        size: side of the pictures.
        masked: whether masks are wanted.

    Raises:
        UserError: a record holds no report, or pictures of another size; names it.
    """
    features, pictures = stack_features(records), None
    if features is None:
        stacked = torch.from_numpy(np.stack([_pictures(record, "input", size) for record in records]))
        pictures = intensity.normalised(stacked)
    masks = None
    if masked:
        slices = sum(image.role == "input" for image in records[0].images)
        empty = np.zeros((slices, 1, size, size), np.uint8)
        own = [_pictures(record, "mask", size) if _has_mask(record) else empty for record in records]
        masks = torch.from_numpy(np.stack(own)).float() / 255
    questions, answers = zip(*(_texts(record) for record in records), strict=True)
    made = None if features is None else torch.from_numpy(features)
    return Reports(pictures, made, masks, list(questions), list(answers))


def _has_mask(record: Record) -> bool:
    return any(image.role == "mask" for image in record.images)


def _pictures(record: Record, role: str, size: int) -> np.ndarray:
    """uint8 [slices, 1, size, size], in the order of their places."""
    images = sorted((image for image in record.images if image.role == role), key=lambda image: image.place)
    if not images or any(image.pixels.shape != (size, size, 1) for image in images):
        shapes = ", ".join(str(image.pixels.shape) for image in images) or "none"
        raise UserError(f"{record.id}: pictures of {size} x {size} are needed, and it has {shapes}: prepare the data again")
    return np.stack([image.pixels.transpose(2, 0, 1) for image in images])


def _texts(record: Record) -> tuple[str, str]:
    """Question and answer."""
    texts = {message.role: message.text for message in record.messages}
    if len(record.messages) != 2 or texts.keys() != {"human", "gpt"}:
        raise UserError(f"{record.id} holds no question and answer: prepare the data with jobs/prepare_mamba.py")
    return texts["human"], texts["gpt"]
