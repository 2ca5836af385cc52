"""A ViT goes back under a language model: every weight is where it was, and what is new is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import script
from transformers import Qwen2Config, Qwen2ForCausalLM

from raymed.errors import UserError
from raymed.models import internvl
from raymed.models.internvl_text import byte_tokenizer, read_tokenizer
from raymed.models.internvl_weights import load_internvl
from raymed.models.marks import IMAGE_START, PADDING, TURN_END, TURN_START
from raymed.models.settings import ModelSettings
from raymed.models.vision_tower import VisionTower

SIZE = 56


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small InternVL."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    model = internvl.InternVL(internvl.build_network(ModelSettings(preset="internvl-tiny"), SIZE), byte_tokenizer())
    model.export(folder)
    return folder


@pytest.fixture(scope="module")
def vit(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit") / "vit"
    VisionTower.read(whole).write(folder, "native")
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2 with tied embeddings, more rows than its tokenizer has tokens, and none of InternVL's marks."""
    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = byte_tokenizer((TURN_START,))
    config = Qwen2Config(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=48, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(1)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def joined(vit: Path, language: Path, out: Path, **options: str) -> str:
    job = script("join_models")
    return job.main(job.JoinModels(str(vit), str(language), str(out), storage=str(out.parent / "runs"), **options)).text


@pytest.mark.parametrize("layout", ["native", "internvl"])
def test_a_vit_and_a_language_model_become_an_internvl(vit: Path, qwen: Path, tmp_path: Path, layout: str) -> None:
    told = joined(vit, qwen, tmp_path / "out", layout=layout)
    assert "new: the projector, the marks <img> </img> <IMG_CONTEXT> <quad>" in told
    network = load_internvl(tmp_path / "out", "sdpa")
    assert VisionTower.read(tmp_path / "out").digest == VisionTower.read(vit).digest
    tokenizer = read_tokenizer(tmp_path / "out", network.lm_head.out_features)
    before = Qwen2ForCausalLM.from_pretrained(qwen).state_dict()
    count = len(byte_tokenizer((TURN_START,)))
    assert network.lm_head.out_features == len(tokenizer) == count + 9
    assert tokenizer.get_vocab()[IMAGE_START] == count
    embedded = before["model.embed_tokens.weight"][:count]
    for name, value in network.model.language_model.state_dict().items():
        is_table = name == "embed_tokens.weight"
        assert torch.equal(value[:count], embedded) if is_table else torch.equal(value, before[f"model.{name}"]), name
    assert torch.equal(network.lm_head.weight[:count], embedded), "tied before, untied now"
    assert torch.allclose(network.lm_head.weight[count:], embedded.mean(0))
    assert network.lm_head.weight.data_ptr() != network.get_input_embeddings().weight.data_ptr()
    assert {PADDING, TURN_END} <= set(tokenizer.get_vocab())


def test_a_vit_goes_back_into_an_internvl_and_nothing_else_changes(whole: Path, tmp_path: Path) -> None:
    tower = VisionTower.read(whole)
    changed = VisionTower(tower.config, {name: value + 1 for name, value in tower.state.items()}, {}, "changed")
    changed.write(tmp_path / "vit", "native")
    assert "new: nothing" in joined(tmp_path / "vit", whole, tmp_path / "out")
    before, after = (load_internvl(folder, "sdpa").state_dict() for folder in (whole, tmp_path / "out"))
    for name, value in after.items():
        expected = before[name] + 1 if name.startswith("model.vision_tower.") else before[name]
        assert torch.equal(value, expected), name


def test_what_cannot_be_joined_is_named(vit: Path, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="the language model 'bert' is not supported"):
        joined(vit, tmp_path / "bert", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UserError, match="is not empty"):
        joined(vit, whole, tmp_path / "full")
