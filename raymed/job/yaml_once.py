"""YAML whose keys stand once: the library takes the last of two, and what stood under the first is lost unsaid."""

from __future__ import annotations

from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"  # of the key <<


class OnceLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Makes plain values, and refuses a key that stands twice in the same place."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for written, _ in node.value:
            if written.tag == MERGE:  # what it brings stands elsewhere, and gives way to what stands here
                continue
            key = self.construct_object(written, deep=True)
            if key in keys:
                raise yaml.YAMLError(f"line {written.start_mark.line + 1}: the key {key!r} stands twice")
            keys.append(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(text: str, kind: type[OnceLoader] = OnceLoader) -> Any:
    """The one document of a text, read by a loader of this kind.

    Raises:
        yaml.YAMLError: not YAML, or a key stands twice.
    """
    loader = kind(text)  # a safe one: it makes plain values only
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
