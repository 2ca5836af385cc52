"""Names and settings as MLflow takes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote


def quoted(key: str) -> str:
    """A key as it stands in a filter: without quotes of its own."""
    return quote(key, safe=" /:._-")


def metric_name(name: str) -> str:
    """A name that MLflow takes, which a class's or a data set's need not be: its other characters become underscores."""
    return re.sub(r"[^\w.\- /:]", "_", name)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of nested settings; lists are JSON."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
            yield prefix + name, json.dumps(dict(value) if isinstance(value, Mapping) else list(value), default=str)
        else:
            yield prefix + name, str(value)
