import pytest

from raymed.systems.unimedvl.memory import GIB, Counts, memory_plan, memory_table
from raymed.systems.unimedvl.settings import LARGE, PRESETS, TINY, UnifiedModelSettings

SIZES = PRESETS[LARGE]
RELEASED = Counts(trained=14_575_018_464, frozen=0, autoencoder=83_819_683)


def test_what_is_frozen_is_counted_apart():
    everything = Counts.of(PRESETS[TINY], UnifiedModelSettings())
    frozen = Counts.of(PRESETS[TINY], UnifiedModelSettings(freeze_vit=True))
    assert everything.frozen == 0 and 0 < frozen.frozen < everything.trained
    assert frozen.trained + frozen.frozen == everything.trained


@pytest.mark.slow
def test_the_large_network_has_the_weights_of_the_released_one():
    assert Counts.of(SIZES, UnifiedModelSettings()) == RELEASED


def test_states_are_shared_and_offload_takes_them_off_the_card():
    """By hand, in bf16: 2 bytes of weights, 2 of gradients, 12 of AdamW and 4 of the average, among 8 workers."""
    plan = memory_plan(SIZES, RELEASED, 8, 20_000)
    states = plan.weights + plan.gradients + plan.optimizer + plan.average
    assert states == pytest.approx(20 * RELEASED.trained / 8)
    spared = memory_plan(SIZES, RELEASED, 8, 20_000, offload=True)
    assert plan.device - spared.device == spared.offloaded == pytest.approx(states)
    assert memory_plan(SIZES, RELEASED, 16, 20_000).device < plan.device < 80 * GIB


def test_activations_that_are_kept_take_more_than_those_computed_again():
    kept, again = (memory_plan(SIZES, RELEASED, 8, 20_000, recomputed=each) for each in (False, True))
    assert kept.activations > 3 * again.activations


def test_the_table_has_a_line_for_each_number_of_workers():
    lines = memory_table(SIZES, RELEASED, 20_000)
    assert [line.split()[0] for line in lines] == ["8", "16", "32"]
