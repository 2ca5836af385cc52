"""No step of the report writer waits for a device, and none mixes devices."""

import pytest
from device_reads import ON_CUDA_BUILDS, alone, pass_on_fake_cuda, pass_on_meta, reads_of_a_step
from report_records import records
from test_report_workers import RECIPES
from worker_processes import run_workers


@pytest.mark.slow
def test_a_step_of_either_stage_reads_nothing_from_a_card() -> None:
    run_workers(_count_reads)


def _count_reads(_: int) -> None:
    alone()
    for name, recipe in RECIPES.items():
        assert reads_of_a_step(recipe, records(2)) == {"raymed/training/engine.py step": 2}, name


@pytest.mark.parametrize("name", RECIPES)
def test_a_report_writer_reads_no_value_from_the_device(name: str) -> None:
    pass_on_meta(RECIPES[name], records(2))


@ON_CUDA_BUILDS
@pytest.mark.parametrize("name", RECIPES)
def test_a_report_writer_on_cuda_mixes_no_devices(name: str) -> None:
    pass_on_fake_cuda(RECIPES[name], records(2))
