"""A search cannot lose: simulated nights, each a whole search with faults that follow from its seed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from faults import Fault, faults
from mistakes import MISTAKES, Mistake, run_is_created_without_a_look
from shrinking import shrunk
from simulated_night import Violation, run_night

NIGHTS, PARTS = 2000, 8


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_thousands_of_nights_lose_nothing(part: int) -> None:
    for seed in range(part, NIGHTS, PARTS):
        try:
            run_night(seed, faults(seed))
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}, by {shrunk(seed, faults(seed))}")


@pytest.mark.parametrize("seed", range(10))
def test_a_night_loses_nothing(seed: int) -> None:
    run_night(seed, faults(seed))


@pytest.mark.parametrize("seed", [902, 2471, 3457])
def test_a_folder_that_a_killed_process_made_outlives_a_power_cut_with_the_record_in_it(seed: int) -> None:
    """It was there, so nobody wrote its name out; found by these nights."""
    run_night(seed, faults(seed))


@pytest.mark.parametrize("seed", [10550, 15652, 28975])
def test_what_an_object_store_did_not_take_is_sent_again_and_not_taken_for_there(seed: int) -> None:
    """Arrow's `copy_files` had dropped the error, and the best checkpoint lacked its network."""
    run_night(seed, faults(seed))


@pytest.mark.parametrize("seed", [12247])
def test_a_worker_that_outlives_its_search_takes_nothing_from_the_one_that_goes_on(seed: int) -> None:
    run_night(seed, faults(seed))


@pytest.mark.parametrize("seed", [13390])
def test_a_machine_that_stands_still_while_it_takes_the_lease_has_not_got_it(seed: int) -> None:
    run_night(seed, faults(seed))


@pytest.mark.parametrize("seed", [18004])
def test_a_storage_that_goes_away_while_a_claim_is_read_is_not_taken_for_the_holder_s_end(seed: int) -> None:
    run_night(seed, faults(seed))


@pytest.mark.parametrize("seed", [14685])
def test_a_disk_that_is_full_when_a_trial_begins_ends_no_trial(seed: int) -> None:
    run_night(seed, faults(seed))


def test_a_night_is_the_same_whenever_it_is_simulated() -> None:
    nights = [run_night(9, faults(9)) for _ in range(2)]
    assert nights[0].world.moments == nights[1].world.moments
    assert nights[0].world.now == nights[1].world.now


def finds(mistake: Mistake, seed: int, befall: Sequence[Fault]) -> bool:
    """Whether a night breaks by a mistake, and by nothing else."""
    run_night(seed, befall)
    try:
        run_night(seed, befall, plant=mistake)
    except Violation:
        return True
    return False


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("mistake", "seed"), MISTAKES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_a_mistake_in_the_product_is_found(mistake: Mistake, seed: int) -> None:
    """By the night that is noted for it; where the product touches a disk more or less often by now, by an early one."""
    assert any(finds(mistake, each, faults(each)) for each in (seed, *range(3000)))


def test_what_breaks_a_night_is_shrunk_to_the_fault_that_does() -> None:
    night = [Fault(1, "be_slow"), Fault(2, "create_twice"), Fault(3, "set_clock")]
    assert shrunk(0, night, run_is_created_without_a_look) == [night[1]]
