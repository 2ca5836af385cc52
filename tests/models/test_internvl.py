"""The choice forward computes what transformers' own forward computes, at fewer places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import install
from transformers import InternVLForConditionalGeneration

from raymed.data.record import Message
from raymed.errors import UserError
from raymed.models import classifiers, internvl, internvl_config
from raymed.models.internvl_text import encode_turns
from raymed.models.settings import ModelSettings

CODES = list("0123")
SIZE = 56


@pytest.fixture(scope="module")
def classifier() -> internvl.InternVLClassifier:
    torch.manual_seed(0)
    module = classifiers.build(ModelSettings(preset="internvl-tiny"), CODES, SIZE)
    assert isinstance(module, internvl.InternVLClassifier)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


def _pixels(rows: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (rows, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_1b_preset_has_the_true_shape() -> None:
    with torch.device("meta"):
        network = InternVLForConditionalGeneration(internvl_config.preset_config("internvl2_5-1b", 448))

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(network.model.vision_tower) == 304_012_288
    assert count(network.model.multi_modal_projector) == 4_482_816
    assert count(network) / 1e6 == pytest.approx(938.19, abs=0.005)
    assert network.lm_head.weight is not network.get_input_embeddings().weight


def test_logits_and_language_loss_equal_the_ordinary_forward_with_all_logits(
    classifier: internvl.InternVLClassifier,
) -> None:
    labels = torch.tensor([2, 0, 3, 1])
    question = "<image>\n<cls>: 0|1|2|3."
    rows = [
        encode_turns(classifier.tokenizer, [Message("human", question), Message("gpt", CODES[label])], [4])
        for label in labels.tolist()
    ]
    ids, targets = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    with torch.no_grad():
        inputs = classifier.normalise(_pixels(), torch.float32)
        reference = classifier.network(input_ids=ids, pixel_values=inputs).logits[:, :-1]
        ours = classifier(_pixels(), labels)
        unlabelled = classifier(_pixels())
    losses = F.cross_entropy(reference.transpose(1, 2), targets[:, 1:], ignore_index=-100, reduction="none")
    torch.testing.assert_close(ours["language_loss"], losses.sum(1) / 2, rtol=1e-4, atol=1e-4)
    answer_at = (targets[0, 1:] != -100).nonzero()[0].item()
    expected = reference[:, answer_at, list(classifier.prompt.choices)]
    torch.testing.assert_close(ours["logits"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(unlabelled["logits"], expected, rtol=1e-4, atol=1e-4)
    for output, read in ((ours, answer_at + 2), (unlabelled, answer_at + 1)):  # the answer is read, too
        assert output["tokens"].tolist() == [read] * 4


def test_only_the_places_that_are_read_go_through_the_output_layer(classifier: internvl.InternVLClassifier) -> None:
    places = []
    hook = classifier.network.lm_head.register_forward_hook(lambda _, inputs, __: places.append(inputs[0].numel() // 64))
    classifier(_pixels(3))
    classifier(_pixels(3), torch.tensor([0, 1, 2]))
    hook.remove()
    assert places == [3, 6]


def test_a_batch_equals_its_rows_one_by_one(classifier: internvl.InternVLClassifier) -> None:
    labels = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        together = classifier(_pixels(), labels)
        alone = [classifier(_pixels()[row : row + 1], labels[row : row + 1]) for row in range(4)]
    for name, value in together.items():
        torch.testing.assert_close(value, torch.cat([one[name] for one in alone]), rtol=1e-4, atol=1e-5)


def test_pixel_shuffle_order(classifier: internvl.InternVLClassifier) -> None:
    grid = torch.arange(16.0).view(1, 4, 4, 1)
    shuffled = classifier.network.model.pixel_shuffle(grid, 0.5)[0].int().tolist()
    assert shuffled == [[[0, 1, 4, 5], [2, 3, 6, 7]], [[8, 9, 12, 13], [10, 11, 14, 15]]]


@pytest.mark.parametrize(("size", "says"), [(384, "364 or 392"), (14, "28 or 56")])
def test_sizes_that_the_pixel_shuffle_cannot_divide_are_refused_with_the_nearest(size: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        classifiers.check(ModelSettings(preset="internvl-tiny"), CODES, size)


def test_bf16_computes_in_bf16_and_agrees(classifier: internvl.InternVLClassifier) -> None:
    import copy

    half = copy.deepcopy(classifier).bfloat16()
    with torch.no_grad():
        logits = half(_pixels())["logits"]
        exact = classifier(_pixels())["logits"]
    assert logits.dtype == torch.bfloat16
    assert float((logits.float() - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_attention_kernel_is_told(classifier: internvl.InternVLClassifier) -> None:
    assert classifier.description["attention"] == internvl.attention_kernel("auto")
    assert internvl.attention_kernel("eager") == "eager"


def test_flash_attn_4_is_not_taken_for_flash_attn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").touch()
    install(tmp_path, "flash-attn-4", "4.0.0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert internvl.attention_kernel("auto") == "sdpa"
    with pytest.raises(UserError, match="needs the package flash-attn"):
        internvl.check_settings(ModelSettings(preset="internvl-tiny", attention="flash_attention_2"), 56)
    install(tmp_path, "flash-attn", "2.8.3")
    assert internvl.attention_kernel("auto") == "flash_attention_2"
