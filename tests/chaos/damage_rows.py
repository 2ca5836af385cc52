"""The rows about damaged files: bits of registered models and of shards, flipped one at a time."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from conftest import write_prepared

from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.data.record import records_from
from raymed.errors import UserError
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.predict import Inference
from raymed.recipes.exported import open_model
from raymed.registry.address import resolve_model
from raymed.registry.served_model import save
from raymed.storage.seal import SEAL
from raymed.systems.lung.recipe import LungRecipe
from raymed.tracking.tracker import Tracker


def damaged_models(tries: int, seed: int, folder: Path) -> str:
    """A bit flipped anywhere in a registered model; it must not be opened, and the file must be named."""
    draw, prepared = random.Random(seed), write_prepared(folder / "data", patients=8, slices=1)
    recipe = LungRecipe.for_data(prepared.labels, prepared.size)
    torch.manual_seed(seed)
    recipe.export(recipe.build(), folder / "network")
    inference = Inference("model", prepared.labels, prepared.image, SliceSettings(1), Temperature(), prepared.digest)
    save(folder / "network", inference, folder / "model")
    tracker = Tracker.open(f"sqlite:///{folder}/mlflow.db")
    files = [path for path in sorted((folder / "model").rglob("*")) if path.is_file() and path.stat().st_size]
    sealed = [path for path in files if path != folder / "model" / SEAL]  # a digest in the list itself names a file
    weights = next(path for path in files if path.name == "model.safetensors")
    for attempt in range(tries):
        path = weights if attempt % 2 else draw.choice(sealed)
        content = path.read_bytes()
        path.write_bytes(_flipped(content, draw.randrange(8 * len(content))))
        try:
            open_model(resolve_model(str(folder / "model"), tracker).network)
        except UserError as error:
            assert path.name in str(error), f"{path.name} was damaged, and the error names another file: {error}"
        else:
            raise AssertionError(f"a model with a flipped bit in {path.name} was opened")
        path.write_bytes(content)
    open_model(resolve_model(str(folder / "model"), tracker).network)
    return f"{tries} of {tries} refused with the file; the whole one is opened"


def damaged_shards(tries: int, seed: int, folder: Path) -> str:
    """A bit flipped anywhere in a shard, and all labels set to 0: refused, or read as they were written."""
    draw, whole = random.Random(seed), write_prepared(folder / "whole")
    rows = whole.rows("all")
    expected = _content(whole, rows)
    refused = 0
    for attempt in range(tries):
        copy = Path(shutil.copytree(folder / "whole", folder / f"copy-{attempt}"))
        shard = draw.choice(sorted((copy / "shards").iterdir()))
        content = shard.read_bytes()
        shard.write_bytes(_flipped(content, draw.randrange(8 * len(content))))
        try:
            found = _content(Prepared.open(str(copy)), rows)
        except UserError as error:
            refused += 1
            assert shard.name in str(error) or "damaged" in str(error), error
        else:
            assert found == expected, f"{shard.name} was read with other content than was written"
        shutil.rmtree(copy)
    copy = Path(shutil.copytree(folder / "whole", folder / "labels"))
    shard = copy / "shards" / "part-1.parquet"
    table = pq.read_table(shard)
    zeros = np.zeros(table.num_rows, np.int32)
    place = table.schema.get_field_index("label")
    pq.write_table(table.set_column(place, table.schema.field(place), [zeros]), shard, row_group_size=10)
    try:
        Prepared.open(str(copy)).read(rows)
    except UserError as error:
        assert "its label is 0" in str(error)
    else:
        raise AssertionError("labels that were set to 0 were read")
    return f"{refused} of {tries} refused, the others read as written (bits that mean nothing); labels set to 0: refused"


def _flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _content(prepared: Prepared, rows: np.ndarray) -> list[tuple[object, ...]]:
    return [
        (record.id, record.patient, record.label, record.images[0].pixels.tobytes())
        for record in records_from(prepared.places(rows).read())
    ]
