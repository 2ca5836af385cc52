"""What was forgotten is known to every head, though the storage is away for a moment."""

from raymed.storage.folder import Folder
from raymed.tuning.forgotten import Forgotten


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


def test_in_a_storage_that_nobody_used_yet_nothing_was_forgotten(tmp_path):
    assert Forgotten.read(Folder.at(tmp_path / "new"), "night") == Forgotten()


def test_generations_are_gathered_over_several_forgettings(tmp_path):
    storage = Folder.at(tmp_path)
    assert Forgotten.read(storage, "night") == Forgotten()
    Forgotten().begin(["b"]).begin(["a", "b"]).write(storage, "night")
    assert Forgotten.read(storage, "night") == Forgotten(("a", "b"), is_unfinished=True)
