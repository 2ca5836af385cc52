"""What a prepared corpus comes to: tiles are counted from sizes, steps from the samples that are trained on."""

from pathlib import Path

import pytest
from conftest import write_prepared

from raymed.data import corpus_yield


def test_tiles_tokens_and_steps_are_told_and_a_set_that_would_be_shown_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = write_prepared(tmp_path / "data", patients=24, slices=4)
    assert corpus_yield.tile_counts(prepared).tolist() == 96 * [1]
    tiles, epoch, often = corpus_yield.lines(prepared)
    assert tiles.startswith("tiles: 96 samples of 1; tokens of a sample: median 784")
    assert epoch == "an epoch: 72 samples to train on, after repeat_time: 9 steps of 8, 1 steps of 128"
    assert "8000 steps of 8 are 889 epochs" in often
    monkeypatch.setattr(corpus_yield, "STEPS", 90)
    assert len(corpus_yield.lines(prepared)) == 2, "ten epochs are not often"
