"""What the machine keeps of records whose pictures a frozen part has seen, without Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from raymed.data.record import RECORD, Image, Record, records_from
from raymed.recipes.recipe import Recipe
from raymed.training.frozen import make_features
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec


@dataclass(frozen=True)
class Rows:
    """A block of records, in place of one in the shards."""

    table: pa.Table

    def read(self) -> pa.Table:
        return self.table


def kept_records(recipe: Recipe, records: Sequence[Record], seed: int = 0) -> list[Record]:
    """The records as a run reads them whose network begins with this seed."""
    at_once = TrainSettings(micro_batch=len(records))  # the last bits of a convolution follow from how many there are
    spec = RunSpec("run", "nowhere", "nowhere", recipe, at_once, seed=seed)
    rows = Rows(pa.Table.from_pylist([_row(record) for record in records], schema=RECORD))
    (_, moving), table, end = make_features(spec, [rows], torch.device("cpu"))  # type: ignore[list-item]
    assert (moving, end) == ("", None)
    return records_from(table)


def _row(record: Record) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in ("id", "patient", "study", "position", "label", "source")}
    messages = [{"role": message.role, "text": message.text} for message in record.messages]
    return row | {"images": list(map(_image, record.images)), "messages": messages, "cost": 1}


def _image(image: Image) -> dict[str, Any]:
    height, width, channels = image.pixels.shape
    shape = {"height": height, "width": width, "channels": channels}
    return {"role": image.role, "place": image.place, "pixels": image.pixels.tobytes(), **shape}
