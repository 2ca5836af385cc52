"""What a network says of each validation row, in the order of the rows, and the files beside a checkpoint that keep it.

Arrays lie in ``predictions.npz``; texts and pictures, where a system gives any, in ``predictions.parquet``, a line per row.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raymed.errors import RunError
from raymed.recipes.recipe import Predictions
from raymed.storage.folder import Folder
from raymed.training.checkpoint import OUTPUTS, PREDICTIONS, checkpoint_names, read_whole

PICTURE = {b"raymed.kind": b"picture"}  # of a column: PNG files; the others are texts


def in_order(parts: Sequence[tuple[Sequence[int], Predictions]]) -> Predictions:
    """The predictions of all micro-batches, each of the rows that stand before it, in ascending order of the rows.

    Raises:
        RunError: there are not as many values as rows, or parts that name different predictions.
    """
    names = parts[0][1].keys()
    for rows, predictions in parts:
        lengths = {name: len(values) for name, values in predictions.items()}
        if predictions.keys() != names or set(lengths.values()) - {len(rows)}:
            raise RunError(f"a micro-batch of {len(rows)} rows got predictions of {lengths}: every row needs one of each")
    order = np.argsort(np.concatenate([np.asarray(rows) for rows, _ in parts]))
    together: Predictions = {}
    for name in names:
        values = [predictions[name] for _, predictions in parts]
        if isinstance(values[0], np.ndarray):
            together[name] = np.concatenate(values)[order]
        else:
            flat = [value for part in values for value in part]
            together[name] = [flat[place] for place in order]
    return together


def write_predictions(folder: Path, predictions: Predictions) -> None:
    """Write them into a checkpoint's folder, before it is sealed."""
    arrays = {name: values for name, values in predictions.items() if isinstance(values, np.ndarray)}
    np.savez(folder / PREDICTIONS, **arrays)  # type: ignore[arg-type]
    columns, fields = [], []
    for name, values in predictions.items():
        if name in arrays:
            continue
        are_texts = all(isinstance(value, str) for value in values)
        columns.append(pa.array(values, pa.large_string()) if are_texts else pa.array(map(_png, values), pa.large_binary()))
        fields.append(pa.field(name, columns[-1].type, metadata=None if are_texts else PICTURE))
    if columns:
        pq.write_table(pa.Table.from_arrays(columns, schema=pa.schema(fields)), folder / OUTPUTS)


def read_predictions(checkpoint: Folder) -> Predictions:
    """What `write_predictions` wrote.

    Raises:
        RunError: a file is missing or damaged.
    """
    with np.load(io.BytesIO(read_whole(checkpoint, PREDICTIONS))) as stored:
        predictions: Predictions = dict(stored)
    if checkpoint.exists(OUTPUTS):
        table = pq.read_table(io.BytesIO(read_whole(checkpoint, OUTPUTS)))
        for field in table.schema:
            values = table[field.name].to_pylist()
            are_pictures = PICTURE.items() <= (field.metadata or {}).items()
            predictions[field.name] = [_pixels(value) for value in values] if are_pictures else values
    return predictions


def last_predictions(run: Folder) -> Predictions | None:
    """What the newest checkpoint of a run says that was made after a validation; None where none can be read."""
    for name in reversed(checkpoint_names(run)):
        with suppress(RunError):  # made on leaving, or torn
            return read_predictions(run.child(name))
    return None


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))
