"""The table of a rehearsal: what was done to a cluster, and what a person at the job saw of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

Row = tuple[str, str]  # what was done; what was seen


def show(rows: Sequence[Row], capsys: pytest.CaptureFixture[str]) -> None:
    """Print the rows, however pytest keeps what tests print."""
    width = max(len(fault) for fault, _ in rows)
    with capsys.disabled():
        print()
        for fault, line in rows:
            print(f"  {fault:<{width}}  {line}")
