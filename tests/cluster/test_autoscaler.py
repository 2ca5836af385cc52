"""What is said of machines whose set-up fails, to those who wait for them."""

from __future__ import annotations

import pytest

from raymed.cluster import autoscaler
from raymed.cluster.autoscaler import TRIES, SetUps, none_can_come

LATER = float("inf")  # a machine's set-up that began after all failures so far


def test_a_type_that_is_asked_for_once_another_was_given_up_may_still_come(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[bytes, bytes] = {}
    monkeypatch.setattr(autoscaler, "tell", kept.__setitem__)
    monkeypatch.setattr(autoscaler, "told", kept.get)
    set_ups = SetUps()
    set_ups.ask("with a GPU")
    for _ in range(TRIES):
        assert not none_can_come()
        set_ups.ended("with a GPU", LATER, "`make setup` ended with status 2")
    assert none_can_come()
    set_ups.ask("without one")
    assert not none_can_come()


def test_a_head_that_is_busy_is_no_set_up_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(key: bytes, value: bytes) -> None:
        raise RuntimeError("the head does not answer")

    monkeypatch.setattr(autoscaler, "tell", busy)
    SetUps().ended("with a GPU", LATER, "")
