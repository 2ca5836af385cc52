"""The search's word reaches a run whatever else waits for it."""

import pytest
import ray
from ray.exceptions import RayActorError

from raymed.training.stop_decisions import StopDecisions, deciding, wait_for_verdict
from raymed.tuning.reminder import Reminder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def test_a_verdict_is_given_though_more_than_a_thousand_workers_have_asked_whether_to_leave():
    stop_decisions = StopDecisions.remote()
    waiting = [stop_decisions.told_to_leave.remote() for _ in range(1100)]
    stop_decisions.give.remote("trial-0", 1, True)
    assert ray.wait([stop_decisions.ask.remote("trial-0", 1)], timeout=20)[0], "nobody is answered any more"
    assert wait_for_verdict(stop_decisions, "trial-0", 1) is True
    ray.get(stop_decisions.leave.remote())
    assert len(ray.wait(waiting, num_returns=len(waiting), timeout=20)[0]) == len(waiting)


def test_its_process_ends_with_the_search_though_questions_wait():
    with deciding() as stop_decisions:
        waiting = [stop_decisions.until_lost.remote(), stop_decisions.hear.remote(), stop_decisions.told_to_leave.remote()]
        stop_decisions.give.remote("trial-0", 1, True)
        assert wait_for_verdict(stop_decisions, "trial-0", 1)
    for question in waiting:
        with pytest.raises(RayActorError):
            ray.get(question, timeout=60)


def test_a_decision_outlives_the_process_that_tells_it(caplog):
    """Killed while a worker waits: it is started again, is told what the study holds, and answers."""
    stop_decisions = StopDecisions.remote()
    ray.get(stop_decisions.give.remote("trial-0", 1, True))
    leave = stop_decisions.told_to_leave.remote()
    with Reminder(stop_decisions, lambda: [("trial-0", 1, True), ("trial-1", 2, False)]):
        asked = stop_decisions.ask.remote("trial-1", 2)
        for _ in range(2):
            ray.kill(stop_decisions, no_restart=False)
        assert ray.get(asked, timeout=60) is False
        assert ray.get(stop_decisions.ask.remote("trial-0", 1), timeout=60) is True
    assert not ray.wait([leave], timeout=0)[0], "its death is not the job's"
    assert "it is started again" in caplog.text
