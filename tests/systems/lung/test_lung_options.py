"""The settings of the lung guide's command, and of real patients."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import script
from conftest import write_prepared

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.job.command_line import parse
from raymed.models.settings import ModelSettings
from raymed.recipes.metric import LAST
from raymed.registry.candidate import Candidate
from raymed.systems.lung.options import LungOptions
from raymed.training.settings import TrainSettings

CONFIGS = Path(__file__).parents[3] / "configs"


def test_the_guides_command_is_what_its_file_gives() -> None:
    options = parse(LungOptions, ["--config", str(CONFIGS / "guide_lung.yaml")], script=script("train_lung"))
    train = options.train
    assert (train.steps, train.global_batch, train.micro_batch, train.checkpoint_steps) == (2000, 16, 2, 500)
    assert (train.lr, train.weight_decay, train.warmup, train.final_lr, train.precision) == (5e-5, 0.0, 0.0, 0.0, "bf16")
    assert (options.augment.preset, options.model.drop_path, options.slices.per_patient) == ("none", 0.0, 16)


def test_sixteen_slices_of_a_real_patient_are_used_where_nothing_else_is_said() -> None:
    job = script("tune_lung")
    options = parse(job.TuneLung, ["--data", "PREPARED"], defaults=CONFIGS / "tune_lung.yaml", script=job)
    assert options.sampling.per_patient == 16
    assert options.phantom.slices == (8, 8), "of phantom patients all, so that a first search takes minutes"


def test_weights_of_an_internvl_are_not_ruined_by_the_learning_rate_of_small_networks(
    prepared: Prepared, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl"}), encoding="utf-8")
    options = LungOptions(model=ModelSettings(path=str(tmp_path)))
    with pytest.raises(UserError, match=r"train\.lr 0\.001 .*would ruin .*configs/guide_lung\.yaml"):
        options.recipe(prepared)
    with pytest.raises(UserError, match="the tokenizer"):  # which this folder lacks: the learning rate is taken
        dataclasses.replace(options, train=TrainSettings(lr=5e-5)).recipe(prepared)


@pytest.mark.parametrize("config", ["guide_lung", "lung_internvl", "tune_lung"])
def test_every_shipped_configuration_looks_at_sixteen_slices_of_a_ct_patient(config: str) -> None:
    job = script("tune_lung")
    options = parse(job.TuneLung, ["--data", "PREPARED"], defaults=CONFIGS / f"{config}.yaml", script=job)
    assert (options.slices.per_patient, options.slices.choice) == (16, "uniform")


def test_everything_can_be_trained_on_but_a_search_needs_somebody_to_compare_its_trials_by(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared, job = write_prepared(tmp_path / "data", patients=6), script("tune_lung")
    assert not len(prepared.rows("val"))
    train = TrainSettings(monitor="macro_f1", patience=3)
    spec = LungOptions(train=train, storage=str(tmp_path)).spec(prepared)
    assert (spec.monitor, spec.watched, spec.train.patience) == (LAST, LAST, 0), "the last epoch is kept"
    assert "no val_loss and no early stopping" in caplog.text and "is not registered" in caplog.text
    with pytest.raises(UserError, match="a search compares its trials by them"):
        job.TuneLung(storage=str(tmp_path)).spec(prepared)
    candidate = Candidate("run", "CHECKPOINT", prepared.folder.uri, None, spec.sampling, 0)
    with pytest.raises(UserError, match="nobody is left to judge it"):
        candidate.require_validated(prepared)
    assert LungOptions(storage=str(tmp_path), fold=0).spec(prepared).monitor.name == "val_loss", "a fold validates"


LATE = """
import atexit, runpy, sys
atexit.register(lambda: print([name for name in ("torch", "ray", "mlflow", "optuna") if name in sys.modules]))
sys.argv = [sys.argv[1], "--train.epochs", "30"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_search_refuses_the_epochs_of_single_runs_before_it_imports_what_takes_seconds(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LATE, str(CONFIGS.parent / "jobs" / "tune_lung.py")]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "[]\n")
    assert ended.stderr.startswith("error: train.epochs 30 is for single runs: leave it out, and say --max-epochs")
