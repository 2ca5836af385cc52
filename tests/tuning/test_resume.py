"""``--resume``, and how a search is stopped by hand."""

import os
import signal
import time
from dataclasses import dataclass

import pytest
import ray

from raymed.errors import UserError
from raymed.job import going_on
from raymed.lung import LungOptions
from raymed.storage import Folder
from raymed.system import SearchOptions, for_search
from raymed.training.engine import TrainSettings
from raymed.training.verdict import Verdicts
from raymed.tuning.budget import Budget
from raymed.tuning.interrupt import Interrupt


@dataclass(frozen=True, kw_only=True)
class SearchedLung(LungOptions, SearchOptions):
    """Options of a search."""


def night_of(prepared, folder, resume, name="night", **changes):
    options = LungOptions(data=prepared.folder.uri, storage=str(folder), name=name, resume=resume, **changes)
    return options.night(prepared, Budget(3))


def test_must_refuses_a_name_that_nothing_is_known_of_and_goes_on_with_one_that_is(prepared, tmp_path):
    with pytest.raises(UserError, match=r"'nihgt'.*Check --name"):
        night_of(prepared, tmp_path, "must", name="nihgt")
    assert not list(tmp_path.iterdir()), "a mistyped name starts nothing"
    begun = night_of(prepared, tmp_path, "auto").open_study()
    begun.ask(Budget(3))
    assert len(night_of(prepared, tmp_path, "must").open_study().trials) == 1


def test_never_forgets_what_is_there_but_not_in_a_dry_run(prepared, tmp_path):
    study = night_of(prepared, tmp_path, "auto").open_study()
    study.ask(Budget(3))
    assert len(night_of(prepared, tmp_path, "never", dry_run=True).open_study().trials) == 1
    assert len(night_of(prepared, tmp_path, "never").open_study().trials) == 0


def test_never_removes_no_folder_that_is_none_of_ours(prepared, tmp_path):
    (tmp_path / "patients").mkdir()
    (tmp_path / "patients" / "scan.png").write_bytes(b"dear")
    with pytest.raises(UserError, match=r"would remove .*patients, which is no run's folder"):
        night_of(prepared, tmp_path, "never", name="patients")
    assert (tmp_path / "patients" / "scan.png").read_bytes() == b"dear"


def test_a_run_does_not_go_into_the_data_that_it_reads(prepared, tmp_path):
    """Where `--resume never` would remove them."""
    folder = Folder.at(prepared.folder.uri)
    with pytest.raises(UserError, match="where the prepared data lie"):
        night_of(prepared, folder.path.rsplit("/", 1)[0], "auto", name=folder.path.rsplit("/", 1)[1])


def test_a_search_says_how_long_its_trials_are_in_one_way():
    assert for_search(SearchedLung(max_epochs=7)).train.epochs == 7
    with pytest.raises(UserError, match=r"train\.epochs 30 .*--max-epochs, which is 7"):
        for_search(SearchedLung(max_epochs=7, train=TrainSettings(epochs=30)))


def test_the_command_to_go_on_with_begins_nothing_anew():
    words = ["jobs/train_lung.py", "--resume", "never", "--name", "never more"]
    assert going_on(words) == "python jobs/train_lung.py --resume must --name 'never more'"
    assert going_on(["a.py", "--resume=never"]) == "python a.py --resume must"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_runs_to_leave_and_the_second_stops_at_once(number):
    before, verdicts = signal.getsignal(number), Verdicts.remote()
    told = verdicts.told_to_leave.remote()
    with pytest.raises(KeyboardInterrupt), Interrupt(verdicts) as interrupt:
        os.kill(os.getpid(), number)
        ray.get(told, timeout=30)
        assert interrupt.told
        started = time.monotonic()
        os.kill(os.getpid(), number)
        time.sleep(30)
    assert time.monotonic() - started < 5
    assert signal.getsignal(number) == before
