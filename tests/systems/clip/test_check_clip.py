"""Configurations before a night: each is tried out at its own size and described whole, and folds are planned."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from conftest import write_prepared

from raymed.data.prepared import Prepared
from raymed.errors import RunError, UserError
from raymed.evaluation.patients import Patients
from raymed.models.settings import ClipModelSettings
from raymed.systems.clip.check import check_configurations
from raymed.systems.clip.options import GUIDE, TrainClip
from raymed.systems.clip.recipe import ClipRecipe
from raymed.systems.clip.result import Result
from raymed.systems.clip.runs import Configuration, Work, list_configurations
from raymed.training.settings import TrainSettings
from raymed.tuning.estimate import describe


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
    with pytest.raises(UserError, match=r"cannot be built: configs\.json, entry 2: unknown key"):
        check_configurations([small], ["configs.json, entry 2: unknown key"], "cpu")


def test_the_texts_of_a_file_are_those_that_are_trained_with(prepared: Prepared, tmp_path: Path) -> None:
    """And so those that a .pth file keeps, which has its recipe's."""
    texts = {name: f"a picture of {name}" for name in prepared.labels.names} | {prepared.labels.names[0]: ["one", "two"]}
    (tmp_path / "texts.json").write_text(json.dumps(texts), "utf-8")
    options = configuration(prepared, tmp_path, "", 8).options
    given = Configuration.of(dataclasses.replace(options, class_texts_file=str(tmp_path / "texts.json")))
    recipe = next(iter(given.specs.values())).recipe
    assert isinstance(recipe, ClipRecipe)
    assert recipe.texts == (("one", "two"), *((f"a picture of {name}",) for name in prepared.labels.names[1:]))


def test_config_json_has_every_key_of_the_guide_s_and_what_it_was_trained_on(prepared: Prepared, tmp_path: Path) -> None:
    described = configuration(prepared, tmp_path, "", 8).describe()
    guide = (
        "image_encoder text_encoder embed_dim batch_size epochs learning_rate weight_decay temperature img_size augmentation"
    )
    guide += " n_splits random_state use_amp save_best use_cv early_stopping_patience early_stopping_min_delta"
    guide += " early_stopping_monitor text_template class_texts_file"
    assert set(guide.split()) <= described.keys()
    assert (described["batch_size"], described["early_stopping_monitor"], described["unit"]) == (8, "val_acc", "patient")
    assert described["data_digest"] == prepared.digest and json.loads(json.dumps(described)) == described


def test_a_dry_run_of_folds_plans_each_of_them(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("machines", [{"CPU": 2.0, "GPU": 0.0}]), ("resources", {"CPU": 2.0, "GPU": 0.0})):
        monkeypatch.setattr(f"raymed.cluster.connection.{name}", lambda value=value: value)
    options = dataclasses.replace(configuration(prepared, tmp_path, "", 8).options, use_cv=True, n_splits=3)
    plan = describe(Work.of(options, [Configuration.of(options)]).search)
    assert "runs       fold_1, fold_2, fold_3" in plan.text and "GiB of activations" in plan.text
    with pytest.raises(UserError, match="prepared with 3 folds, not 4"):
        Configuration.of(dataclasses.replace(options, n_splits=4))


def listed(prepared: Prepared, home: Path, *entries: Mapping[str, object]) -> tuple[TrainClip, list[Configuration]]:
    """The options of a job with these entries, and what is to be trained."""
    (home / "configs.json").write_text(json.dumps(entries), "utf-8")
    options = dataclasses.replace(
        configuration(prepared, home, "", 8).options,
        output_dir=str(home / "out"),
        multi_config=True,
        config_file=str(home / "configs.json"),
    )
    found, wrong = list_configurations(options, GUIDE)
    assert not wrong
    return options, found


def test_a_configuration_finds_its_own_folder_again_and_does_not_take_that_of_another(
    prepared: Prepared, tmp_path: Path
) -> None:
    """Each was alone in its file, so that nothing within it tells two of the same encoders apart."""
    _, (first,) = listed(prepared, tmp_path, {"epochs": 3})
    first.start(tmp_path / "out")
    _, (other,) = listed(prepared, tmp_path, {"epochs": 4})
    other.start(tmp_path / "out")
    assert other.name == f"{first.name}-{other.digest}"
    for entries in ([{"epochs": 4}, {"epochs": 3}], [{"epochs": 3}, {"epochs": 4}]):
        _, found = listed(prepared, tmp_path, *entries)
        names = {each.options.train.epochs: each.name for each in found}
        assert names == {3: first.name, 4: other.name}


def test_a_configuration_that_ended_while_its_job_was_cut_off_is_brought_to_a_run_that_can_be_registered(
    prepared: Prepared, tmp_path: Path
) -> None:
    """Of folds that is the mean of their networks, which is made at a job's end."""
    options, (cut, whole) = listed(prepared, tmp_path, {"use_cv": True, "n_splits": 3}, {"epochs": 3})
    ids, labels = np.array(["a", "b"], object), np.arange(2)
    patients = Patients(ids, labels, np.full((2, 4), 0.25), np.ones(2, np.int64), np.full(2, "", object))
    for each, figures in ((cut, {"val_acc": 50.0}), (whole, {"val_acc": 50.0, "run_id": "one"})):
        each.start(tmp_path / "out")
        Result(each.name, each.describe(), figures, prepared.labels.names, patients, {}).write(tmp_path / "out")
    work = Work.of(options, [cut, whole])
    assert [each.name for each in work.configurations] == [cut.name]
    assert [each.name for each in work.finished] == [whole.name]
    assert sorted(work.outputs()) == [f"{cut.name}-fold_{number}" for number in (1, 2, 3)]
