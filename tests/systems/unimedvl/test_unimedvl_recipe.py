import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from kept_features import kept_records
from sample_records import DRAWING, EDIT, QUESTION, TEXT

from raymed.data.record import Message
from raymed.recipes.exported import read_recipe, write_settings
from raymed.recipes.recipe import TrainingPass
from raymed.systems.unimedvl.recipe import UniMedVLRecipe
from raymed.systems.unimedvl.sequence import CondDropout
from raymed.systems.unimedvl.settings import PRESETS, TINY, UnifiedLossSettings, UnifiedModelSettings
from raymed.training.frozen import digest_of_part, unfrozen

RECIPE = UniMedVLRecipe(PRESETS[TINY], loss=UnifiedLossSettings(ce_weight=0.25, mse_weight=1.0))
ALL = [QUESTION, EDIT, TEXT]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = RECIPE.build()
    torch.nn.init.normal_(network.llm2vae.weight, 0, 0.2)
    return network


def test_units_are_supervised_tokens_and_latent_tokens_of_targets():
    batch = RECIPE.encode(ALL, None)
    assert batch.units == {"ce": 6.0 + 6.0 + 7.0, "mse": 16.0}  # each answer and the mark of its end
    assert batch.tensors["supervised_counts"].tolist() == [6, 6, 7]
    assert batch.tensors["target_counts"].tolist() == [0, 16, 0]


def test_a_pack_without_one_of_the_terms_has_no_units_of_it_and_trains(network):
    for records, empty in (([TEXT], "mse"), ([DRAWING], "ce")):
        batch = RECIPE.encode(records, TrainingPass(0, 0))
        assert batch.units[empty] == 0
        network.zero_grad()
        loss = RECIPE.compute_loss(network.train(), batch).mean(batch.units)
        loss.backward()
        assert math.isfinite(loss.item()) and loss.item() > 0
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_weights_and_units_make_the_loss(network):
    batch = RECIPE.encode(ALL, None)
    loss = RECIPE.compute_loss(network.eval(), batch)
    assert (loss.terms["ce"].weight, loss.terms["mse"].weight) == (0.25, 1.0)
    ce, mse = (loss.sums[name][0] / loss.sums[name][1] for name in ("ce", "mse"))
    assert loss.mean(batch.units).item() == pytest.approx(0.25 * ce.item() + mse.item(), rel=1e-5)


def test_a_sample_costs_the_same_alone_and_in_a_pack(network):
    """The global batch may be cut into packs and workers in any way."""
    together = RECIPE.predict(network.eval(), RECIPE.encode(ALL, None))
    for row, each in enumerate(ALL):
        alone = RECIPE.predict(network, RECIPE.encode([each], None))
        for name, values in together.items():
            assert values[row].item() == pytest.approx(alone[name][0].item(), rel=1e-4), name


def test_validation_draws_the_same_times_and_noise_in_every_run_and_training_new_ones_each_epoch():
    noise = [RECIPE.encode([EDIT], None).tensors["noise"] for _ in range(2)]
    assert torch.equal(*noise)
    passes = [TrainingPass(0, 0), TrainingPass(0, 0), TrainingPass(0, 1), TrainingPass(1, 0)]
    first, again, epoch, seed = (RECIPE.encode([EDIT], each).tensors["times"].max().item() for each in passes)
    assert first == again and len({first, epoch, seed}) == 3


def test_pictures_that_the_autoencoder_has_seen_cost_what_they_cost_anew():
    """Of several sizes in a sample, one of them twice and some dropped, beside samples without any; to the last bit."""
    recipe = replace(RECIPE, dropout=CondDropout(0.5, 0.5, 0.5))
    chain = replace(EDIT, id="chain", messages=(*EDIT.messages, Message("vae?", "1"), Message("target", "1")))
    records = [QUESTION, EDIT, chain, TEXT, DRAWING]
    torch.manual_seed(0)
    network, kept = recipe.build(), kept_records(recipe, records)
    assert [len(record.features) for record in kept] == [0, 6 + 16, 6 + 3 * 16, 0, 16]
    for training in (None, *(TrainingPass(0, epoch) for epoch in range(3))):
        batches = [recipe.encode(each, training) for each in (records, kept)]
        assert "pixels" not in batches[1].tensors
        losses = [recipe.compute_loss(network, batch).terms for batch in batches]
        assert all(torch.equal(losses[0][name].total, losses[1][name].total) for name in ("ce", "mse"))
        predicted = [recipe.predict(network, batch) for batch in batches]
        assert all(torch.equal(predicted[0][name], predicted[1][name]) for name in predicted[0])


def test_the_frozen_part_is_the_autoencoder_of_the_networks_own_weights(network):
    part = RECIPE.frozen_part
    assert part.of(network) is network.autoencoder and unfrozen(part.of(network.train())) == ""
    before = digest_of_part(network, part, "fp32")
    first = next(part.of(network).parameters())
    first.data.view(-1)[0] += 1
    changed = digest_of_part(network, part, "fp32")
    first.data.view(-1)[0] -= 1
    assert changed != before


def test_a_model_of_before_that_kept_latents_by_itself_is_read(network, tmp_path):
    RECIPE.export(network, tmp_path)
    settings = RECIPE.settings()
    write_settings(tmp_path, settings | {"model": settings["model"] | {"latent_cache": 1024}})
    assert read_recipe(tmp_path) == RECIPE


def test_a_clean_picture_is_at_time_0_and_a_picture_has_one_time():
    tensors = RECIPE.encode([EDIT], TrainingPass(0, 3)).tensors
    times = dict(Counter(tensors["times"].tolist()))
    assert times.pop(0.0) == 6 and list(times.values()) == [16]
    assert tensors["targets"].tolist() == list(range(6, 22))


def test_conditions_are_dropped_in_training_only():
    dropping = UniMedVLRecipe(PRESETS[TINY], dropout=CondDropout(1.0, 1.0, 1.0))
    assert len(dropping.encode([EDIT], None).tensors["patches"]) == 16
    dropped = dropping.encode([EDIT], TrainingPass(0, 0)).tensors
    assert len(dropped["patches"]) == 0 and dropped["latent_grids"].tolist() == [[4, 4]]


def test_the_validation_loss_is_the_weighted_sum_of_means_over_tokens():
    predictions = {
        "nll": np.array([6.0, 2.0, 0.0]),
        "tokens": np.array([3, 1, 0]),
        "squared_error": np.array([0.0, 8.0, 2.0]),
        "latents": np.array([0, 16, 4]),
    }
    metrics = RECIPE.evaluate(predictions, {"source": np.array(["a", "b", "b"])})
    assert metrics == {
        "val_ce": 2.0,
        "val_mse": 0.5,
        "val_loss": 0.25 * 2.0 + 0.5,
        "val_ce_a": 2.0,
        "val_ce_b": 2.0,
        "val_mse_b": 0.5,
    }


@pytest.mark.parametrize(
    ("settings", "still"),
    [
        ({"freeze_vit": True}, "vit_model."),
        ({"freeze_llm": True}, "language_model."),
        ({"freeze_und": True}, ".understanding."),
    ],
)
def test_what_is_frozen_stays_as_it_is(settings, still):
    recipe = UniMedVLRecipe(PRESETS[TINY], UnifiedModelSettings(**settings))
    torch.manual_seed(0)
    network = recipe.build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    groups = recipe.groups(network)
    optimizer = torch.optim.AdamW([{"params": group.parameters} for group in groups], lr=1e-2)
    for _ in range(3):  # the velocity is 0 at first, and its own weights stand before the rest's gradients
        batch = recipe.encode(ALL, TrainingPass(0, 0))
        optimizer.zero_grad()
        recipe.compute_loss(network.train(), batch).mean(batch.units).backward()
        optimizer.step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(still in name for name in moved)
    assert any("llm2vae" in name for name in moved)
    assert "language_model.lm_head.weight" in moved or settings == {"freeze_llm": True}


def test_an_exported_model_comes_back(network, tmp_path):
    RECIPE.export(network, tmp_path)
    recipe = UniMedVLRecipe.read(tmp_path)
    assert recipe.sizes == RECIPE.sizes and recipe.loss == RECIPE.loss
    batch = RECIPE.encode(ALL, None)
    ours, theirs = RECIPE.predict(network.eval(), batch), recipe.predict(recipe.load(tmp_path), batch)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
