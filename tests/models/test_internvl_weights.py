"""Checkpoints in both layouts load bit for bit, and anything that does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLForConditionalGeneration

from raymed.errors import UserError
from raymed.models import classifiers, internvl, internvl_config
from raymed.models.internvl_text import byte_tokenizer
from raymed.models.internvl_weights import load_internvl, native_state, read_config, remote_code_state, write_remote_code
from raymed.models.settings import ModelSettings

CODES = list("0123")
SIZE = 56


@pytest.fixture(scope="module")
def classifier() -> internvl.InternVLClassifier:
    torch.manual_seed(0)
    network = InternVLForConditionalGeneration._from_config(internvl_config.preset_config("internvl-tiny", SIZE))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return internvl.InternVLClassifier(network, byte_tokenizer(), CODES).eval()


@pytest.fixture
def remote(classifier: internvl.InternVLClassifier, tmp_path: Path) -> Path:
    """A folder in the original layout."""
    write_remote_code(classifier.network.state_dict(), classifier.network.config, tmp_path)
    classifier.tokenizer.save_pretrained(tmp_path)
    return tmp_path


def _pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / "config.json").read_text("utf-8"))
    change(content)
    (folder / "config.json").write_text(json.dumps(content), "utf-8")


def test_names_of_the_original_layout(remote: Path) -> None:
    state = _state(remote)
    block = "vision_model.encoder.layers.1."
    assert {key.removeprefix(block) for key in state if key.startswith(block)} == {
        *(
            f"{part}.{kind}"
            for part in ("attn.qkv", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")
            for kind in ("weight", "bias")
        ),
        "ls1",
        "ls2",
    }
    others = {key for key in state if ".layers." not in key}
    assert others == {
        "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.patch_embedding.bias",
        "vision_model.embeddings.position_embedding",
        *(f"mlp1.{index}.{kind}" for index in (0, 1, 3) for kind in ("weight", "bias")),
        "language_model.model.embed_tokens.weight",
        "language_model.model.norm.weight",
        "language_model.lm_head.weight",
    }


def test_fused_attention_weights_are_query_key_value_in_this_order(remote: Path) -> None:
    fused = _state(remote)["vision_model.encoder.layers.0.attn.qkv.bias"]
    native = native_state(_state(remote))
    for part, third in zip("qkv", fused.chunk(3), strict=True):
        assert torch.equal(native[f"model.vision_tower.encoder.layer.0.attention.{part}_proj.bias"], third)


def test_key_map_round_trip_is_bit_equal(classifier: internvl.InternVLClassifier) -> None:
    native = classifier.network.state_dict()
    there_and_back = native_state(remote_code_state(native))
    assert set(there_and_back) == set(native)
    assert all(torch.equal(there_and_back[key], native[key]) for key in native)


@pytest.mark.parametrize("form", ["single", "shards", "bin"])
def test_the_original_layout_loads_bit_for_bit(remote: Path, classifier: internvl.InternVLClassifier, form: str) -> None:
    state = _state(remote)
    if form != "single":
        (remote / "model.safetensors").unlink()
    if form == "bin":
        torch.save(state, remote / "pytorch_model.bin")
    if form == "shards":
        keys = sorted(state)
        parts = {"model-1.safetensors": keys[:20], "model-2.safetensors": keys[20:]}
        for name, part in parts.items():
            save_file({key: state[key] for key in part}, remote / name)
        index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
        (remote / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    network = load_internvl(remote, "sdpa")
    for key, value in classifier.network.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
    assert network.lm_head.weight.data_ptr() != network.get_input_embeddings().weight.data_ptr()
    loaded = classifiers.build(ModelSettings(path=str(remote)), CODES, SIZE).eval()
    torch.testing.assert_close(loaded(_pixels())["logits"], classifier(_pixels())["logits"])


def test_configuration_of_the_original_layout_keeps_what_matters(remote: Path) -> None:
    def dynamic_rope(content: dict[str, Any]) -> None:
        content["llm_config"] |= {"rope_theta": 1e6, "rope_scaling": {"factor": 2.0, "type": "dynamic"}}
        content["llm_config"].pop("rope_parameters", None)

    _rewrite(remote, dynamic_rope)
    config: Any = read_config(remote)
    assert config.vision_config.attention_bias and not config.vision_config.use_qk_norm
    assert not config.tie_word_embeddings and not config.text_config.tie_word_embeddings
    assert config.text_config.rope_parameters["rope_theta"] == 1e6


def test_the_exported_folder_loads_with_transformers_alone(classifier: internvl.InternVLClassifier, tmp_path: Path) -> None:
    classifier.export(tmp_path)
    network, report = InternVLForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert all(torch.equal(network.state_dict()[key], value) for key, value in classifier.network.state_dict().items())


def test_native_folders_of_older_transformers_load(classifier: internvl.InternVLClassifier, tmp_path: Path) -> None:
    classifier.export(tmp_path)
    old = {
        key.replace("model.vision_tower", "vision_tower")
        .replace("model.multi_modal_projector", "multi_modal_projector")
        .replace("model.language_model.", "language_model.model.")
        .replace("lm_head", "language_model.lm_head"): value
        for key, value in _state(tmp_path).items()
    }
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = internvl.load(tmp_path, CODES).eval()
    torch.testing.assert_close(loaded(_pixels())["logits"], classifier(_pixels())["logits"])


def test_wrong_keys_of_each_kind_are_named(remote: Path) -> None:
    state = _state(remote)
    del state["vision_model.encoder.layers.0.ls1"]
    state["vision_model.encoder.layers.0.surplus"] = torch.zeros(1)
    state["mlp1.1.bias"] = torch.zeros(5)
    save_file(state, remote / "model.safetensors")
    with pytest.raises(UserError) as error:
        load_internvl(remote, "sdpa")
    message = str(error.value)
    assert "1 missing: model.vision_tower.encoder.layer.0.lambda_1" in message
    assert "1 unexpected: model.vision_tower.encoder.layer.0.surplus" in message
    assert "1 of another shape: model.multi_modal_projector.linear_1.bias" in message


def test_a_missing_output_layer_is_not_silently_tied(remote: Path) -> None:
    state = _state(remote)
    del state["language_model.lm_head.weight"]
    save_file(state, remote / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: lm_head.weight"):
        load_internvl(remote, "sdpa")


@pytest.mark.parametrize("architecture", ["InternLM2ForCausalLM", "Phi3ForCausalLM"])
def test_other_language_models_are_refused_by_name(remote: Path, architecture: str) -> None:
    _rewrite(remote, lambda content: content["llm_config"].update(architectures=[architecture]))
    with pytest.raises(UserError, match=architecture):
        read_config(remote)


def test_other_pixel_shuffles_are_refused(remote: Path) -> None:
    _rewrite(remote, lambda content: content.update(ps_version="v1"))
    with pytest.raises(UserError, match="ps_version 'v1'"):
        read_config(remote)


def test_folders_that_are_no_model_are_refused(remote: Path) -> None:
    (remote / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        load_internvl(remote, "sdpa")
    (remote / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        classifiers.check(ModelSettings(path=str(remote)), CODES, SIZE)


def test_shards_outside_the_folder_are_refused(remote: Path) -> None:
    (remote / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}', "utf-8")
    with pytest.raises(UserError, match="outside its folder"):
        load_internvl(remote, "sdpa")


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


def test_a_pickle_in_a_weights_file_is_not_executed(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(remote)
    (remote / "model.safetensors").unlink()
    torch.save({"mlp1.0.weight": _Harm()}, remote / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot read the weights"):
        load_internvl(remote, "sdpa")
    assert not (remote / "harm").exists()
