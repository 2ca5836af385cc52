"""No step on packs of texts and pictures waits for a device, and none mixes devices."""

from dataclasses import replace

import pytest
from device_reads import ON_CUDA_BUILDS, alone, pass_on_fake_cuda, pass_on_meta, reads_of_a_step
from sample_records import DRAWING, EDIT, QUESTION, TEXT
from test_unimedvl_training import RECIPE
from worker_processes import run_workers

from raymed.systems.unimedvl import masks
from raymed.systems.unimedvl.sequence import CondDropout

RECORDS = [QUESTION, EDIT, TEXT, DRAWING]
WHOLE = replace(RECIPE, dropout=CondDropout(0, 0, 0))  # with all of its pictures
ON_HOST = {  # how a pack is divided among samples and pictures: its batch keeps that on the host
    "raymed/systems/unimedvl/network.py moments_of",
    "raymed/systems/unimedvl/vit.py forward",
    "raymed/systems/unimedvl/masks.py <genexpr>",
    "raymed/training/engine.py step",
}


@pytest.mark.slow
def test_a_step_over_packs_reads_from_a_card_nothing_but_what_the_host_has() -> None:
    run_workers(_count_reads)


def _count_reads(_: int) -> None:
    alone()
    assert reads_of_a_step(RECIPE, RECORDS).keys() <= ON_HOST


def test_a_pack_reads_no_value_from_the_device() -> None:
    pass_on_meta(WHOLE, RECORDS)


@ON_CUDA_BUILDS
@pytest.mark.parametrize("attention", ["dense", "flex"])
def test_a_pack_on_cuda_mixes_no_devices(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if attention == "flex":
        monkeypatch.setattr(masks, "FLEX_FROM", 0)
        # its mask is made; a kernel cannot be compiled for what has no values
        monkeypatch.setattr(masks, "_compiled_flex", lambda: lambda query, key, value, **_: query)
    pass_on_fake_cuda(WHOLE, RECORDS)
