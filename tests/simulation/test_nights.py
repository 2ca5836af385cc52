"""A search cannot lose: simulated nights, each a whole search with faults that follow from its seed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pytest
import simulated_night
from faults import Fault, faults
from mistakes import MISTAKES, Mistake, run_is_created_without_a_look
from setting import NEWER, Setting
from shrinking import shrunk
from simulated_night import Night, Violation, run_night

NIGHTS, PARTS = 2000, 8
BEGINS = 525  # the moment of a night of one trial at which its worker is killed, with checkpoints in the storage
# Promises that the product broke until these nights were simulated.
FOUND = {
    "a folder that a killed process made outlives a power cut with the record in it": [902, 2471, 3457],
    "what an object store did not take is sent again and not taken for there": [10550, 15652, 28975],
    "a worker that outlives its search takes nothing from the one that goes on": [12247],
    "a machine that stands still while it takes the lease has not got it": [13390],
    "a storage that goes away while a claim is read is not taken for the holder's end": [18004],
    "a disk that is full when a trial begins ends no trial": [14685],
    "a machine that is back from a full storage keeps its search": [311089],
    "a machine that stood still while it renewed its claim keeps its search": [314203],
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_thousands_of_nights_lose_nothing(part: int) -> None:
    for seed in range(NEWER + part, NEWER + NIGHTS, PARTS):
        try:
            run_night(seed, faults(seed))
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}, by {shrunk(seed, faults(seed))}")


@pytest.mark.parametrize("seed", range(NEWER, NEWER + 10))
def test_a_night_loses_nothing(seed: int) -> None:
    run_night(seed, faults(seed))


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, id=f"{promise}-{seed}") for promise, seeds in FOUND.items() for seed in seeds]
)
def test_what_a_night_once_broke_holds(seed: int) -> None:
    run_night(seed, faults(seed))


@pytest.mark.parametrize("moment", range(BEGINS, BEGINS + 20))
def test_a_storage_that_blinks_while_a_worker_begins_costs_no_checkpoint(moment: int) -> None:
    """It is away for one look, and there for the next."""
    setting = Setting("/shared/storage", 1, 1, 0, 2, 0, trials=1, epochs=3)
    blink = [Fault(moment, "take_storage_away", "look", 2), Fault(moment + 1, "freeze", "look", 15)]
    run_night(1, [Fault(BEGINS, "kill_worker"), *blink], setting)


@pytest.mark.parametrize("storage", ["/shared/storage", "s3://bucket/storage"])
@pytest.mark.parametrize("what", ["take_storage_away", "fail_once"])
def test_a_storage_that_is_away_for_a_second_at_any_moment_ends_no_search(what: str, storage: str) -> None:
    setting = Setting(storage, 1, 1, 0, 2, 0, trials=1, epochs=2)
    for moment in range(100, setting.moments + 200, 23):
        run_night(1, [Fault(moment, what, "", 2)], setting)


BEHIND = {  # a head is lost while the record's copy in an object store lacks the last epoch, or more
    "a slow upload": (3, [Fault(191, "be_slow", "put", 52), Fault(231, "change_head", "report")]),
    "refused uploads": (3, [Fault(186, "refuse_uploads", "put", 2)] * 40 + [Fault(200, "change_head", "report", 1)]),
    "an old upload over a newer one": (
        4,
        [Fault(187, "freeze", "put", 32), Fault(195, "come_twice", "report"), Fault(418, "kill_driver", "answer")],
    ),
}


@pytest.mark.parametrize("behind", BEHIND)
def test_a_run_tells_the_next_head_of_each_epoch_that_the_record_has_lost(behind: str) -> None:
    epochs, befall = BEHIND[behind]
    run_night(1, befall, Setting("s3://bucket/storage", 2, 1, 0, 0, 0, trials=1, epochs=epochs))


def test_a_checkpoint_that_only_a_search_which_was_taken_over_is_told_of_need_not_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its machine stands still while it is completed; the next search's worker finds it torn, and removes a part of it."""
    strike, came = Night._strike, list[str]()

    def befall(self: Night, kind: str, target: str) -> None:
        world, hosts, process = self.world, self.world.hosts, self.world.current
        mine = [each for each in world.processes if each.host is hosts[0]]
        is_at = process.kind, process.host
        if len(hosts) == 1:  # the same night, undisturbed
            pass
        elif not came and is_at == ("worker", hosts[0]) and kind == "write" and str(target).endswith("progress.json"):
            came.append("its machine stands still")
            for each in mine:
                each.frozen_until = world.now + 900
            self.later(75, lambda: self.start_driver(hosts[1]))
        elif len(came) == 1 and is_at == ("worker", hosts[1]) and kind == "report" and self.decided:
            came.append("the machine is back")
            for each in mine:
                each.frozen_until = world.now
        elif len(came) == 2 and kind == "report" and process in mine:
            came.append("the power is cut")
            self._faults.append(Fault(world.moments, "cut_power_of_the_running"))
        strike(self, kind, target)

    monkeypatch.setattr(Night, "_strike", befall)
    struck = False
    for seed in range(12):  # which machine the next worker begins on is drawn
        came.clear()
        run_night(seed, [], Setting("/shared/storage", 2, 1, 0, 2, 0, trials=1, epochs=2))
        struck |= len(came) == 3
    assert struck


@pytest.mark.parametrize("moment", range(320, 345))
def test_a_champion_made_while_the_request_for_another_is_on_its_way_is_no_fault_of_the_product(moment: int) -> None:
    """The request is done twice."""
    befall = [Fault(300, "leave_requests_uncertain", "", 215), Fault(moment, "promote", "answer")]
    run_night(1, befall, Setting("/shared/storage", 1, 1, 0, 0, 0, trials=1, epochs=1))


def test_a_night_is_the_same_whenever_it_is_simulated() -> None:
    nights = [run_night(9, faults(9)) for _ in range(2)]
    assert nights[0].world.moments == nights[1].world.moments
    assert nights[0].world.now == nights[1].world.now


def finds(mistake: Mistake, seed: int, befall: Sequence[Fault]) -> bool:
    """Whether a night breaks by a mistake, and by nothing else; one that does not end is given up sooner than others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulated_night, "COMMANDS", 150)
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
    seeds = (seed, *range(NEWER, NEWER + 3000))
    finder = next((each for each in seeds if finds(mistake, each, faults(each))), None)
    assert finder is not None
    if finder != seed:
        warnings.warn(
            f"{mistake.__name__} is found by {finder} and no more by {seed}: to note it saves minutes", stacklevel=1
        )


def test_what_breaks_a_night_is_shrunk_to_the_fault_that_does() -> None:
    night = [Fault(1, "be_slow"), Fault(2, "create_twice"), Fault(3, "set_clock")]
    assert shrunk(0, night, run_is_created_without_a_look) == [night[1]]
