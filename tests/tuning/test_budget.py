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
    end = deadline(0, "07:00", "Asia/Shanghai")
    assert datetime.fromtimestamp(end, UTC).strftime("%H:%M") == "23:00"
    assert 0 < end - time.time() <= 24 * 3600
    assert Budget(1, 0, end, "Asia/Shanghai").end.endswith(" 07:00 CST")
    assert Budget(1, 0, end).end.endswith(" 23:00 UTC")
    clock_in("Asia/Shanghai")
    assert deadline(0, "07:00") == end
    assert Budget(1, 0, end).end.endswith(" 07:00 CST")
    with pytest.raises(UserError, match="Europe/Berlin"):
        deadline(0, "07:00", "Berlin")


def test_until_is_the_next_time_the_clock_shows_it_and_a_typo_is_an_error():
    end = deadline(0, "07:00")
    assert 0 < end - time.time() <= 24 * 3600
    assert datetime.fromtimestamp(end).strftime("%H:%M") == "07:00"
    assert deadline(1, "") == pytest.approx(time.time() + 3600, abs=5)
    assert deadline(0, "") == 0
    with pytest.raises(UserError, match="time of day"):
        deadline(0, "7 o'clock")
