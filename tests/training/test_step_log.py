"""What is told of a run's speed."""

from __future__ import annotations

import time

import pytest

from raymed.recipes.recipe import TOKENS
from raymed.training.step_log import StepLog
from raymed.training.step_sums import StepFigures


def test_what_validating_and_saving_take_is_told_beside_the_seconds_of_training() -> None:
    steps = StepLog()
    steps.begin()
    time.sleep(0.01)
    first = steps.end()
    time.sleep(0.2)  # a validation and a checkpoint
    steps.begin()
    second = steps.end()
    assert first["pause_seconds"] < 0.2 <= second["pause_seconds"]
    assert first["seconds"] >= 0.01 and second["seconds"] < 0.2


def test_tokens_a_second_are_told_of_what_reads_texts_and_of_nothing_else() -> None:
    read, others = (StepFigures(0, 1e-3, 1.0, {"loss/loss": (2.0, 4.0), **more}) for more in ({TOKENS: (600.0, 0.0)}, {}))
    for figures, told in (([read, read], True), ([others], False)):
        steps = StepLog()
        steps.add(8)
        time.sleep(0.01)
        row = steps.rows(figures)[-1]
        assert row["train_loss"] == 0.5 and "train_tokens" not in row
        assert ("tokens_per_second" in row) is ("tokens_per_second" in steps.end()) is told
        if told:
            assert row["tokens_per_second"] == pytest.approx(1200 / 8 * row["records_per_second"])
