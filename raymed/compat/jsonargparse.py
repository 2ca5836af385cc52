"""jsonargparse's private parts, and those of argparse below it."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from jsonargparse import ArgumentParser, Namespace

SEEN = "4.53.0"


class AdjustingParser(ArgumentParser):
    """A parser whose values can be changed before their types are checked. jsonargparse has no hook for that between a file
    and its options (jsonargparse/_core.py, `_apply_actions`)."""

    def adjust(self, values: Namespace | dict[str, Any], options: Collection[str]) -> None:
        """Change values in place.

        Args:
            options: the names of all options.
        """

    def _apply_actions(self, cfg: Namespace | dict[str, Any], *others: Any, **more: Any) -> Namespace:
        self.adjust(cfg, {action.dest for action in self._actions})
        return super()._apply_actions(cfg, *others, **more)


def hide_options(parser: ArgumentParser, shown: Collection[str]) -> None:
    """Leave all options but these out of the help. Options that come from a class's fields cannot be told so when they are
    added; argparse lists actions and groups under private names only (`_actions`, `_action_groups`, `_group_actions`)."""
    for action in parser._actions:
        if action.dest not in shown:
            action.help = argparse.SUPPRESS
    for group in parser._action_groups:
        if all(action.help == argparse.SUPPRESS for action in group._group_actions):
            group.title = group.description = None


def hide_default_files(parser: ArgumentParser) -> None:
    """Leave the files of defaults out of the help, where jsonargparse lists them as paths of this machine
    (jsonargparse/_core.py, `_default_config_files_group`); without `default_config_files` it would not show their values."""
    located = getattr(parser, "_default_config_files_group", None)
    parser._action_groups = [group for group in parser._action_groups if group is not located]
