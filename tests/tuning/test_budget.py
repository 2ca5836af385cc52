"""When a search ends."""

import time
from datetime import UTC, datetime

import pytest

from raymed.errors import UserError
from raymed.tuning.budget import Budget, deadline


@pytest.fixture
def clock_in(monkeypatch):
    """Sets this machine's zone."""

    def set_zone(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


def test_until_is_in_the_zone_of_whoever_asks_and_the_end_is_told_with_its_zone(clock_in):
    """The clock of a cluster's head is UTC: 07:00 there is 8 or 9 in Berlin."""
    clock_in("UTC")
    end = deadline("07:00", "Asia/Shanghai")
    assert datetime.fromtimestamp(end, UTC).strftime("%H:%M") == "23:00"
    assert 0 < end - time.time() <= 24 * 3600
    assert Budget(1, 0, end, "Asia/Shanghai").end.endswith(" 07:00 CST")
    assert Budget(1, 0, end).end.endswith(" 23:00 UTC")
    clock_in("Asia/Shanghai")
    assert deadline("07:00") == end
    assert Budget(1, 0, end).end.endswith(" 07:00 CST")
    with pytest.raises(UserError, match="Europe/Berlin"):
        deadline("07:00", "Berlin")


def test_until_is_the_next_time_the_clock_shows_it_and_a_typo_is_an_error():
    end = deadline("07:00")
    assert 0 < end - time.time() <= 24 * 3600
    assert datetime.fromtimestamp(end).strftime("%H:%M") == "07:00"
    assert deadline("") == 0
    with pytest.raises(UserError, match="time of day"):
        deadline("7 o'clock")


def test_hours_are_those_of_searching_and_a_clock_that_is_set_changes_nothing(monkeypatch):
    budget = Budget(1, seconds=3600.0).begun(spent=3000.0)
    assert budget.seconds_left == pytest.approx(600, abs=5)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert not budget.time_is_over
    assert Budget(1, seconds=3600.0).begun(spent=3601.0).time_is_over
    assert Budget(1).begun().end == ""


def test_whichever_limit_of_time_comes_first_ends_a_search():
    soon = Budget(1, deadline=time.time() + 60, seconds=3600.0)
    assert soon.begun().seconds_left == pytest.approx(60, abs=5)
    assert Budget(1, deadline=1.0, seconds=3600.0).begun().time_is_over


def test_the_same_until_means_the_same_night_and_another_one_a_later():
    began = Budget(9, deadline=1000.0, until="07:00")
    assert Budget(9, deadline=87400.0, until="07:00").kept(began) == began
    assert not Budget(9, deadline=87400.0, until="07:00").kept(began).exceeds(began)
    later = Budget(9, deadline=88000.0, until="08:00")
    assert later.kept(began) == later
    assert later.exceeds(began)


@pytest.mark.parametrize(
    ("now", "before", "larger"),
    [
        (Budget(5), Budget(5), False),
        (Budget(6), Budget(5), True),
        (Budget(5, epochs=9), Budget(5), False),
        (Budget(5), Budget(5, epochs=9), True),
        (Budget(5, seconds=7200), Budget(5, seconds=3600), True),
        (Budget(5, seconds=1800), Budget(5, seconds=3600), False),
    ],
)
def test_only_a_larger_budget_opens_a_search_again(now, before, larger):
    assert now.exceeds(before) == larger


def test_a_machine_that_sleeps_through_the_deadline_is_not_given_the_time_again(monkeypatch):
    """A laptop whose lid is closed: --until 07:00 is a time of day, and --hours are those of searching."""
    until, hours = Budget(1, deadline=time.time() + 1800).begun(), Budget(1, seconds=1800.0).begun()
    clock = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda kind: clock(kind) + 3600 * (kind == time.CLOCK_BOOTTIME))
    assert until.time_is_over
    assert not hours.time_is_over
