"""Which type of machine a cluster asks for: one that the cloud has, and that can be set up. And which are on their way.

Ray's own rule takes the first type that fits for ever, also while the cloud has none of it, or its set-up fails each time.
``cluster.yaml`` names `score` in ``RAY_AUTOSCALER_UTILIZATION_SCORER``; only Ray's first autoscaler
(``RAY_enable_autoscaler_v2=0``) asks.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from typing import TYPE_CHECKING, Any

from raymed import clock
from raymed.compat.ray import autoscaling_status, tell, told, usual_score, watch_set_ups

if TYPE_CHECKING:
    from raymed.compat.ray import NodeAvailabilitySummary

TRIES = 3  # set-ups of a type of machine that fail one after the other, before none is tried any more
KEPT = b"raymed set-ups"
NONE_CAN_COME = (
    "no machine can be set up for the trials that wait ({why}). `ray monitor` says more. Mend it, `ray up` again, and the "
    "same command goes on"
)


@dataclass
class SetUps:
    """How set-ups of machines ended, in the process of the autoscaler that does them.

    Attributes:
        failed: by type, how often in a row, when that was found out last, and what failed.
        asked: the types that somebody had a use for.
    """

    failed: dict[str, tuple[int, float, str]] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ended(self, node_type: str, began: float, failure: str) -> None:
        """A machine's set-up has ended; what failed is empty where nothing did.

        Several that began before a failure was known are one try: they met the same trouble.
        """
        with self._lock:
            tries, known, _ = self.failed.get(node_type, (0, 0.0, ""))
            if not failure:
                self.failed.pop(node_type, None)
            elif began >= known:
                self.failed[node_type] = (tries + 1, clock.seconds(), failure)
            self._tell()

    def ask(self, node_type: str) -> None:
        """Somebody has a use for a type. What was said of the others is said anew."""
        with self._lock:
            if node_type not in self.asked:
                self.asked.add(node_type)
                if self.failed:
                    self._tell()

    def _tell(self) -> None:
        left = [each for each in self.asked if not self.given_up(each)]
        shown = {each: (tries, failure) for each, (tries, _, failure) in self.failed.items()}
        with contextlib.suppress(Exception):  # Ray's head is busy: the autoscaler would take it for a set-up that failed
            tell(KEPT, json.dumps({"failed": shown, "is_over": not left}).encode())

    def given_up(self, node_type: str) -> bool:
        return self.failed.get(node_type, (0,))[0] >= TRIES


@cache
def set_ups() -> SetUps:
    """Those of this process, which are looked at from the first call on."""
    found = SetUps()
    watch_set_ups(found.ended)
    return found


def score(
    node_resources: dict[str, Real],
    resources: list[dict[str, Real]],
    node_type: str,
    *,
    node_availability_summary: NodeAvailabilitySummary,
) -> tuple[Any, ...] | None:
    """Ray's score of a machine type for these requests, the greater the better; None where none of them fits.

    A type whose last launch failed comes after all others that fit; Ray forgets a failure after half an hour. One whose
    set-up failed some times in a row is launched no more, until `ray up` starts the autoscaler again.
    """
    usual = usual_score(node_resources, resources, node_availability_summary)
    if usual is None:
        return None
    set_ups().ask(node_type)
    if set_ups().given_up(node_type):
        return None
    known = node_availability_summary.node_availabilities.get(node_type)
    keeps_gpus_free, *rest = usual
    return keeps_gpus_free, known is None or known.is_available, *rest


def machines_to_come() -> str:
    """What the autoscaler waits for, what the cloud refused, in its own words, and which set-up failed; empty where there is
    no autoscaler."""
    status = autoscaling_status()
    return "; ".join(in_words(json.loads(status).get("autoscaler_report") or {}, _told()["failed"])) if status else ""


def none_can_come() -> bool:
    """Whether machines of every type that anybody has a use for cannot be set up."""
    return bool(_told()["is_over"])


def _told() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(KEPT) or b'{"failed": {}, "is_over": false}')
    return found


def in_words(report: Mapping[str, Any], failed: Mapping[str, tuple[int, str]]) -> Iterator[str]:
    """What a report of Ray's autoscaler says that a person wants to know, a part a line; and which set-ups failed."""
    pending = Counter(node_type for _, node_type, _ in report.get("pending_nodes", ()))
    pending.update(report.get("pending_launches", {}))
    if pending:
        yield "on their way: " + ", ".join(f"{count} x {node_type}" for node_type, count in sorted(pending.items()))
    for node_type, record in report.get("node_availability_summary", {}).get("node_availabilities", {}).items():
        if refusal := record["unavailable_node_information"]:
            yield f"no {node_type}: {refusal['category']}: {refusal['description']}"
    for node_type, (tries, failure) in sorted(failed.items()):
        if tries < TRIES:
            yield f"the set-up of {node_type} failed (try {tries} of {TRIES}): {failure}"
        else:
            yield f"no {node_type} any more: its set-up failed {tries} times: {failure}"
    if lost := Counter(node_type for _, node_type in report.get("failed_nodes", ())):
        yield "lost so far: " + ", ".join(f"{count} x {node_type}" for node_type, count in sorted(lost.items()))
