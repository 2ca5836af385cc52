"""Runs trained in this process, with raymed's engine and without Ray, whose start would take longer than they do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from raymed.data.micro_batches import MicroBatch
from raymed.data.prepared import Prepared
from raymed.data.record import Record
from raymed.errors import RunError
from raymed.recipes.recipe import TrainingPass
from raymed.training.engine import Engine
from raymed.training.spec import RunSpec
from raymed.training.validation import JUDGED_BY

CPU = torch.device("cpu")


class Records:
    """Every row that a run reads, decoded and in memory."""

    def __init__(self, prepared: Prepared, spec: RunSpec) -> None:
        rows = spec.all_rows(prepared)
        self.prepared, self.of = prepared, dict(zip(rows.tolist(), prepared.read(rows), strict=True))

    def __getitem__(self, rows: list[int]) -> list[Record]:
        return [self.of[row] for row in rows]


def trained(spec: RunSpec, records: Records) -> Iterator[tuple[dict[str, Any], Engine]]:
    """Train a run; after each epoch its number and metrics, and the engine. As raymed/training/loop.py, without
    checkpoints."""
    prepared = records.prepared
    plans = [spec.plan(prepared, epoch).batches for epoch in range(spec.train.epochs)]
    engine, step = Engine(spec.recipe, spec.train, sum(map(len, plans)), spec.seed, CPU), 0
    rows = spec.rows(prepared, "val")
    batches = [spec.recipe.encode(records[part.tolist()], None) for part in np.array_split(rows, -(-len(rows) // 64))]
    for epoch, plan in enumerate(plans):
        for packs in plan:
            batch = spec.recipe.encode(records[[row for pack in packs for row in pack]], TrainingPass(spec.seed, epoch))
            try:
                engine.step([(engine.prepare(batch), MicroBatch(packs))], step)
                engine.read()
            except RunError:  # these settings diverge: the run is over
                return
            step += 1
        with engine.evaluating():
            parts = [engine.predict(batch) for batch in batches]
        predictions = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        yield {"epoch": epoch + 1, **spec.recipe.evaluate(predictions, prepared.columns(rows, JUDGED_BY))}, engine
