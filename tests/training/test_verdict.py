"""The search's word reaches a run whatever else waits for it."""

import pytest
import ray

from raymed.training.verdict import Verdicts, wait_for_verdict

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def test_a_verdict_is_given_though_more_than_a_thousand_workers_have_asked_whether_to_leave():
    verdicts = Verdicts.remote()
    waiting = [verdicts.told_to_leave.remote() for _ in range(1100)]
    verdicts.give.remote("trial-0", 1, True)
    assert ray.wait([verdicts.ask.remote("trial-0", 1)], timeout=20)[0], "nobody is answered any more"
    assert wait_for_verdict(verdicts, "trial-0", 1) is True
    ray.get(verdicts.leave.remote())
    assert len(ray.wait(waiting, num_returns=len(waiting), timeout=20)[0]) == len(waiting)
