"""What a frozen part makes of rows is computed once, and losses are those of a run that computes it in every step."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from conftest import write_prepared
from keep import Keep
from ray import cloudpickle
from ray.train import UserCallback

from raymed.data.prepared import Prepared
from raymed.data.stream import Streamed, stage
from raymed.errors import UserError
from raymed.models.precision import Arithmetic
from raymed.models.settings import ModelSettings
from raymed.recipes.settings import AugmentSettings
from raymed.systems.lung.recipe import LungRecipe
from raymed.training import frozen
from raymed.training.engine import TrainSettings
from raymed.training.fit import Resources, fit, resources
from raymed.training.frozen import Readers, Source, WithFeatures, digest_of_part, keep_features, unfrozen
from raymed.training.loop import DESCRIPTION, FROZEN
from raymed.training.network import first_network
from raymed.training.spec import RunSpec

SETTINGS = TrainSettings(epochs=2, global_batch=16, micro_batch=5, norm_group=5, lr=3e-2)
EACH, CPU = Resources(1, 1, 1, 0), torch.device("cpu")


class Facts(UserCallback):
    """Writes what a run says of its frozen part into a file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def after_report(self, run_context, metrics, checkpoint):  # type: ignore[no-untyped-def]
        self.file.write_text(metrics[0][DESCRIPTION].get(FROZEN, ""))


def recipe_of(prepared: Prepared, augment: str = "none", **model: object) -> LungRecipe:
    model = {"preset": "tiny", "freeze_vision": True, **model}
    settings = ModelSettings(**model)  # type: ignore[arg-type]
    return LungRecipe.for_data(prepared.labels, prepared.size, settings, augment=AugmentSettings(augment))  # type: ignore[arg-type]


def spec_of(prepared: Prepared, storage: Path, name: str, augment: str = "none", **changes: object) -> RunSpec:
    spec = RunSpec(name, str(storage), prepared.folder.uri, recipe_of(prepared, augment), SETTINGS)
    train = {key: changes.pop(key) for key in list(changes) if key in TrainSettings.__dataclass_fields__}
    return dataclasses.replace(spec, train=dataclasses.replace(SETTINGS, **train), **changes)  # type: ignore[arg-type]


def kept(prepared: Prepared, spec: RunSpec) -> WithFeatures:
    source = keep_features([spec], stage(prepared, spec.all_rows(prepared)), False, EACH, 2)
    assert isinstance(source, WithFeatures)
    return source


def readers_of(source: Source, spec: RunSpec) -> Readers:
    """Of a worker that has just built its network."""
    computed: Arithmetic = "bf16" if spec.train.precision == "bf16" else "fp32"
    return Readers.of(source, spec.recipe, first_network(spec.recipe, spec.train, spec.seed, CPU).train(), computed)


def losses(spec: RunSpec, source: Source, *callbacks: UserCallback) -> tuple[dict[str, float], str]:
    """And what was said of the frozen part."""
    file = Path(spec.storage, f"{spec.name}.fact")
    metrics = fit(spec, source, resources(spec.workers, 1), callbacks=[Facts(file), *callbacks])
    return {name: metrics[name] for name in ("val_loss", "train_loss", "train_accuracy")}, file.read_text()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def pixels(prepared: Prepared, storage: Path, cluster: None) -> dict[str, float]:
    """The losses of a run that computes the frozen part in every step."""
    spec = spec_of(prepared, storage, "pixels")
    figures, fact = losses(spec, stage(prepared, spec.all_rows(prepared)))
    assert fact == "computed in every step"
    return figures


def test_a_recipe_offers_only_a_backbone_of_which_nothing_is_trained(prepared: Prepared) -> None:
    part = recipe_of(prepared).frozen_part
    assert part is not None and not part.varied
    varied = recipe_of(prepared, "light").frozen_part
    assert varied is not None and varied.varied
    for model in ({"freeze_vision": False}, {"trainable_blocks": 1}, {"preset": "tiny+tiny"}, {"preset": "internvl-tiny"}):
        assert recipe_of(prepared, **model).frozen_part is None


def test_a_part_that_drops_out_normalises_by_batches_or_is_trained_is_told_by_name() -> None:
    part = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Dropout(0.5)).eval()
    part.requires_grad_(False)
    assert unfrozen(part) == ""
    for place, kind in ((1, "BatchNorm2d"), (2, "Dropout")):
        part[place].train()
        assert unfrozen(part) == f"{kind} {place} is in training mode"
        part.eval()
    part[0].bias.requires_grad_(True)
    assert unfrozen(part) == "0.bias is trained"


def test_the_digest_is_of_weights_buffers_settings_and_arithmetic(prepared: Prepared) -> None:
    recipe = recipe_of(prepared)
    part, module = recipe.frozen_part, recipe.build()
    assert part is not None
    before = digest_of_part(module, part, "fp32")
    assert digest_of_part(module, part, "fp32") == before
    others = [
        digest_of_part(module, part, "bf16"),
        digest_of_part(module, dataclasses.replace(part, settings={**part.settings, "size": 56}), "fp32"),
        digest_of_part(recipe.build(), part, "fp32"),
    ]
    for tensor in (next(module.backbone.parameters()), next(module.backbone.buffers())):
        tensor.data.view(-1)[0] += 1
        others.append(digest_of_part(module, part, "fp32"))
    module.head[2].weight.data += 1
    assert digest_of_part(module, part, "fp32") == others[-1], "the head is trained and decides nothing here"
    assert len({before, *others}) == len(others) + 1


@pytest.mark.slow
def test_several_workers_with_sharded_weights_compute_the_losses_of_one_that_computes_the_part_in_every_step(
    prepared: Prepared, storage: Path, pixels: dict[str, float]
) -> None:
    spec = spec_of(prepared, storage, "two", workers=2, zero_stage=3)
    figures, fact = losses(spec, kept(prepared, spec))
    assert fact == "computed once"
    assert figures == pytest.approx(pixels, rel=2e-5)


@pytest.mark.slow
def test_a_run_resumed_in_mid_epoch_computes_the_losses_of_an_uninterrupted_one(
    prepared: Prepared, storage: Path, pixels: dict[str, float]
) -> None:
    """And by features that were computed again, as by a search that goes on."""
    whole, cut = (spec_of(prepared, storage, name, checkpoint_steps=2) for name in ("whole", "cut"))
    figures, fact = losses(whole, kept(prepared, whole), Keep(8, Path(cut.folder.path)))
    assert (figures, fact) == (pytest.approx(pixels, rel=1e-5), "computed once")
    assert losses(cut, kept(prepared, cut)) == (figures, "computed once")


@pytest.mark.slow
def test_augmented_rows_are_computed_in_every_step_and_those_of_validation_once(
    prepared: Prepared, storage: Path, cluster: None
) -> None:
    spec = spec_of(prepared, storage, "augmented", "light")
    source = kept(prepared, spec)
    assert ray.get(source.features.places)[0].tolist() == prepared.rows("val").tolist()
    for augment in ("light", "none"):  # a trial that augments nothing finds no features of rows to train on either
        readers = readers_of(source, spec_of(prepared, storage, augment, augment))
        assert readers.fact == "computed once for rows of validation, and in every step for those of training"
        for reader, split in ((readers.training, "train"), (readers.validation, "val")):
            (records,) = reader.read([prepared.rows(split)[:3].tolist()])
            assert all((record.features is None) == (split == "train") for record in records)


@pytest.mark.slow
def test_rows_that_a_run_shorter_than_an_epoch_may_never_see_are_not_computed_before_it(
    prepared: Prepared, storage: Path, cluster: None
) -> None:
    source = kept(prepared, spec_of(prepared, storage, "short", steps=1))
    assert ray.get(source.features.places)[0].tolist() == prepared.rows("val").tolist() and not source.training


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"seed": 1}, {"size": 56}, {"precision": "bf16"}])
def test_a_run_of_other_weights_pictures_or_arithmetic_takes_nobody_elses_features(
    prepared: Prepared, storage: Path, cluster: None, changes: dict[str, object]
) -> None:
    source = kept(prepared, spec_of(prepared, storage, "first"))
    if "size" in changes:
        changes = {"recipe": dataclasses.replace(recipe_of(prepared), **changes)}  # type: ignore[arg-type]
    readers = readers_of(source, spec_of(prepared, storage, "other", **changes))
    assert readers.fact == "computed in every step: its weights or settings are not those of the search's first run"
    (records,) = readers.training.read([prepared.rows("train")[:3].tolist()])
    assert all(record.features is None and record.images for record in records)


@pytest.mark.slow
def test_data_that_stay_in_their_shards_have_features_all_the_same(prepared: Prepared, storage: Path, cluster: None) -> None:
    spec = spec_of(prepared, storage, "streamed")
    source = keep_features([spec], Streamed(prepared.folder.uri), False, EACH, 1)
    assert readers_of(source, spec).fact == "computed once"


@pytest.mark.slow
def test_features_that_find_no_room_are_computed_in_every_step_and_a_line_says_so(
    prepared: Prepared, storage: Path, cluster: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of(prepared, storage, "no-room")
    rows = stage(prepared, spec.all_rows(prepared))
    monkeypatch.setattr(frozen, "fits_in_memory", lambda size: False)
    with caplog.at_level(logging.WARNING, "raymed"):
        assert keep_features([spec], rows, False, EACH, 1) is rows
        elsewhere = Resources(1, 1, 1, gpus=1)
        assert keep_features([spec], rows, False, elsewhere, 1) is rows, "a machine that may still come is not waited for"
    assert "do not fit the object store" in caplog.text
    assert "no machine that could compute it" in caplog.text


@pytest.mark.slow
def test_a_model_for_another_size_of_picture_is_refused_by_the_records_name(
    prepared: Prepared, storage: Path, cluster: None
) -> None:
    spec = spec_of(prepared, storage, "size", recipe=dataclasses.replace(recipe_of(prepared), size=56))
    with pytest.raises(UserError, match=r"is 28x28 pixels, but the model takes 56x56"):
        keep_features([spec], stage(prepared, spec.all_rows(prepared)), False, EACH, 1)


@pytest.mark.slow
def test_a_damaged_shard_is_found_before_anything_is_made_of_it(tmp_path: Path, cluster: None) -> None:
    prepared = write_prepared(tmp_path / "data", patients=8)
    spec = spec_of(prepared, tmp_path, "damaged")
    for shard in (tmp_path / "data" / "shards").iterdir():
        shard.write_bytes((tmp_path / "data" / "index.parquet").read_bytes())
    with pytest.raises(UserError, match="shards"):
        keep_features([spec], Streamed(prepared.folder.uri), False, EACH, 1)


@pytest.mark.slow
def test_blocks_hold_every_row_once_with_its_label_and_no_picture(
    prepared: Prepared, storage: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "BLOCK", 7)
    spec = spec_of(prepared, storage, "blocks")
    rows = spec.all_rows(prepared)
    (records,) = kept(prepared, spec).features.open().read([rows.tolist()])
    wanted = prepared.read(rows)
    module = first_network(spec.recipe, spec.train, spec.seed, CPU).eval()
    made = spec.recipe.features(module, spec.recipe.encode(wanted, None))  # type: ignore[attr-defined]
    for record, same, features in zip(records, wanted, made.detach().numpy(), strict=True):
        assert (record.id, record.label) == (same.id, same.label)
        assert not any(image.pixels.size for image in record.images), "their sizes stay, and no pixel"
        assert record.features is not None
        np.testing.assert_allclose(record.features, features, rtol=1e-5)
