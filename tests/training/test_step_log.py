"""What is told of a run's speed."""

from __future__ import annotations

import time

from raymed.training.step_log import StepLog


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
