"""``--resume``, and how a search is stopped by hand."""

import dataclasses
import json
import os
import shutil
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from raymed.data.prepared import Prepared
from raymed.errors import CommonError, UserError
from raymed.job.job import resume_command
from raymed.storage.folder import Folder
from raymed.systems.options import SearchOptions, for_search
from raymed.systems.toy.options import ToyOptions
from raymed.tracking.tracker import Tracker
from raymed.training.engine import TrainSettings
from raymed.training.stop_decisions import StopDecisions
from raymed.tuning.budget import Budget
from raymed.tuning.execution import _sources, _sweep
from raymed.tuning.interrupt import Interrupt
from raymed.tuning.journal import Journal, generations
from raymed.tuning.study import CHECKPOINT


@dataclass(frozen=True, kw_only=True)
class SearchedToy(ToyOptions, SearchOptions):
    """Options of a search."""


def night_of(prepared, folder, resume, name="search", **changes):
    options = ToyOptions(data=prepared.folder.uri, storage=str(folder), name=name, resume=resume, **changes)
    return options.open_search(prepared, Budget(3))


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


def die(*arguments, **settings):
    raise SystemExit("killed")


def killed_while_forgetting(search, step, monkeypatch):
    """Before the step, the process is killed."""
    with monkeypatch.context() as patch:
        if step == "record":
            unlink = Path.unlink
            patch.setattr(Path, "unlink", lambda path, **how: die() if path == search.study_path else unlink(path, **how))
        elif step == "folder":
            patch.setattr(Folder, "delete", lambda folder, name="": die() if not name else None)
        else:
            patch.setattr(Tracker, "forget", die)
        with pytest.raises(SystemExit):
            search.forget()


@pytest.mark.parametrize("step", ["record", "folder", "mlflow"])
def test_a_search_whose_forgetting_was_killed_does_not_come_back_half(prepared, tmp_path, monkeypatch, step):
    search = night_of(prepared, tmp_path, "auto")
    study = search.open_study()
    study.ask(Budget(3))
    study.close()
    search.template.folder.write("trials/trial-0000/step-00000001-a/progress.json", b"{}")
    run = search.open_tracker().run("search", "search")
    killed_while_forgetting(search, step, monkeypatch)
    with pytest.raises(UserError, match="no earlier run"):
        night_of(prepared, tmp_path, "must")
    again = night_of(prepared, tmp_path, "auto")
    again.finish_forgetting()
    assert again.open_study().trials == []
    assert not again.template.folder.exists("trials")
    assert again.open_tracker().find("search") is None
    assert again.open_study().generation != study.generation
    assert search.open_tracker().describe(run).status == "RUNNING", "MLflow keeps it, deleted"


def test_a_head_that_comes_back_with_the_record_of_a_forgotten_search_begins_anew(tmp_path, caplog):
    """Its record lay on its own disk, and is longer than that of the new search."""
    storage = Folder.at(tmp_path / "storage")
    old = Journal(tmp_path / "old-head" / "study.journal", storage)
    for number in range(9):
        old.append_logs([{"op_code": 0, "number": number}])
    old.close()
    over = generations(tmp_path / "new-head" / "study.journal", storage)
    assert over == {old.generation}
    storage.delete()
    fresh = Journal(tmp_path / "old-head" / "study.journal", storage, over)
    assert list(fresh.read_logs(0)) == [], "also before the new search has begun"
    assert "was forgotten" in caplog.text
    new = Journal(tmp_path / "new-head" / "study.journal", storage, over)
    new.append_logs([{"op_code": 0, "number": 1}])
    new.close()
    assert list(Journal(tmp_path / "old-head" / "study.journal", storage, over).read_logs(0)) == [
        {"op_code": 0, "number": 1}
    ]


def test_never_removes_nothing_while_another_machine_judges_or_refits_that_search(prepared, tmp_path):
    search = night_of(prepared, tmp_path, "auto")
    search.open_study().ask(Budget(3))
    claim = {"host": "other-head", "machine": "other-head 1", "pid": 7, "started": "1"}
    Folder.at(tmp_path).write(".leases/search/theirs.json", json.dumps(claim).encode())
    with pytest.raises(UserError, match="7 on other-head"):
        night_of(prepared, tmp_path, "never")
    with pytest.raises(UserError, match="7 on other-head"), search.alone():
        pass
    assert len(search.open_study().trials) == 1


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


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "x" * 250])
def test_a_name_that_no_folder_can_have_is_told(prepared, tmp_path, name):
    with pytest.raises(UserError, match="cannot name a folder"):
        night_of(prepared, tmp_path, "auto", name=name)


def test_patients_added_in_place_under_a_search_are_refused_wherever_its_rows_are_read(prepared, tmp_path):
    """Row numbers of the old index would name other patients in the new one."""
    data = Path(shutil.copytree(prepared.folder.path, tmp_path / "data"))
    search = night_of(Prepared.open(str(data)), tmp_path / "runs", "auto")
    trial = SimpleNamespace(number=0, params={}, user_attrs={CHECKPOINT: "uri"})
    candidate = search.candidate("run", trial)
    manifest = json.loads((data / "manifest.json").read_bytes())
    (data / "manifest.json").write_text(json.dumps(manifest | {"digest": "other"}), "utf-8")
    for opening in (search.run_spec(0, {}).open_data, candidate.open_data, lambda: _sources(search)):
        with pytest.raises(CommonError, match="was prepared again"):
            opening()
    assert candidate.tags()["raymed.data_digest"] == prepared.digest


def test_a_search_stays_with_the_data_that_it_began_with_though_no_trial_has_begun(prepared, tmp_path):
    """A kill in its first second, and other data prepared there meanwhile: the next command took those, for ever."""
    data = Path(shutil.copytree(prepared.folder.path, tmp_path / "data"))
    (tmp_path / "runs").mkdir()
    night_of(Prepared.open(str(data)), tmp_path / "runs", "auto", name="night").open_study()
    content = (data / "manifest.json").read_text("utf-8")
    (data / "manifest.json").write_text(json.dumps(json.loads(content) | {"digest": "other"}), "utf-8")
    with pytest.raises(UserError, match=f"other data: was {prepared.digest}, and is other now. Prepare those once"):
        night_of(Prepared.open(str(data)), tmp_path / "runs", "auto", name="night").open_study()
    (data / "manifest.json").write_text(content, "utf-8")
    night_of(Prepared.open(str(data)), tmp_path / "runs", "auto", name="night").open_study()


@pytest.mark.parametrize("missing", ["manifest.json", "index"])
def test_a_run_whose_data_are_away_when_it_begins_waits_for_them(prepared, tmp_path, missing):
    """It was taken for a mistake of the user's: the trial failed for good, and the search ended."""
    data = Path(shutil.copytree(prepared.folder.path, tmp_path / "data"))
    spec = night_of(Prepared.open(str(data)), tmp_path / "runs", "auto").run_spec(0, {})
    (lost,) = data.glob(f"{missing}*")
    lost.rename(tmp_path / "aside")
    with pytest.raises(FileNotFoundError, match=str(data)):  # which `wait_for` waits on
        spec.reach_data()
    with pytest.raises(UserError, match=r"is not prepared data|is missing"):
        dataclasses.replace(spec, data_digest="").reach_data()
    (tmp_path / "aside").rename(lost)
    assert spec.reach_data().digest == prepared.digest


def test_what_earlier_processes_left_that_nobody_reads_goes_and_nothing_else(tmp_path):
    for name in ("tune-20250101-000000", "trials", "output"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    for name in ("study.journal", "study.journal.copy", "study.journal.copy.0123.tmp"):
        (tmp_path / name).touch()
    _sweep(Folder.at(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"trials", "output", "study.journal", "study.journal.copy"}


def test_a_search_says_how_long_its_trials_are_in_one_way():
    assert for_search(SearchedToy(max_epochs=7)).train.epochs == 7
    with pytest.raises(UserError, match=r"train\.epochs 30 .*--max-epochs, which is 7"):
        for_search(SearchedToy(max_epochs=7, train=TrainSettings(epochs=30)))


def test_the_command_to_go_on_with_begins_nothing_anew(monkeypatch):
    monkeypatch.setattr("sys.argv", ["jobs/train_lung.py", "--resume", "never", "--name", "never more"])
    assert resume_command() == "python jobs/train_lung.py --resume must --name 'never more'"
    monkeypatch.setattr("sys.argv", ["a.py", "--resume=never"])
    assert resume_command() == "python a.py --resume must"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_runs_to_leave_and_the_second_stops_at_once(number):
    before, stop_decisions = signal.getsignal(number), StopDecisions.remote()
    told = stop_decisions.told_to_leave.remote()
    with pytest.raises(KeyboardInterrupt), Interrupt(stop_decisions) as interrupt:
        os.kill(os.getpid(), number)
        ray.get(told, timeout=30)
        assert interrupt.told
        os.kill(os.getpid(), number)
        threading.Event().wait()  # for ever, but for the signal
    assert signal.getsignal(number) == before
