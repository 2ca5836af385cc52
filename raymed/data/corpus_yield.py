"""What a prepared corpus comes to in training: tiles and tokens of its samples, steps of an epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymed.data.packing import repeats
from raymed.data.prepared import Prepared

BATCHES = (8, 128)  # samples of a step: in the guide, and in the published runs
STEPS = 8000  # of both
MOST_PASSES = 10.0  # over the same samples


def tile_counts(prepared: Prepared) -> np.ndarray:
    """Tiles of each sample, thumbnails among them, in no order: int64 [samples]. Reads sizes, and no pixels."""
    side, counts = prepared.size, []
    for name in pc.unique(prepared.index["shard"]).to_pylist():
        file = pq.ParquetFile(prepared.folder.open(f"shards/{name}"))
        leaves = [file.schema.column(number).path for number in range(len(file.schema))]
        sizes = [leaf for leaf in leaves if leaf.startswith("images.") and leaf.endswith((".height", ".width"))]
        images = file.read(columns=sizes)["images"].combine_chunks()
        flat = images.flatten()
        tiles = (flat.field("height").to_numpy() // side) * (flat.field("width").to_numpy() // side)
        ends = np.cumsum(np.concatenate([[0], pc.fill_null(pc.list_value_length(images), 0).to_numpy()]))
        sums = np.concatenate([[0], np.cumsum(tiles)])
        counts.append(sums[ends[1:]] - sums[ends[:-1]])
    return np.concatenate([np.empty(0, np.int64), *counts])


def lines(prepared: Prepared) -> list[str]:
    """For a person, with a warning where the guide's steps would show the same samples very often."""
    tiles, rows = Counter(tile_counts(prepared).tolist()), prepared.rows("all")
    costs = prepared.columns(rows, ["cost"])["cost"]
    median, high = np.percentile(costs, [50, 95])
    most = ", ".join(f"{count} samples of {number}" for number, count in tiles.most_common(4))
    told = [f"tiles: {most}; tokens of a sample: median {median:.0f}, 95 % up to {high:.0f}, the longest {costs.max()}"]
    times, train = repeats(prepared), prepared.rows("train")
    counts = Counter(prepared.columns(train, ["source"])["source"].tolist())
    epoch = sum(count * times.get(source, 1) for source, count in counts.items())
    steps = ", ".join(f"{-(-epoch // batch)} steps of {batch}" for batch in BATCHES)
    told.append(f"an epoch: {epoch} samples to train on, after repeat_time: {steps}")
    passes = STEPS * BATCHES[0] / max(1, epoch)
    if passes > MOST_PASSES:
        told.append(
            f"the guide's {STEPS} steps of {BATCHES[0]} are {passes:.0f} epochs of these: take fewer --train.steps, or more "
            "data"
        )
    return told
