"""The search's word reaches a run whatever else waits for it."""

import pytest
import ray

from raymed.training.stop_decisions import Verdicts, wait_for_verdict
from raymed.tuning.reminder import Reminder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def test_a_verdict_is_given_though_more_than_a_thousand_workers_have_asked_whether_to_leave():
    verdicts = Verdicts.remote()
    waiting = [verdicts.told_to_leave.remote() for _ in range(1100)]
    verdicts.give.remote("trial-0", 1, True)
    assert ray.wait([verdicts.ask.remote("trial-0", 1)], timeout=20)[0], "nobody is answered any more"
    assert wait_for_verdict(verdicts, "trial-0", 1) is True
    ray.get(verdicts.leave.remote())
    assert len(ray.wait(waiting, num_returns=len(waiting), timeout=20)[0]) == len(waiting)


def test_a_decision_outlives_the_process_that_tells_it(caplog):
    """Killed while a worker waits: it is started again, is told what the study holds, and answers."""
    verdicts = Verdicts.remote()
    ray.get(verdicts.give.remote("trial-0", 1, True))
    leave = verdicts.told_to_leave.remote()
    with Reminder(verdicts, lambda: [("trial-0", 1, True), ("trial-1", 2, False)]):
        asked = verdicts.ask.remote("trial-1", 2)
        for _ in range(2):
            ray.kill(verdicts, no_restart=False)
        assert ray.get(asked, timeout=60) is False
        assert ray.get(verdicts.ask.remote("trial-0", 1), timeout=60) is True
    assert not ray.wait([leave], timeout=0)[0], "its death is not the job's"
    assert "it is started again" in caplog.text
