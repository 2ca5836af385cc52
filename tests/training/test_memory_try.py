"""A try ends in its own process where memory does not suffice."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import ray
from conftest import write_prepared
from ray import cloudpickle
from test_memory_plan import A_ROW, CPU, memory_plan_tests, spec_of
from worker_processes import run_workers

from raymed.training.memory_try import tried, tried_alone
from raymed.training.process import prepare_process
from raymed.training.rendezvous import meet_nobody
from raymed.training.spec import RunSpec


def try_out(worker: int, spec: RunSpec, folder: Path) -> None:
    """What a try needs, without a limit and just below what it needed."""
    prepare_process(CPU)
    meet_nobody(CPU)
    found = [tried(spec, CPU, 2**40), tried(spec, CPU, 2**20)]
    assert found[0].needed is not None
    held = found[0].needed + spec.train.packs_at_once * A_ROW  # this process keeps what it has freed
    larger = dataclasses.replace(spec, train=dataclasses.replace(spec.train, micro_batch=8 * spec.train.packs_at_once))
    found.append(tried(larger, CPU, held))
    (folder / "found.json").write_text(json.dumps([each.needed for each in found]))


@pytest.mark.slow
def test_a_process_is_refused_what_is_beyond_its_room_and_lives_on(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "data")
    run_workers(try_out, (spec_of(prepared, tmp_path, "run", micro_batch=2, global_batch=16), tmp_path))
    needed, nothing, larger = json.loads((tmp_path / "found.json").read_text())
    assert needed > 2 * A_ROW and nothing is None and larger is None


@ray.remote(num_cpus=1)
def hold(size: int) -> int:
    """What other work of Ray's processes does to them: Linux remembers the most that a process has held."""
    assert np.ones(size, np.uint8).all()
    return os.getpid()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_what_a_process_has_held_before_is_not_counted_for_what_a_try_needs(tmp_path: Path) -> None:
    cloudpickle.register_pickle_by_value(memory_plan_tests())
    spec = spec_of(write_prepared(tmp_path / "data"), tmp_path, "run", micro_batch=1)
    before, most = 4 * A_ROW, set[int]()
    while len(most) < 2:  # of those that Ray may take
        most |= {*ray.get([hold.remote(before) for _ in range(2)])}
    found = tried_alone(spec, CPU, 2**40, 1)
    assert found.needed is not None and A_ROW < found.needed < before
