import pytest

from raymed.training.schedule import learning_rate
from raymed.training.settings import TrainSettings


def test_the_learning_rate_rises_linearly_peaks_once_and_ends_at_its_floor():
    settings = TrainSettings(warmup=0.25, final_lr=0.1)
    rates = [learning_rate(step, 40, settings) for step in range(40)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == 1.0
    assert learning_rate(40, 40, settings) == pytest.approx(0.1)
    assert learning_rate(400, 40, settings) == pytest.approx(0.1), "past its end the schedule must not rise again"
