"""No step on packs of texts and pictures waits for a device."""

import pytest
from device_reads import alone, reads_of_a_step
from sample_records import DRAWING, EDIT, QUESTION, TEXT
from test_unimedvl_training import RECIPE
from worker_processes import run_workers

ON_HOST = {  # how a pack is divided among samples and pictures: its batch keeps that on the host
    "raymed/systems/unimedvl/network.py moments_of",
    "raymed/systems/unimedvl/vit.py forward",
    "raymed/systems/unimedvl/masks.py by_sample",
    "raymed/systems/unimedvl/masks.py __init__",
    "raymed/training/engine.py step",
}


@pytest.mark.slow
def test_a_step_over_packs_reads_from_a_card_nothing_but_what_the_host_has() -> None:
    run_workers(_count_reads)


def _count_reads(_: int) -> None:
    alone()
    assert reads_of_a_step(RECIPE, [QUESTION, EDIT, TEXT, DRAWING]).keys() <= ON_HOST
