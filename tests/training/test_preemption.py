"""A run that loses its workers in the middle of an epoch, or gets others, goes on and computes the same."""

import dataclasses
import signal
from pathlib import Path

import pytest
import signals
import toy_signals
from ray import cloudpickle
from toy_signals import ToySignalling

from raymed.data.stream import stage
from raymed.recipes.exported import open_model
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training.checkpoint import Progress
from raymed.training.engine import TrainSettings
from raymed.training.fit import fit, resources
from raymed.training.spec import RunSpec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

for each in (signals, toy_signals):
    cloudpickle.register_pickle_by_value(each)  # workers cannot import tests

# 72 slices in 5 steps of 4, 4, 4, 4 and 2 micro-batches.
SETTINGS = TrainSettings(epochs=2, global_batch=16, micro_batch=5, norm_group=5, lr=3e-3)


@pytest.fixture(scope="module")
def spec(prepared, tmp_path_factory) -> RunSpec:
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    return RunSpec("run", str(tmp_path_factory.mktemp("runs")), prepared.folder.uri, recipe, SETTINGS)


def run(prepared, spec: RunSpec) -> dict[str, float]:
    """The last epoch's losses."""
    fit(spec, stage(prepared, spec.all_rows(prepared)), resources(spec.workers, 1), keep_all=True)
    newest = max(Path(spec.folder.path).glob("step-*"), key=lambda path: path.name[:13])
    return {name: Progress.read(newest).history[-1][name] for name in ("val_loss", "train_loss", "train_accuracy")}


@pytest.fixture(scope="module")
def alone(prepared, spec) -> dict[str, float]:
    """The run that the others must equal: one worker, ZeRO 1, never interrupted."""
    return run(prepared, spec)


@pytest.mark.parametrize(("number", "workers", "checkpoint_steps"), [(signal.SIGTERM, 1, 0), (signal.SIGKILL, 2, 1)])
def test_a_worker_told_to_leave_or_killed_costs_no_step_that_was_saved(
    prepared, spec, alone, number, workers, checkpoint_steps
):
    """Told to leave, it saves a checkpoint at the next step; killed, it leaves the last one that was complete."""
    count = Path(spec.storage, f"count-{number}")
    interrupted = dataclasses.replace(
        spec,
        name=f"signal-{number}",
        workers=workers,
        train=dataclasses.replace(SETTINGS, checkpoint_steps=checkpoint_steps),
        recipe=ToySignalling(**vars(spec.recipe), count=str(count), signal=number),
    )
    found = run(prepared, interrupted)
    if number == signal.SIGTERM:
        kept = sorted(Path(interrupted.folder.path).glob("step-*"))
        (left,) = [path for path in kept if 5 < int(path.name[5:13]) < 10]  # within the second epoch
        _, network = open_model(left / "model")
        assert not network.training, "what it left can be used as it is"
    assert found == pytest.approx(alone, rel=2e-5)
    assert count.stat().st_size > 18, "it was interrupted"
    if workers == 1:  # of two, one may be told before the other has taken a step with it
        assert found == alone, "bit-equal on a CPU in fp32"
        # Of 18 micro-batches of the epoch the 11th is in the third step: those of the first two do not come again.
        assert count.stat().st_size < 18 + 11, "the run went on within the epoch"


def test_a_run_goes_on_with_another_number_of_workers(prepared, spec, alone):
    changed = dataclasses.replace(spec, name="changed", train=dataclasses.replace(SETTINGS, zero_stage=3))
    run(prepared, dataclasses.replace(changed, workers=2, stop_after=1))
    assert run(prepared, changed) == pytest.approx(alone, rel=2e-5)
