"""YAML whose keys stand once: the library takes the last of two, and what stood under the first is lost unsaid."""

from __future__ import annotations

from typing import Any

import yaml


class OnceLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Makes plain values only, and refuses a key that stands twice in the same place."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                line = node.value[place][0].start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: the key {key!r} stands twice")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(text: str) -> Any:
    """The one document of a text.

    Raises:
        yaml.YAMLError: not YAML, or a key stands twice.
    """
    return yaml.load(text, OnceLoader)
