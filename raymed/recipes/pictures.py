"""From records to an array of pictures and their labels, for recipes that look at one picture per record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from raymed.data.record import Record
from raymed.errors import UserError


def stack_pictures(records: Sequence[Record], side: int) -> np.ndarray:
    """The records' pictures, uint8 [rows, 1 or 3, side, side].

    Raises:
        UserError: a record does not hold exactly one picture of that size.
    """
    pictures = []
    for record in records:
        if len(record.images) != 1:
            raise UserError(f"record {record.id} holds {len(record.images)} pictures; this recipe takes one per record")
        picture = record.images[0].pixels
        if picture.shape[:2] != (side, side):
            raise UserError(
                f"record {record.id} is {picture.shape[1]}x{picture.shape[0]} pixels, but the model takes "
                f"{side}x{side}: prepare the data again with that size"
            )
        pictures.append(picture)
    channels = max(picture.shape[2] for picture in pictures)
    rows = np.empty((len(pictures), channels, side, side), np.uint8)
    for row, picture in zip(rows, pictures, strict=True):
        row[:] = picture.transpose(2, 0, 1)  # one channel fills three where grey and colour pictures meet
    return rows


def stack_features(records: Sequence[Record]) -> np.ndarray | None:
    """What a frozen part made of the records' pictures, float32 [rows, ...]; None where they have their pictures."""
    made = [record.features for record in records if record.features is not None]
    return np.stack(made) if made else None


def class_labels(records: Sequence[Record], required: bool) -> torch.Tensor | None:
    """The records' class indices, int64 [rows]; None where a record has none and labels are not `required`.

    Raises:
        UserError: labels are required, and records have none.
    """
    unlabelled = [record.id for record in records if record.label is None]
    if required and unlabelled:
        raise UserError(f"records without a label cannot be trained on: {', '.join(unlabelled[:10])}. Label them.")
    return None if unlabelled else torch.tensor([record.label for record in records])
