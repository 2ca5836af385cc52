import dataclasses
from dataclasses import dataclass, field

import optuna
import pytest

from raymed.errors import UserError
from raymed.tuning.space import Dimension, get_setting, with_setting


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    name: str = "x"


def test_a_dotted_name_changes_that_setting_and_nothing_else():
    changed = with_setting(Outer(), "inner.rate", 0.5)
    assert changed == dataclasses.replace(Outer(), inner=Inner(0.5))
    assert get_setting(changed, "inner.rate") == 0.5


@pytest.mark.parametrize("path", ["inner.rat", "outer", "name.rate"])
def test_a_setting_that_nobody_reads_is_an_error_that_lists_what_there_is(path):
    with pytest.raises(UserError, match="choose among"):
        get_setting(Outer(), path)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"low": 1.0}, {"low": 2.0, "high": 1.0}, {"low": 0.0, "high": 1.0, "log": True}, {"low": 0, "choices": (1,)}],
)
def test_a_dimension_that_cannot_be_drawn_from_is_refused(wrong):
    with pytest.raises(UserError):
        Dimension(**wrong)


def test_whole_number_bounds_draw_whole_numbers():
    assert isinstance(Dimension(1, 9).distribution(), optuna.distributions.IntDistribution)
    assert isinstance(Dimension(0.1, 0.9).distribution(), optuna.distributions.FloatDistribution)
    assert isinstance(Dimension(choices=("a", "b")).distribution(), optuna.distributions.CategoricalDistribution)
