"""Prepared reports written directly, without Ray."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import write_prepared

from raymed.data.image import MINMAX, ImageSettings
from raymed.data.prepared import MANIFEST, Prepared
from raymed.data.record import RECORD
from raymed.systems.mamba_vlm.intensity import Intensity
from raymed.systems.mamba_vlm.slices import SliceSettings

MESSAGES = [{"role": "human", "text": "What is there?"}, {"role": "gpt", "text": "a nodule"}]


def write_reports(folder: Path, patients: int = 8) -> Prepared:
    """A report of one slice of each patient: 6 train; the seventh val, the eighth test."""
    write_prepared(folder, patients, slices=1, size=32)
    for shard in (folder / "shards").iterdir():
        rows = [row | {"messages": MESSAGES} for row in pq.read_table(shard).to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=RECORD), shard, row_group_size=10)
    described = {
        "image": asdict(ImageSettings(size=32, window=MINMAX)),
        "slices": asdict(SliceSettings()),
        "orientation": None,
        "intensity": asdict(Intensity()),
        "question": "What is there?",
    }
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    manifest["settings"] = described
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return Prepared.open(str(folder))
