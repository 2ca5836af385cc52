"""Workers of one machine meet in a file of their own each time; what listens while they train is in test_local_ray.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.train.torch import TorchConfig

from raymed.data.prepared import Prepared
from raymed.data.stream import Streamed
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training.fit import Resources, _trainer
from raymed.training.rendezvous import OneMachine
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec


class Workers:
    """Notes what two workers are told, and lets nobody do it."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return 2

    def get_resources_per_worker(self) -> dict[str, float]:
        return {"CPU": 1}

    def execute(self, action: Callable[[], None]) -> None: ...

    def execute_single_async(self, rank: int, action: Callable[..., None], **settings: Any) -> None:
        self.told.append(settings)

    def execute_async(self, action: Callable[..., None], **settings: Any) -> None: ...


def store_of(workers: Workers) -> Path:
    (address,) = {each["init_method"] for each in workers.told}
    return Path(address.removeprefix("file://"))


def test_each_attempt_meets_in_a_private_folder_of_its_own_that_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of workers that were killed makes new ones wait for them."""
    monkeypatch.setattr("ray.get", lambda *_, **__: None)
    config = OneMachine(timeout_s=77)
    backend, attempts = config.backend_cls(), [Workers(), Workers()]
    for workers in attempts:  # the first was killed: nobody shuts it down
        backend.on_start(workers, config)  # type: ignore[arg-type]
        assert store_of(workers).parent.stat().st_mode & 0o777 == 0o700 and not store_of(workers).exists()
        assert [each["world_rank"] for each in workers.told] == [0, 1]
        assert {(each["backend"], each["world_size"], each["timeout_s"]) for each in workers.told} == {("gloo", 2, 77)}
    killed, ended = map(store_of, attempts)
    assert killed != ended
    backend.on_shutdown(attempts[1], config)  # type: ignore[arg-type]
    assert not killed.parent.exists() and not ended.parent.exists()


@pytest.mark.parametrize(("own", "kind"), [(True, OneMachine), (False, TorchConfig)])
def test_a_file_serves_a_jobs_own_ray_and_workers_wait_as_long_as_for_the_storage(
    prepared: Prepared, tmp_path: Path, own: bool, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 40 minutes for a storage that is away, workers that waited for another gave up after 30."""
    monkeypatch.setattr("raymed.training.fit.is_own", lambda: own)
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    spec = RunSpec("never-run", str(tmp_path), prepared.folder.uri, recipe, TrainSettings(storage_minutes=40), workers=2)
    trainer = _trainer(spec, Streamed(prepared.folder.uri), Resources(2, 2, 1, 0), None, [], False)
    assert type(trainer.backend_config) is kind
    assert trainer.backend_config.timeout_s == (30 + 40) * 60
