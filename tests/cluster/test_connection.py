from __future__ import annotations

import pytest
import ray
from ray.exceptions import AuthenticationError

from raymed.cluster.connection import capacity, connect, cpus_per_gpu, gpus_of_a_machine, smallest_store
from raymed.errors import UserError


def test_a_cluster_without_its_workers_counts_as_what_it_can_grow_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMED_CAPACITY", "CPU=72,GPU=8")
    assert capacity({"CPU": 8.0, "memory": 1.0}) == {"CPU": 72, "GPU": 8}
    assert capacity({"CPU": 80.0, "GPU": 8.0}) == {"CPU": 80, "GPU": 8}
    monkeypatch.delenv("RAYMED_CAPACITY")
    assert capacity({"CPU": 8.0}) == {"CPU": 8, "GPU": 0}


def test_of_machines_that_are_to_come_the_gpus_and_the_stores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large head staged more than its workers' stores would hold."""
    head = {"CPU": 8.0, "object_store_memory": 64.0 * 2**30}
    monkeypatch.setattr("raymed.cluster.connection.machines", lambda: [head])
    monkeypatch.setenv("RAYMED_CAPACITY", "CPU=72,GPU=8,MACHINES=2,STORE=8")
    assert (smallest_store(), gpus_of_a_machine()) == (8 * 2**30, 4)
    monkeypatch.setenv("RAYMED_CAPACITY", "CPU=72,GPU=8")
    assert (smallest_store(), gpus_of_a_machine()) == (64 * 2**30, 1)
    monkeypatch.setattr("raymed.cluster.connection.machines", lambda: [head, {"GPU": 2.0, "object_store_memory": 1.0}])
    assert (smallest_store(), gpus_of_a_machine()) == (1, 2)


@pytest.mark.parametrize("text", ["8", "GPU=8 CPU=64", "TPU=8", "GPU=-1", "GPU=", ","])
def test_a_capacity_that_is_not_understood_is_an_error_and_not_zero(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMED_CAPACITY", text)
    with pytest.raises(UserError, match="CPU=72,GPU=8"):
        capacity({})


HEAD = {"CPU": 8.0, "node:__internal_head__": 1.0}


@pytest.mark.parametrize(
    ("nodes", "stated", "share"),
    [
        ([HEAD], "CPU=72,GPU=8", 8),  # before the first worker is there
        ([HEAD, {"CPU": 8.0, "GPU": 1.0}], "CPU=72,GPU=8", 8),
        ([HEAD, {"CPU": 96.0, "GPU": 8.0}, {"CPU": 32.0, "GPU": 4.0}], "", 8),
        ([HEAD | {"CPU": 17.0, "GPU": 1.0}], "", 16),  # one machine: its own Ray offers a CPU more than it has cores
        ([HEAD | {"CPU": 2.0, "GPU": 4.0}], "", 1),
    ],
)
def test_each_gpu_gets_its_share_of_its_machines_cpus(
    nodes: list[dict[str, float]], stated: str, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = {name: sum(each.get(name, 0.0) for each in nodes) for name in ("CPU", "GPU")}
    monkeypatch.setattr("ray.cluster_resources", lambda: total)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": each} for each in nodes])
    monkeypatch.setenv("RAYMED_CAPACITY", stated)
    assert cpus_per_gpu() == share


@pytest.mark.parametrize(
    "error", [AuthenticationError("InvalidAuthToken"), RuntimeError("Failed to connect to GCS.\nIt is gone")]
)
def test_a_cluster_that_cannot_be_joined_is_an_error_that_speaks_of_its_token_first(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match=r"^the Ray cluster at 127.0.0.1:1 cannot be joined.*token") as told:
        connect()
    assert "\n" not in str(told.value)
