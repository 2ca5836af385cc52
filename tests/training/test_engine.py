import subprocess
import sys

import pytest

from raymed.errors import UserError
from raymed.training.engine import TrainSettings, learning_rate


def test_the_learning_rate_rises_linearly_peaks_once_and_ends_at_its_floor():
    settings = TrainSettings(warmup=0.25, final_lr=0.1)
    rates = [learning_rate(step, 40, settings) for step in range(40)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == 1.0
    assert learning_rate(40, 40, settings) == pytest.approx(0.1)
    assert learning_rate(400, 40, settings) == pytest.approx(0.1), "past its end the schedule must not rise again"


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"micro_batch": 0}, {"ema": 0.9, "zero_stage": 3}])
def test_settings_that_cannot_train_are_refused_before_any_work(wrong):
    with pytest.raises(UserError, match="train"):
        TrainSettings(**wrong)


@pytest.mark.slow
def test_a_worker_starts_without_mlflow_and_can_still_import_it():
    """DeepSpeed's autotuner imports it if it can, which is a fifth of a worker's start."""
    code = """
import sys, torch
from raymed.training.engine import prepare_process
prepare_process(torch.device("cpu"))
assert "deepspeed" in sys.modules and "mlflow" not in sys.modules
import mlflow.version
"""
    subprocess.run([sys.executable, "-c", code], check=True)
