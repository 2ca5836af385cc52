"""What a night costs, by the prices that a person states."""

from __future__ import annotations

import math

import pytest

from raymed.cluster.prices import Prices
from raymed.errors import UserError


def test_a_night_is_the_head_and_its_gpus_for_as_long_as_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYMED_PRICES", raising=False)
    assert Prices.stated() is None
    monkeypatch.setenv("RAYMED_PRICES", "head=0.50,GPU=0.45")
    prices = Prices.stated()
    assert prices is not None
    assert prices.of(8, 8.0) == "at most 32.80 (head 0.5, 8 GPUs at 0.45 an hour)"
    assert prices.paid(20.0, 8.0).startswith("13.00 (head 0.5 x 8.00 h, GPU 0.45 x 20.00 h), and ")
    monkeypatch.setenv("RAYMED_PRICES", "head=0.50,GPU=0.45,DATE=2026-11-29")
    dated = Prices.stated()
    assert dated is not None and "; prices of 2026-11-29)" in dated.of(1, 1.0) and "2026-11-29)" in dated.paid(1.0, 1.0)
    assert prices.of(1, math.inf) == "0.95 an hour (head 0.5, 1 GPU at 0.45 an hour)"


@pytest.mark.parametrize(
    "text", ["0.5", "GPU=0.45", "head=0.5,GPU=", "head=-1,GPU=1", "head=0,5,GPU=1", "head=1,GPU=1,DATE=today"]
)
def test_a_price_that_is_not_understood_is_an_error_and_not_free(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMED_PRICES", text)
    with pytest.raises(UserError, match=r"head=0\.50,GPU=0\.45"):
        Prices.stated()
