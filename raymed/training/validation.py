"""Rows judged by all workers of a run together: each once, the same figures on every worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch.distributed as dist

from raymed.data.micro_batches import Division
from raymed.data.prepared import Prepared
from raymed.data.stream import Reader, ahead
from raymed.errors import RunError, UserError
from raymed.recipes.recipe import Predictions, Probe, Recipe
from raymed.training.engine import Engine
from raymed.training.predictions import in_order

JUDGED_BY = ["id", "patient", "study", "position", "label", "source"]


def judge_rows(
    engine: Engine,
    at_once: int,
    between: Callable[[], None],
    judge: Recipe | Probe,
    prepared: Prepared,
    rows: np.ndarray,
    reader: Reader,
) -> tuple[dict[str, float], Predictions]:
    """Metrics over every row, the same on all workers, and, on worker 0, the predictions in the order of the rows.

    Args:
        at_once: rows in a micro-batch.
        between: called on each worker before it predicts one; what it raises ends the validation.
        judge: encodes and evaluates.
        rows: of the prepared data, int [rows].
        reader: of these rows.

    Raises:
        UserError, RunError: what the judge says of the predictions, on all workers.
    """
    shares = Division(at_once, engine.workers).share(tuple((row,) for row in rows.tolist()), engine.worker)
    mine = [[row for (row,) in micro.packs] for micro in shares]
    outputs: list[tuple[list[int], Predictions]] = []
    with engine.evaluating():
        encoded = (engine.prepare(judge.encode(records, None)) for records in reader.read(mine))
        for batch, taken, micro in zip(ahead(encoded), mine, shares, strict=True):
            between()
            predicted = engine.predict(batch, judge)
            if micro.counts:
                outputs.append((taken, predicted))
    gathered: list[Any] | None = [None] * engine.workers if engine.worker == 0 else None
    dist.gather_object(outputs, gathered)
    predictions: Predictions = {}
    judged: list[Any] = [None]
    if gathered is not None:
        try:
            predictions = in_order([part for worker in gathered for part in worker])
            metrics = judge.evaluate(predictions, prepared.columns(rows, JUDGED_BY))
            judged = [{name: float(value) for name, value in metrics.items()}]  # plain, as checkpoints note them
        except (UserError, RunError) as error:  # raised on all workers, below
            judged = [error]
    dist.broadcast_object_list(judged)
    if isinstance(judged[0], Exception):
        raise judged[0]
    return judged[0], predictions | {"row": rows}
