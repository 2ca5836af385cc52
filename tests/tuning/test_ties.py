"""Which trials tie with the best, though a power cut tore what one of them left."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from raymed.errors import RunError
from raymed.training.checkpoint import PREDICTIONS, seal
from raymed.tuning.result import compare
from raymed.tuning.study import CHECKPOINT


@pytest.fixture
def trials(prepared, tmp_path) -> list[SimpleNamespace]:
    """Three trials of the same predictions."""
    rows = prepared.rows("val")
    logits = np.eye(4, dtype=np.float32)[prepared.columns(rows, ["label"])["label"]]
    trials = []
    for number in range(3):
        folder = tmp_path / f"step-{number}"
        folder.mkdir()
        np.savez(folder / PREDICTIONS, row=rows, logits=logits)
        seal(folder, 0, 1)
        trials.append(SimpleNamespace(number=number, user_attrs={CHECKPOINT: str(folder)}))
    return trials


def ties(prepared, trials: list[SimpleNamespace]) -> list[int]:
    search = SimpleNamespace(template=SimpleNamespace(open_data=lambda: prepared, seed=0))
    return list(compare(search, SimpleNamespace(trials=trials), trials[0]))


@pytest.mark.parametrize("harm", ["cut", "emptied", "removed", "flipped"])
def test_one_torn_loser_does_not_stop_the_report(prepared, trials, harm, caplog):
    file = Path(trials[1].user_attrs[CHECKPOINT], PREDICTIONS)
    content = file.read_bytes()
    if harm == "removed":
        file.unlink()
    else:
        flipped = content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]
        file.write_bytes({"cut": content[: len(content) // 2], "emptied": b"", "flipped": flipped}[harm])
    assert ties(prepared, trials) == [2]
    assert "trial 1 is not compared with the best" in caplog.text
    assert str(file) in caplog.text


def test_a_torn_winner_is_named(prepared, trials):
    file = Path(trials[0].user_attrs[CHECKPOINT], PREDICTIONS)
    file.write_bytes(b"")
    with pytest.raises(RunError, match=rf"{file} is damaged"):
        ties(prepared, trials)
