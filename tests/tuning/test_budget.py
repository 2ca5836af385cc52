"""When a search ends."""

import time
from datetime import datetime

import pytest

from raymed.errors import UserError
from raymed.tuning.budget import deadline


def test_until_is_the_next_time_the_clock_shows_it_and_a_typo_is_an_error():
    end = deadline(0, "07:00")
    assert 0 < end - time.time() <= 24 * 3600
    assert datetime.fromtimestamp(end).strftime("%H:%M") == "07:00"
    assert deadline(1, "") == pytest.approx(time.time() + 3600, abs=5)
    assert deadline(0, "") == 0
    with pytest.raises(UserError, match="time of day"):
        deadline(0, "7 o'clock")
