"""Promise 4: a checkpoint is whole or it does not exist."""

import shutil
from pathlib import Path
from typing import ClassVar

import pytest

from raymed.errors import RunError, UserError
from raymed.storage import availability
from raymed.storage.availability import wait_for
from raymed.storage.folder import Folder
from raymed.training import checkpoint
from raymed.training.checkpoint import Checkpoints, Progress, fetch_newest, find_newest, new_name, seal, verify
from raymed.training.means import means


def write_checkpoint(run: Path, step: int, workers: int = 2) -> Path:
    folder = run / new_name(step, 1)
    folder.mkdir(parents=True)
    for worker in range(workers):
        part = run / f"part-{worker}"
        (part / "state").mkdir(parents=True)
        (part / "state" / f"rank-{worker}.pt").write_bytes(bytes([step, worker]) * 500)
        if worker == 0:
            Progress(epoch=1, step=step, global_step=step, sums={"loss/loss": (1.5, 3.0)}).write(part)
        seal(part, worker, workers)
        shutil.copytree(part, folder, dirs_exist_ok=True)
        shutil.rmtree(part)
    return folder


def test_the_newest_whole_checkpoint_is_found_and_its_progress_survives(tmp_path):
    for step in (3, 12, 7):
        write_checkpoint(tmp_path / "run", step)
    newest = fetch_newest(Folder.at(tmp_path / "run"), tmp_path / "local")
    assert newest is not None
    progress = Progress.read(newest)
    assert (progress.global_step, progress.sums) == (12, {"loss/loss": (1.5, 3.0)})


def test_a_checkpoint_of_before_a_loss_had_terms_goes_on_with_the_epoch_s_mean(tmp_path):
    Progress(sums={"loss": (1.5, 3.0), "accuracy": (1.0, 3.0)}).write(tmp_path)
    assert means(Progress.read(tmp_path).sums) == {"loss": 0.5, "accuracy": pytest.approx(1 / 3)}


def test_of_two_checkpoints_of_one_step_the_later_is_the_newest(tmp_path):
    """A run told to leave in its validation saves the epoch's last step; going on, it saves that step again."""
    run = tmp_path / "run"
    for saved in range(1, 12):
        part = run / new_name(5, saved)
        part.mkdir(parents=True)
        Progress(epoch=saved, global_step=5).write(part)
        seal(part, 0, 1)
    newest = fetch_newest(Folder.at(run), tmp_path / "local")
    assert newest is not None
    assert Progress.read(newest).epoch == 11


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("harm", ["remove", "empty", "cut", "flip"])
def test_a_torn_checkpoint_is_never_loaded_and_the_one_before_is(tmp_path, caplog, number, harm):
    write_checkpoint(tmp_path / "run", 3)
    torn = write_checkpoint(tmp_path / "run", 7)
    file = _files(torn)[number]
    content = file.read_bytes()
    if harm == "remove":
        file.unlink()
    else:
        harmed = {"empty": b"", "cut": content[: len(content) // 2], "flip": bytes([content[0] ^ 1]) + content[1:]}[harm]
        file.write_bytes(harmed)
    newest = fetch_newest(Folder.at(tmp_path / "run"), tmp_path / "local")
    assert newest is not None
    assert Progress.read(newest).global_step == 3
    assert torn.name in caplog.text, "the line must name the checkpoint that was passed over"


def test_a_checkpoint_without_its_list_is_passed_over_before_its_files_travel(tmp_path, monkeypatch):
    whole = write_checkpoint(tmp_path / "run", 3)
    torn = write_checkpoint(tmp_path / "run", 7)
    (torn / "sealed-000.json").unlink()
    copied: list[str] = []

    def watched(source, target):
        copied.append(target.name)
        copy_to_local(source, target)

    copy_to_local = checkpoint.copy_to_local
    monkeypatch.setattr(checkpoint, "copy_to_local", watched)
    assert fetch_newest(Folder.at(tmp_path / "run"), tmp_path / "local") == tmp_path / "local" / whole.name
    assert copied == [whole.name]


def test_a_storage_that_does_not_answer_is_no_reason_to_begin_anew(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "run", 3)

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "copy_to_local", full)
    with pytest.raises(OSError, match="No space left"):
        fetch_newest(Folder.at(tmp_path / "run"), tmp_path / "local")


class Blinking(Folder):
    """A run's folder whose storage is away for some of the looks at it.

    Attributes:
        looks: of each to come, whether it sees what is there.
    """

    looks: ClassVar[list[bool]] = []

    def _sees(self) -> bool:
        return not self.looks or self.looks.pop(0)

    def exists(self, name: str = "") -> bool:
        return self._sees() and super().exists(name)

    def names(self) -> list[str]:
        return super().names() if self._sees() else []


@pytest.mark.parametrize("looks", [[False], [True, False], [True, False, False], [False, False]])
def test_a_checkpoint_that_a_look_misses_while_the_storage_is_away_is_neither_passed_over_nor_torn(
    tmp_path, monkeypatch, looks
):
    names = [write_checkpoint(tmp_path / "run", step).name for step in (3, 7)]
    monkeypatch.setattr(Blinking, "looks", [*looks])
    monkeypatch.setattr(availability, "PAUSE", 0.01)
    run = Blinking(**vars(Folder.at(tmp_path / "run")))
    found = wait_for(lambda: find_newest(run, tmp_path / "local"), run, 1)
    assert found == Checkpoints(names, [], names[1])


def test_a_storage_that_stays_away_is_no_run_without_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError):
        find_newest(Folder.at(tmp_path / "away"), tmp_path / "local")
    (tmp_path / "run").mkdir()
    assert find_newest(Folder.at(tmp_path / "run"), tmp_path / "local") == Checkpoints([], [])


def test_a_kill_at_any_offset_of_the_write_leaves_nothing_that_loads(tmp_path):
    whole = write_checkpoint(tmp_path / "run", 5)
    contents = [(file.relative_to(whole), file.read_bytes()) for file in _files(whole)]
    contents.sort(key=lambda item: item[0].name.startswith("sealed"))  # the lists are written last
    total = sum(len(content) for _, content in contents)
    for offset in range(0, total, max(1, total // 25)):
        torn, left = tmp_path / f"torn-{offset}", offset
        for name, content in contents:
            (torn / name).parent.mkdir(parents=True, exist_ok=True)
            if left > 0:
                (torn / name).write_bytes(content[:left])
            left -= len(content)
        with pytest.raises((RunError, ValueError, KeyError)):
            verify(torn)


def test_a_run_without_checkpoints_starts_anew(tmp_path):
    assert fetch_newest(Folder.at(tmp_path / "nothing"), tmp_path / "local") is None


def test_a_checkpoint_of_another_search_or_of_other_settings_is_refused_by_name():
    """Whose weights may well have the same shape."""
    origin = {"generation": "one", "train": {"lr": 0.1, "epochs": 3}, "seed": 1}
    Progress().check_origin(origin, "a checkpoint from before")
    Progress(origin=origin | {"gone": 1}).check_origin(origin | {"new": 2}, "one of another version")
    with pytest.raises(UserError, match=r"trial-0003/step-1 is of another run: generation was one, and is two now"):
        Progress(origin=origin).check_origin(origin | {"generation": "two"}, "trial-0003/step-1")
    with pytest.raises(UserError, match=r"train\.lr was 0\.1, and is 0\.2 now.*--resume never"):
        Progress(origin=origin).check_origin(origin | {"train": {"lr": 0.2}}, "step-1")


def test_where_a_checkpoint_comes_from_is_written_and_read(tmp_path):
    origin = {"generation": "one", "train": {"lr": 0.1}}
    Progress(origin=origin).write(tmp_path)
    assert Progress.read(tmp_path).origin == origin
