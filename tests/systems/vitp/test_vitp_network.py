"""Packed conversations compute what transformers' own forward computes with all logits, one sample at a time."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from conversations import MIXED, SIZE, conversation
from transformers import AutoImageProcessor, AutoTokenizer, InternVLForConditionalGeneration

from raymed.data.image import ImageSettings, fit
from raymed.data.record import Record
from raymed.data.tiles import cut
from raymed.models import internvl
from raymed.models.internvl_text import encode_turns
from raymed.models.packed_attention import FLASH, SDPA
from raymed.models.settings import ModelSettings
from raymed.recipes.recipe import Batch, TrainingPass
from raymed.systems.vitp import network as internvl_pretrain
from raymed.systems.vitp.network import InternVLChat
from raymed.systems.vitp.recipe import VitpRecipe
from raymed.systems.vitp.token_drop import TokenDropSettings

RECIPE = VitpRecipe(SIZE, token_drop=TokenDropSettings(rate=0))


def _module(**settings: object) -> InternVLChat:
    torch.manual_seed(0)
    chat = internvl_pretrain.build(ModelSettings(preset="internvl-tiny", **settings), SIZE, "imagenet")  # type: ignore[arg-type]
    return chat.train()


def _run(module: InternVLChat, batch: Batch) -> dict[str, torch.Tensor]:
    return module(**{name: tensor for name, tensor in batch.tensors.items() if name not in ("learned", "questions")})


def _by_transformers(module: InternVLChat, record: Record) -> torch.Tensor:
    """Summed loss of a sample by the ordinary forward: `labels=`, logits of the whole vocabulary at every place."""
    network = module.network
    tiles = [cut(image.pixels, SIZE) for image in record.images]
    counts = [0] * (1 + max((image.place for image in record.images), default=-1))
    for image, cuts in zip(record.images, tiles, strict=True):
        counts[image.place] += 4 * len(cuts)
    ids, labels = encode_turns(module.tokenizer, record.messages, counts)
    pixels = None
    if tiles:
        pixels = module.normalise(torch.from_numpy(np.concatenate(tiles).transpose(0, 3, 1, 2).copy()), torch.float32)
    loss = network(input_ids=torch.tensor([ids]), pixel_values=pixels, labels=torch.tensor([labels])).loss
    return loss * sum(label >= 0 for label in labels)


@pytest.mark.parametrize("layer", [None, -2])
def test_loss_and_gradients_of_a_mixed_batch_equal_the_ordinary_forward(layer: int | None) -> None:
    module = _module(vision_layer=layer)
    ordinary = copy.deepcopy(module)
    ordinary.network.lm_head.__class__ = torch.nn.Linear
    ordinary.network.model.language_model.set_attn_implementation("eager")

    batch = RECIPE.encode(MIXED, TrainingPass(0, 0))
    output = _run(module, batch)
    output["loss"].backward()
    expected = [_by_transformers(ordinary, record) for record in MIXED]
    sum(expected).backward()  # type: ignore[union-attr]

    rows = torch.repeat_interleave(torch.arange(len(MIXED)), batch.tensors["learned"])
    sums = torch.zeros(len(MIXED)).index_add(0, rows, output["token_losses"])
    torch.testing.assert_close(sums, torch.stack(expected).detach(), rtol=1e-4, atol=1e-4)
    theirs = dict(ordinary.named_parameters())
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and parameter.grad.abs().max() > 0:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-4, msg=name)


def test_a_batch_of_texts_alone_trains_the_same_parameters_as_one_with_pictures() -> None:
    module = _module()
    _run(module, RECIPE.encode([conversation("words", ())], TrainingPass(0, 0)))["loss"].backward()
    without = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert all(float(p.grad.abs().max()) == 0 for p in module.image_backbone.parameters() if p.grad is not None)
    module.zero_grad()
    _run(module, RECIPE.encode(MIXED, TrainingPass(0, 0)))["loss"].backward()
    assert without == {name for name, parameter in module.named_parameters() if parameter.grad is not None}


def test_blocks_behind_the_chosen_layer_are_not_trained() -> None:
    blocks = _module(vision_layer=-2).image_backbone.encoder.layer
    assert [any(p.requires_grad for p in block.parameters()) for block in blocks] == [True, False]


@pytest.mark.parametrize("settings", [{"drop_path": 0.3}, {"vision_lora": 2, "language_lora": 2}, {"freeze_language": True}])
def test_adapted_networks_train_with_gradient_checkpointing(settings: dict[str, object]) -> None:
    module = _module(gradient_checkpointing=True, **settings)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    batch = RECIPE.encode(MIXED, TrainingPass(0, 0))
    for _ in range(2):  # LoRA's second matrices start at zero
        optimizer.zero_grad()
        _run(module, batch)["loss"].backward()
        optimizer.step()
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    language = {name for name in changed if ".language_model." in name}
    assert any("vision_tower" in name for name in changed)
    assert bool(language) != ("freeze_language" in settings)
    assert all("lora_" in name for name in language) or "language_lora" not in settings


def test_an_exported_network_talks_under_plain_transformers(tmp_path: Path) -> None:
    module = _module().eval()
    module.export(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    network = InternVLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids, _ = encode_turns(tokenizer, MIXED[0].messages[:2], [4])
    pixels = module.normalise(
        torch.from_numpy(cut(MIXED[0].images[0].pixels, SIZE).transpose(0, 3, 1, 2).copy()), torch.float32
    )
    answer = network.generate(input_ids=torch.tensor([ids]), pixel_values=pixels, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] == len(ids) + 3
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (2 * SIZE, SIZE, 3), dtype=np.uint8)
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    ours = module.normalise(torch.from_numpy(stretch_and_cut(picture)), torch.float32)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0.03)  # a grey level of 8 bits is 0.017


def stretch_and_cut(picture: np.ndarray) -> np.ndarray:
    """The tiles and the thumbnail that a picture of two tiles is prepared as: uint8 [3, 3, SIZE, SIZE]."""
    thumbnail = fit(picture, ImageSettings(SIZE))
    return np.stack([*cut(picture, SIZE), thumbnail]).transpose(0, 3, 1, 2).copy()


def test_texts_alone_are_judged_by_the_same_parameters_under_zero_3() -> None:
    """Each worker gathers the parameters of what it computes: one that left the pictures out would wait for ever."""
    module = _module().eval()
    seen: list[int] = []
    module.image_backbone.register_forward_hook(lambda *_: seen.append(1))
    words = RECIPE.encode([conversation("words", ())], None)
    with torch.no_grad():
        alone = _run(module, words)["token_losses"]
        assert not seen
        for parameter in module.parameters():
            parameter.ds_id = 0  # as DeepSpeed marks the parameters that it has divided
        torch.testing.assert_close(_run(module, words)["token_losses"], alone)
    assert seen


def test_in_float32_no_kernel_is_used_that_takes_16_bits_only() -> None:
    module = _module()
    for config in (module.network.config, module.network.model.language_model.config):
        config._attn_implementation = FLASH
    module.compute_in_float32()
    _run(module, RECIPE.encode(MIXED, TrainingPass(0, 0)))["loss"].backward()
    assert module.description["language_attention"] == SDPA


def test_a_checkpoint_for_other_pictures_is_resampled_once_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = _module().eval()
    module.export(tmp_path)
    settings = ModelSettings(path=str(tmp_path))
    with caplog.at_level("WARNING", logger="raymed"):
        internvl.check_settings(settings, 2 * SIZE)
    assert f"made for pictures of {SIZE} pixels: its positions are resampled for {2 * SIZE}" in caplog.text
    larger = internvl_pretrain.build(settings, 2 * SIZE, "imagenet").eval()
    assert list(larger.network.config.vision_config.image_size) == [2 * SIZE] * 2
    pixels = torch.randint(0, 256, (1, 3, 2 * SIZE, 2 * SIZE), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(larger.image_features(pixels), module.image_features(pixels))


def test_a_random_start_knows_where_patches_lie() -> None:
    """With positions at zero, as transformers starts them, a shuffled picture gives the same features in another order."""
    tower = _module().eval().image_backbone
    positions = tower.embeddings.position_embeddings[0]
    assert not positions[0].any() and len(torch.unique(positions[1:], dim=0)) == len(positions) - 1
    near, far = (positions[1] - positions[2]).norm(), (positions[1] - positions[-1]).norm()
    assert near < far
