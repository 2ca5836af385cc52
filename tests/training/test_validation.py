"""Two workers validate together, without a cluster."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing

from raymed.errors import RunError
from raymed.recipes.recipe import Batch
from raymed.training.validation import judge_rows


class Writer:
    """A recipe that writes a report of each row, and an engine that says what it wrote, of two."""

    def __init__(self, worker: int) -> None:
        self.workers, self.worker = 2, worker

    def encode(self, records: list[int], training: None) -> Batch:
        return Batch({}, {"loss": float(len(records))}, [str(row) for row in records])

    def predict(self, batch: Batch, judge: Any) -> dict[str, Any]:
        return {"report": [f"row {row}" for row in batch.ids], "length": np.array([len(row) for row in batch.ids])}

    def evaluate(self, predictions: dict[str, Any], records: dict[str, Any]) -> dict[str, float]:
        if predictions["report"] != [f"row {row}" for row in records["row"]]:
            raise RunError(f"{predictions['report']} are not the reports of {records['row']}")
        return {"val_loss": np.float32(len(records["row"]))}  # type: ignore[dict-item] # a checkpoint could not note it

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def read(self, rows: Any) -> Any:
        return iter(rows)


def _validate(worker: int, store: Path) -> None:
    dist.init_process_group("gloo", rank=worker, world_size=2, init_method=f"file://{store}")
    writer = Writer(worker)
    for wrong in (0, 1):
        rows = np.arange(3, 10)
        prepared = SimpleNamespace(columns=lambda rows, _, wrong=wrong: {"row": rows + wrong})
        judge: Any = partial(judge_rows, writer, 2, lambda: None)
        if wrong:
            with pytest.raises(RunError, match="are not the reports of"):
                judge(writer, prepared, rows, writer)
            continue
        metrics, predictions = judge(writer, prepared, rows, writer)
        assert json.dumps(metrics) == '{"val_loss": 7.0}'
        assert predictions.get("report") == ([f"row {row}" for row in range(3, 10)] if worker == 0 else None)


def test_texts_of_all_workers_are_judged_once_and_what_is_wrong_with_them_ends_the_run_on_each(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_validate, (tmp_path / "store",), nprocs=2, start_method="fork")
