"""Dropping image tokens: how many, how often, which."""

from __future__ import annotations

import numpy as np
import pytest

from raymed.errors import UserError
from raymed.systems.vitp.token_drop import TokenDropSettings


@pytest.mark.parametrize(("count", "left"), [(256, 64), (1280, 320), (2560, 640), (3328, 832), (0, 0)])
def test_a_share_of_three_quarters_leaves_the_published_counts(count: int, left: int) -> None:
    kept = TokenDropSettings(0.75, "paper").keep(count, np.random.default_rng(0))
    assert (len(kept), kept.sum()) == (count, left)


@pytest.mark.parametrize(
    ("mode", "rate", "share"),
    [
        *[("code", 0.25, 0.1875), ("code", 0.5, 0.25), ("code", 0.75, 0.1875), ("code", 0.9, 0.09)],
        *[("paper", 0.5, 0.5), ("guide", 0.75, 0.0), ("code", 0.0, 0.0), ("paper", 0.0, 0.0), ("guide", 0.0, 0.0)],
    ],
)
def test_the_share_dropped_over_many_samples_is_what_the_mode_says(mode: str, rate: float, share: float) -> None:
    settings, draw = TokenDropSettings(rate, mode), np.random.default_rng(0)  # type: ignore[arg-type]
    dropped = np.mean([1 - settings.keep(100, draw).mean() for _ in range(4000)])
    assert dropped == pytest.approx(share, abs=0.025)


def test_as_the_published_code_has_it_a_quarter_of_the_samples_loses_three_quarters() -> None:
    """And not three quarters of them one quarter: gate and share differ, their product does not."""
    settings, draw = TokenDropSettings(0.75), np.random.default_rng(0)
    lost = np.array([100 - settings.keep(100, draw).sum() for _ in range(4000)])
    assert set(lost.tolist()) == {0, 75} and (lost == 75).mean() == pytest.approx(0.25, abs=0.025)


def test_the_guide_silences_three_tenths_of_the_backbones_tokens_with_probability_p() -> None:
    settings, draw = TokenDropSettings(0.75, "guide"), np.random.default_rng(0)
    silent = np.array([settings.silence(100, draw).sum() for _ in range(4000)])
    assert set(silent.tolist()) == {0, 30} and (silent == 30).mean() == pytest.approx(0.75, abs=0.025)
    assert not TokenDropSettings(0.75, "code").silence(100, draw).any()


def test_a_rate_of_one_is_refused_because_nothing_would_be_left() -> None:
    with pytest.raises(UserError, match=r"token_drop\.rate is 1"):
        TokenDropSettings(1.0)
