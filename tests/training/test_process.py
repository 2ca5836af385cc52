import os
import subprocess
import sys

import pytest
import torch

from raymed.training.process import prepare_process


@pytest.mark.slow
def test_a_worker_starts_without_mlflow_and_can_still_import_it():
    """DeepSpeed's autotuner imports it if it can, which is a fifth of a worker's start."""
    code = """
import sys, torch
from raymed.training.process import prepare_process
prepare_process(torch.device("cpu"))
assert "deepspeed" in sys.modules and "mlflow" not in sys.modules
import mlflow.version
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_training_thread_and_deepspeed_take_the_card_that_ray_gave(monkeypatch):
    taken = []
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    prepare_process(torch.device("cuda:3"))
    assert (taken, os.environ["LOCAL_RANK"]) == ([torch.device("cuda:3")], "3")
