"""What a search on the hosts of a lab has left so far."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from raymed.compat.optuna import JournalOperation


def with_a_checkpoint(search: Path) -> int:
    """How many trials have one."""
    return len({path.parent.parent for path in (search / "trials").glob("trial-*/step-*/sealed-000.json")})


def reports(search: Path) -> Counter[tuple[int, int]]:
    """How often each epoch of each trial was reported to the study."""
    lines = map(json.loads, (search / "study.journal").read_text().splitlines())
    reported = [line for line in lines if line.get("op_code") == JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE]
    return Counter((line["trial_id"], line["step"]) for line in reported)


def summary(said: str) -> dict[str, dict[str, int]]:
    """The last object of a job with ``--json``."""
    return json.loads([line for line in said.splitlines() if line.startswith('{"')][-1])
