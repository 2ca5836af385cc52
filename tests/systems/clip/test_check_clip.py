"""Every configuration of a file is tried out at its own size, and one that cannot be trained stops no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import write_prepared

from raymed.data.prepared import Prepared
from raymed.errors import RunError, UserError
from raymed.models.settings import ClipModelSettings
from raymed.systems.clip.check import check_configurations
from raymed.systems.clip.options import TrainClip
from raymed.systems.clip.runs import Configuration
from raymed.training.settings import TrainSettings


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return write_prepared(tmp_path_factory.mktemp("check") / "data", size=35)


def configuration(prepared: Prepared, home: Path, name: str, batch: int) -> Configuration:
    train = TrainSettings(global_batch=8, micro_batch=batch, norm_group=batch, monitor="val_acc", precision="fp32")
    options = TrainClip(
        data=prepared.folder.uri,
        size=32,
        storage=str(home),
        model=ClipModelSettings("tiny", None, "characters", 16),
        train=train,
    )
    return Configuration.of(options, name)


def test_each_is_told_with_its_own_batch_and_memory(prepared: Prepared, tmp_path: Path) -> None:
    two = [configuration(prepared, tmp_path, "a", 8), configuration(prepared, tmp_path, "b", 4)]
    outcome = check_configurations(two, [], "cpu")
    figures = outcome.data["configurations"]
    assert (figures["a"]["records"], figures["b"]["records"]) == (8, 4)
    assert figures["a"]["activations"] > figures["b"]["activations"] > 0
    assert "a: " in outcome.text and "8 pictures of 32 pixels at once" in outcome.text
    assert outcome.text.endswith("ready: computed on cpu")


def test_one_that_does_not_fit_is_named_and_the_others_are_tried(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = configuration(prepared, tmp_path, "large", 8), configuration(prepared, tmp_path, "small", 4)
    recipe = next(iter(large.specs.values())).recipe
    whole = type(recipe).compute_loss

    def short(self, module, batch):  # type: ignore[no-untyped-def]
        if len(batch.ids) > 4:
            raise RuntimeError("CUDA out of memory\nTried to allocate")
        return whole(self, module, batch)

    monkeypatch.setattr(type(recipe), "compute_loss", short)
    with pytest.raises(RunError, match=r"large: fails: CUDA out of memory\nsmall: .* 4 pictures"):
        check_configurations([large, small], [], "cpu")
    with pytest.raises(UserError, match=r"wrong: configs\.json, entry 2: unknown key"):
        check_configurations([small], ["configs.json, entry 2: unknown key"], "cpu")
