"""Which settings decide what comes of a run, so that it does not go on with others."""

from dataclasses import replace

import pytest

from raymed.training.settings import TrainSettings


@pytest.mark.parametrize(("changed", "decides"), [({"norm_group": 4}, True), ({"micro_batch": 4}, False)])
def test_the_packs_that_a_batch_norm_takes_together_decide_a_run_and_those_of_a_forward_pass_do_not(changed, decides):
    before, now = TrainSettings(), replace(TrainSettings(), **changed)
    assert (before.deciding() != now.deciding()) == decides
    assert (before.how() != now.how()) != decides
