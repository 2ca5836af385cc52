"""What was forgotten is known to every head, though the storage is away for a moment."""

import shutil
from pathlib import Path

import pytest

from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.storage.lease import lease
from raymed.tuning.forgotten import Forgotten
from raymed.tuning.journal import Journal


def test_a_storage_that_is_away_for_a_moment_is_not_taken_for_one_in_which_nothing_was_forgotten(tmp_path, monkeypatch):
    """The search went on, ended, and the same command then removed what it had found."""
    storage = Folder.at(tmp_path)
    Forgotten().begin(["one"]).write(storage, "night")
    exists, looks = Folder.exists, []

    def blink(folder, name=""):
        looks.append(name)
        return exists(folder, name) and (not name or looks.count(name) > 1)

    monkeypatch.setattr(Folder, "exists", blink)
    assert Forgotten.read(storage, "night") == Forgotten(("one",), is_unfinished=True)


@pytest.mark.parametrize("below", ["", "runs"])
def test_a_mount_point_is_not_taken_for_a_storage_in_which_nothing_was_forgotten(tmp_path, below):
    """It is there, and empty, while the storage is away."""
    mount = tmp_path / "mount"
    storage = Folder.at(mount / below)
    with lease(storage, "night"):
        assert Forgotten.read(storage, "night") == Forgotten()
        mount.rename(tmp_path / "server")
        Path(storage.path, ".leases", "night").mkdir(parents=True)  # as a command leaves it that came while it was away
        with pytest.raises(FileNotFoundError):
            Forgotten.read(storage, "night")
        with pytest.raises(FileNotFoundError):
            storage.put("written", b"")
        with pytest.raises(UserError, match="cannot be read or written"):
            Journal(mount / below / "night" / "study.journal", storage.child("night"))
        assert not list(Path(storage.path, ".leases", "night").iterdir()) and len(list(mount.rglob("*"))) <= 3
        shutil.rmtree(mount)
        (tmp_path / "server").rename(mount)
        Journal(mount / below / "night" / "study.journal", storage.child("night"))


def test_generations_are_gathered_over_several_forgettings(tmp_path):
    storage = Folder.at(tmp_path)
    assert Forgotten.read(storage, "night") == Forgotten()
    Forgotten().begin(["b"]).begin(["a", "b"]).write(storage, "night")
    assert Forgotten.read(storage, "night") == Forgotten(("a", "b"), is_unfinished=True)
