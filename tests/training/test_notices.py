"""A worker's view of what it was told costs a step nothing while there is no news."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from raymed.training.preemption import Notice, Notices


def notices(told: Future[None], preempted: list[bool]) -> Notices:
    """With a job whose answer to `told_to_leave` is a future, as Ray gives it."""
    job: Any = SimpleNamespace(told_to_leave=SimpleNamespace(remote=lambda: SimpleNamespace(future=lambda: told)))
    return Notices(job, lambda: preempted[0])


@pytest.mark.parametrize("lost", [False, True])
def test_word_from_the_job_is_heard_and_so_is_its_end(lost: bool) -> None:
    told, preempted = Future[None](), [False]
    seen = notices(told, preempted)
    assert seen.newest() == Notice.NONE
    preempted[0] = True
    assert seen.newest() == Notice.MACHINE
    if lost:
        told.set_exception(RayActorError())
    else:
        told.set_result(None)
    assert seen.newest() == Notice.JOB


def test_asking_for_news_calls_nothing_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """It went through Ray's core before each step."""
    seen = notices(Future(), [False])
    for name in ("wait", "get"):
        monkeypatch.setattr(f"ray.{name}", lambda *_, **__: pytest.fail("a call into Ray"))
    assert seen.newest() == Notice.NONE
