"""Which trials tie with the best, though a power cut tore what one of them left."""

from pathlib import Path

import numpy as np
import pytest

from raymed.errors import RunError
from raymed.registry.patient_assessment import loss_differences
from raymed.storage.folder import Folder
from raymed.training.checkpoint import PREDICTIONS, seal


@pytest.fixture
def trials(prepared, tmp_path) -> list[Folder]:
    """Three trials of the same predictions."""
    rows = prepared.rows("val")
    logits = np.eye(4, dtype=np.float32)[prepared.columns(rows, ["label"])["label"]]
    trials = []
    for number in range(3):
        folder = tmp_path / f"step-{number}"
        folder.mkdir()
        np.savez(folder / PREDICTIONS, row=rows, logits=logits)
        seal(folder, 0, 1)
        trials.append(Folder.at(str(folder)))
    return trials


def ties(prepared, trials: list[Folder]) -> list[int]:
    return list(loss_differences(prepared, trials[0], dict(enumerate(trials[1:], 1)), seed=0))


@pytest.mark.parametrize("harm", ["cut", "emptied", "removed", "flipped"])
def test_one_torn_loser_does_not_stop_the_report(prepared, trials, harm, caplog):
    file = Path(trials[1].path, PREDICTIONS)
    content = file.read_bytes()
    if harm == "removed":
        file.unlink()
    else:
        flipped = content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]
        file.write_bytes({"cut": content[: len(content) // 2], "emptied": b"", "flipped": flipped}[harm])
    assert ties(prepared, trials) == [2]
    assert "trial 1 is not compared with the best" in caplog.text
    assert str(file) in caplog.text


def test_a_storage_that_is_away_for_a_moment_leaves_no_trial_out(prepared, trials, monkeypatch, caplog):
    read, away = Folder.read, [trials[1].path]

    def blink(folder, name):
        if folder.path in away:
            away.clear()
            raise FileNotFoundError(name)
        return read(folder, name)

    monkeypatch.setattr(Folder, "read", blink)
    assert ties(prepared, trials) == [1, 2]
    assert not away and not caplog.text


def test_a_trial_that_was_validated_on_other_patients_does_not_stop_the_report(prepared, trials, caplog):
    rows = prepared.rows("val")
    kept = rows[prepared.columns(rows, ["patient"])["patient"] != prepared.columns(rows[:1], ["patient"])["patient"][0]]
    np.savez(Path(trials[1].path, PREDICTIONS), row=kept, logits=np.zeros((len(kept), 4), np.float32))
    seal(Path(trials[1].path), 0, 1)
    assert ties(prepared, trials) == [2]
    assert "trial 1 is not compared with the best" in caplog.text and "same patients" in caplog.text


def test_a_torn_winner_is_named(prepared, trials):
    file = Path(trials[0].path, PREDICTIONS)
    file.write_bytes(b"")
    with pytest.raises(RunError, match=rf"{file} is damaged"):
        ties(prepared, trials)
