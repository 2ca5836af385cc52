"""What workers do together in the storage: one that waits for it is no hang, and says what it waits for."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing

from raymed.errors import CommonError, RunError, StorageError, UserError
from raymed.storage import availability
from raymed.storage.folder import Folder
from raymed.training.agreement import Agreement
from raymed.training.stall import StallGuard


@pytest.fixture
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/rendezvous")
    monkeypatch.setattr(availability, "PAUSE", 0.01)
    monkeypatch.setattr(availability, "UNSAID", 0.1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_alone")
def test_a_worker_that_waits_for_the_storage_says_so_once(tmp_path: Path) -> None:
    """It waited for 20 minutes in silence where its machine alone lacked the folder."""
    folder, said, started = Folder.at(tmp_path / "runs"), list[str](), time.monotonic()
    together = Agreement(folder, 1.0, StallGuard(0, folder, 0), said.append)

    def act() -> str:
        if time.monotonic() - started < 0.5:
            raise FileNotFoundError(2, "No such file or directory")
        return "done"

    assert together.reach(act) == "done"
    (text,) = said
    assert text.startswith("worker 0 on ") and f"does not see {folder.uri} ([Errno 2] No such" in text
    assert together.reach(lambda: "at once") == "at once"
    assert len(said) == 1, "who does not wait says nothing"


MET = [StorageError("full"), CommonError("was prepared again"), RunError("weights are missing")]


def _two_meet(worker: int, store: Path) -> None:
    dist.init_process_group("gloo", rank=worker, world_size=2, init_method=f"file://{store}", timeout=timedelta(seconds=60))
    together = Agreement(Folder.at(store.parent), 1.0, StallGuard(0, Folder.at(store.parent), worker), lambda text: None)

    def unlike() -> None:
        raise (RunError("damaged"), StorageError("full"))[worker]

    def alike() -> None:
        raise UserError("is not prepared data")

    with pytest.raises(StorageError, match=r"^full$"):
        together.reach(unlike)
    with pytest.raises(UserError, match=r"^is not prepared data$"):
        together.reach(alike)


def test_what_two_workers_meet_ends_them_alike_and_what_ends_the_search_goes_first(tmp_path: Path) -> None:
    """Each raised what it had met itself, and the job heard of the first worker's alone: the other trials went on."""
    torch.multiprocessing.start_processes(_two_meet, (tmp_path / "store",), nprocs=2, start_method="fork")


def _one_of_two_meets(worker: int, store: Path) -> None:
    dist.init_process_group("gloo", rank=worker, world_size=2, init_method=f"file://{store}", timeout=timedelta(seconds=60))
    together = Agreement(Folder.at(store.parent), 1.0, StallGuard(0, Folder.at(store.parent), worker), lambda text: None)
    for error in MET:

        def act(error: Exception = error) -> None:
            if worker == 1:
                raise error

        with pytest.raises(type(error), match=f"^worker 1 on {socket.gethostname()}: {error}$") as met:
            together.reach(act)
        assert type(met.value) is type(error)


def test_what_one_worker_alone_cannot_do_is_raised_on_all_as_what_it_is(tmp_path: Path) -> None:
    """Where one machine saw other data, the others waited for it for 50 minutes, three times, and nobody was told why."""
    torch.multiprocessing.start_processes(_one_of_two_meets, (tmp_path / "store",), nprocs=2, start_method="fork")


@pytest.mark.usefixtures("_alone")
def test_a_thread_that_waits_for_the_storage_hides_no_hang_of_the_run(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "runs")
    guard = StallGuard(0, folder, 0)
    together = Agreement(folder, 1.0, guard, lambda text: None)

    def at_the_third_try(tries: list[int]) -> None:
        tries.append(len(tries))
        if len(tries) < 3:
            raise FileNotFoundError(2, "No such file or directory")

    stepped = guard._seen
    together.attempt(partial(at_the_third_try, list[int]()))
    assert guard._seen == stepped
    together.may_wait()
    assert guard._seen > stepped + 30, "a run that waits for its thread has as long as the thread"


@pytest.mark.usefixtures("_alone")
def test_a_storage_that_stays_away_is_an_error_of_the_storage(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "runs")

    def act() -> None:
        raise FileNotFoundError(2, "No such file or directory")

    with pytest.raises(StorageError, match="has been away"):
        Agreement(folder, 0.001, StallGuard(0, folder, 0), lambda text: None).reach(act)
