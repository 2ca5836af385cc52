from __future__ import annotations

import pytest

from raymed.cluster import capacity
from raymed.errors import UserError


def test_a_cluster_without_its_workers_counts_as_what_it_can_grow_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMED_CAPACITY", "CPU=64,GPU=8")
    assert capacity({"CPU": 8.0, "memory": 1.0}) == {"CPU": 64, "GPU": 8}
    assert capacity({"CPU": 72.0, "GPU": 8.0}) == {"CPU": 72, "GPU": 8}
    monkeypatch.delenv("RAYMED_CAPACITY")
    assert capacity({"CPU": 8.0}) == {"CPU": 8, "GPU": 0}


@pytest.mark.parametrize("text", ["8", "GPU=8 CPU=64", "TPU=8", "GPU=-1", "GPU=", ","])
def test_a_capacity_that_is_not_understood_is_an_error_and_not_zero(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMED_CAPACITY", text)
    with pytest.raises(UserError, match="CPU=64,GPU=8"):
        capacity({})
