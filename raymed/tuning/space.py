"""The search space: dotted setting names and what they may be, as written in a config file.

space:
  train.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
  model.dropout: {low: 0.0, high: 0.5}
  augment.preset: {choices: [none, light, ct]}
  slices.per_patient: {choices: [8, 16, 32]}
  phantom.difficulty: {choices: [0.3, 0.5]}      # of phantom patients, which are made before the search begins
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from raymed.errors import UserError

RENAMED = {"loss_settings": "loss"}  # settings that are called otherwise in records of earlier searches

Value = bool | int | float | str | None  # whole numbers stay whole: a file is read as the first type that fits
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Dimension:
    """What one setting may be: a range or a list.

    Attributes:
        low: Smallest value of a range.
        high: Largest value of a range.
        log: Draw the range on a logarithmic scale.
        choices: The values of a list; given instead of a range.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.choices) == (self.low is not None or self.high is not None):
            raise UserError(f"a dimension of the search space is either low and high, or choices: {self}")
        if not self.choices and (self.low is None or self.high is None or not self.low < self.high):
            raise UserError(f"a range of the search space needs low < high: {self}")
        if self.log and (self.low is None or self.low <= 0):
            raise UserError(f"a logarithmic range of the search space needs low > 0: {self}")

    @property
    def is_whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def holds(self, value: Value) -> bool:
        """Whether it could be drawn."""
        if self.low is None or self.high is None:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high and (value % 1 == 0 or not self.is_whole)


Space = Mapping[str, Dimension]


@runtime_checkable
class Located(Protocol):
    """Settings some of which are paths."""

    def located(self) -> Located:
        """With absolute paths: workers have another working folder."""


def current_name(path: str) -> str:
    """The dotted path of a setting as it is called now."""
    first, dot, rest = path.partition(".")
    return RENAMED.get(first, first) + dot + rest


def get_setting(settings: Any, path: str) -> Any:
    """The value at a dotted path in nested dataclasses.

    Raises:
        UserError: there is no such setting; the message lists what there is.
    """
    for name in current_name(path).split("."):
        known = [each.name for each in dataclasses.fields(settings)] if dataclasses.is_dataclass(settings) else []
        if name not in known:
            raise UserError(f"the search space names {path!r}, and there is no {name!r}: choose among {', '.join(known)}")
        settings = getattr(settings, name)
    return settings


def with_setting(settings: Settings, path: str, value: Any) -> Settings:
    """A copy of nested frozen dataclasses with the value at a dotted path replaced."""
    name, _, rest = current_name(path).partition(".")
    get_setting(settings, name)
    inner = with_setting(getattr(settings, name), rest, value) if rest else value
    return dataclasses.replace(settings, **{name: inner})  # type: ignore[type-var]


def check_drawn(space: Space, recipe: Any) -> None:
    """Refuse a dimension whose ends or choices, put into the recipe, it could not be trained with.

    Raises:
        UserError: the setting, its value and what is wrong with it.
    """
    from raymed.recipes.recipe import Checked  # options are read without torch

    for name, dimension in space.items():
        for value in dimension.choices or (dimension.low, dimension.high):
            try:
                drawn = with_setting(recipe, name, value)
                if isinstance(drawn, Checked):
                    drawn.check()
            except UserError as error:
                raise UserError(f"the search space would draw {name} {value}, and {error}") from error


def located(space: Space, settings: Any) -> Space:
    """The space with the absolute paths that choices stand for, where they are paths.

    Args:
        settings: what the names of the space are settings of.

    Raises:
        UserError: nothing is there, or there is no such setting.
    """
    return {name: dataclasses.replace(each, choices=_located(name, each, settings)) for name, each in space.items()}


def _located(name: str, dimension: Dimension, settings: Any) -> tuple[Value, ...]:
    around, _, own = name.rpartition(".")
    owner = get_setting(settings, around) if around else settings
    if not isinstance(owner, Located):
        return dimension.choices
    return tuple(
        get_setting(with_setting(owner, own, choice).located(), own) if isinstance(choice, str) else choice
        for choice in dimension.choices
    )
