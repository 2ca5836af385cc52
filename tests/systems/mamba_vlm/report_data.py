"""Prepared reports written directly, without Ray."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from conftest import write_prepared

from raymed.data.image import ImageSettings
from raymed.data.prepared import MANIFEST, Prepared, digest_of
from raymed.data.record import INDEX, RECORD
from raymed.systems.mamba_vlm.intensity import Intensity
from raymed.systems.mamba_vlm.slices import SliceSettings

MESSAGES = [{"role": "human", "text": "What is there?"}, {"role": "gpt", "text": "a nodule"}]


def write_reports(folder: Path, splits: tuple[str, ...] = ("train", "val", "test"), window: str = "minmax") -> Prepared:
    """A report of one slice of each of 8 patients: 6 train, 1 val, 1 test; of the splits that are named."""
    write_prepared(folder, patients=8, slices=1, size=32)
    for shard in (folder / "shards").iterdir():
        rows = [row | {"messages": MESSAGES} for row in pq.read_table(shard).to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=RECORD), shard, row_group_size=10)
    index = folder / "index.parquet"
    table = pq.read_table(index)
    kept: Any = table.filter(pc.is_in(table["split"], pa.array(splits)))
    pq.write_table(kept.cast(INDEX), index)
    digest = digest_of(index.read_bytes())
    described = {
        "image": asdict(ImageSettings(size=32, window=window)),
        "slices": asdict(SliceSettings()),
        "orientation": None,
        "intensity": asdict(Intensity()),
        "question": "What is there?",
    }
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    manifest |= {"settings": described, "digest": digest, "index_digest": digest}
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return Prepared.open(str(folder))
