"""Promises 3 and 4 on real Ray Train workers with DeepSpeed: losses do not depend on workers, ZeRO, reader or kills."""

import dataclasses
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from keep import Keep, KeepSteps
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from safetensors.torch import load_file

from raymed.data.stream import Streamed, stage
from raymed.models.precision import has_bf16
from raymed.storage.folder import Folder
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training.checkpoint import Progress, checkpoint_names, read_history
from raymed.training.engine import TrainSettings
from raymed.training.fit import _trainer, fit, resources
from raymed.training.schedule import learning_rate
from raymed.training.spec import RunSpec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

# 72 slices in global batches of 16 and micro-batches of 5: the last ones are smaller, and do not divide among workers.
SETTINGS = TrainSettings(epochs=2, global_batch=16, micro_batch=5, norm_group=5, lr=3e-3, checkpoint_steps=2)


def spec_of(prepared, storage: Path, name: str, **changes) -> RunSpec:
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    spec = RunSpec(name, str(storage), prepared.folder.uri, recipe, SETTINGS)
    train = {key: changes.pop(key) for key in list(changes) if key in TrainSettings.__dataclass_fields__}
    return dataclasses.replace(spec, train=dataclasses.replace(SETTINGS, **train), **changes)


def run(prepared, spec: RunSpec, streamed: bool = False) -> dict[str, float]:
    source = Streamed(prepared.folder.uri) if streamed else stage(prepared, spec.all_rows(prepared))
    return fit(spec, source, resources(spec.workers, 1))


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


HANDLER = signal.getsignal(signal.SIGINT)  # ignored where a script starts the tests in the background


@pytest.fixture(scope="module")
def alone(prepared, storage):
    """The run that the others must equal: one worker, ZeRO 1, staged data, never interrupted."""
    return run(prepared, spec_of(prepared, storage, "alone"))


def losses(metrics: dict[str, float]) -> dict[str, float]:
    return {name: metrics[name] for name in ("val_loss", "train_loss", "train_accuracy")}


def test_a_run_puts_the_handler_of_ctrl_c_back_which_would_keep_its_controller(alone):
    assert signal.getsignal(signal.SIGINT) is HANDLER


@pytest.mark.parametrize(("stage_of_zero", "streamed"), [(1, True), (2, False), (3, False)])
def test_two_workers_compute_the_losses_of_one(prepared, storage, alone, stage_of_zero, streamed):
    spec = spec_of(prepared, storage, f"two-{stage_of_zero}", workers=2, zero_stage=stage_of_zero)
    assert losses(run(prepared, spec, streamed)) == pytest.approx(losses(alone), rel=2e-5)


def test_bf16_autocast_changes_the_arithmetic_but_neither_the_course_nor_the_type_of_weights(prepared, storage, alone):
    spec = spec_of(prepared, storage, "amp", precision="amp")
    metrics = run(prepared, spec)
    changed = metrics["train_loss"] != alone["train_loss"]
    assert changed is has_bf16(torch.device("cpu")), "bf16 exactly where the CPU has instructions for it"
    assert losses(metrics) == pytest.approx(losses(alone), rel=0.1)
    (weights,) = Path(spec.folder.path).glob(f"step-{int(metrics['best_epoch']) * 5:08d}*/model/model.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values() if tensor.is_floating_point()} == {torch.float32}


def test_a_run_resumed_in_mid_epoch_computes_the_losses_of_an_uninterrupted_one(prepared, storage, alone):
    """The run starts from a checkpoint within the second epoch, as a kill right after it would leave it."""
    whole, cut = (spec_of(prepared, storage, name) for name in ("whole", "cut"))
    fit(whole, stage(prepared, whole.all_rows(prepared)), resources(1, 1), callbacks=[Keep(8, Path(cut.folder.path))])
    (kept,) = Path(cut.folder.path).iterdir()
    progress = Progress.read(kept)
    assert (progress.epoch, progress.step) == (1, 3)
    assert losses(run(prepared, cut)) == losses(alone), "bit-equal on a CPU in fp32"


def test_a_run_of_steps_is_validated_in_mid_epoch_and_goes_on_bit_equal_between_two_validations(prepared, storage):
    """5 steps an epoch: cut off after step 4, between the validations after steps 3 and 6; the second epoch ends early."""
    counted = {"epochs": 9, "steps": 8, "validate_steps": 3}
    whole, cut = (spec_of(prepared, storage, f"steps-{name}", **counted) for name in ("whole", "cut"))
    rows = [storage / "rows.jsonl", storage / "rows-again.jsonl"]
    source = stage(prepared, whole.all_rows(prepared))
    fit(whole, source, resources(1, 1), callbacks=[Keep(4, Path(cut.folder.path)), KeepSteps(rows[0])])
    (kept,) = Path(cut.folder.path).iterdir()
    assert Progress.read(kept).step == 4
    assert (kept / "model" / "recipe.json").is_file(), "a checkpoint at any step holds a model that can be used"
    fit(cut, source, resources(1, 1), callbacks=[KeepSteps(rows[1])])
    once, again = (read_history(spec.folder.child(checkpoint_names(spec.folder)[-1])) for spec in (whole, cut))
    assert [(each["global_step"], each["epoch"]) for each in once] == [(3, 0.6), (6, 1.2), (8, 1.6)]
    assert [losses(each) for each in again] == [losses(each) for each in once], "bit-equal on a CPU in fp32"
    assert [each["finished"] for each in once] == [0.0, 0.0, 1.0]
    steps, resumed = ([json.loads(line) for line in path.read_text().splitlines()] for path in rows)
    assert [step["global_step"] for step in steps] == list(range(1, 9)), "every step is told of, once"
    computed = [[(step["train_loss"], step["lr"], step["gradient_norm"]) for step in each] for each in (steps[3:], resumed)]
    assert computed[0] == computed[1], "what the cut-off run may not have told of is told again"
    assert steps[0]["lr"] == pytest.approx(SETTINGS.lr), "warm-up is a tenth of 8 steps, and ends with the first"
    assert steps[-1]["lr"] == pytest.approx(SETTINGS.lr * learning_rate(7, 8, SETTINGS)), "the schedule follows train.steps"


def test_checkpoints_within_an_epoch_never_displace_the_best(prepared, storage, alone):
    left = {Progress.read(path).epoch for path in Path(storage, "alone").glob("step-*")}
    assert {int(alone["best_epoch"]), 2} <= left


def test_running_a_finished_run_again_trains_nothing_and_tells_its_result(prepared, storage, alone):
    before = set(Path(storage, "alone").glob("step-*"))
    assert losses(run(prepared, spec_of(prepared, storage, "alone"))) == losses(alone)
    assert set(Path(storage, "alone").glob("step-*")) == before


def test_a_storage_that_is_away_for_a_moment_as_a_run_begins_fails_no_trial(prepared, storage, alone, monkeypatch):
    """It was looked into once without waiting, and the error was the trial's."""
    names, failures = Folder.names, [OSError(5, "Input/output error"), OSError(116, "Stale file handle")]

    def flickering(folder: Folder) -> list[str]:
        if failures and folder.uri.endswith("/alone"):
            raise failures.pop()
        return names(folder)

    monkeypatch.setattr("raymed.storage.availability.PAUSE", 0.01)
    monkeypatch.setattr(Folder, "names", flickering)
    monkeypatch.setattr("raymed.training.fit._trainer", lambda *parts: SimpleNamespace(fit=lambda: None))
    assert run(prepared, spec_of(prepared, storage, "alone"))["val_loss"] == alone["val_loss"]
    assert not failures


@pytest.mark.parametrize("own", [True, False])
def test_the_cleaner_watches_on_a_cluster_and_holds_nobody_up_in_a_jobs_own_ray(prepared, storage, own, monkeypatch):
    monkeypatch.setattr("raymed.training.fit.is_own", lambda: own)
    trainer = _trainer(
        spec_of(prepared, storage, "never-run"), Streamed(prepared.folder.uri), resources(1, 1), None, [], False
    )
    kinds = {type(callback) for callback in trainer._create_default_callbacks()}
    assert (PlacementGroupCleanerCallback not in kinds) == own
