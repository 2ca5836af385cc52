import json
from pathlib import Path

import pytest
import torch
from packed_samples import SIZES, TOKENS, edit_sample, picture, tiny_network
from safetensors.torch import load_file, save_file

from raymed.errors import UserError
from raymed.systems.unimedvl.checkpoint import load, network_sizes, save
from raymed.systems.unimedvl.checkpoint_config import sizes_of
from raymed.systems.unimedvl.prepare import located
from raymed.systems.unimedvl.settings import UnifiedModelSettings
from raymed.systems.unimedvl.tokens import TextTokens


@pytest.fixture
def folder(tmp_path) -> Path:
    save(tiny_network(), TOKENS, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def read(folder: Path, **settings):
    return load(folder, sizes_of(folder, settings.get("weights", "ema")), UnifiedModelSettings(path=str(folder), **settings))


def rewrite(file: Path, change) -> None:
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def test_a_network_comes_back_from_its_folder(folder):
    network = read(folder)
    assert sizes_of(folder) == SIZES
    noise = torch.randn(6, SIZES.latent_width)
    sample = edit_sample("Darker?", picture(16, 24, 1), 0.3, noise)
    expected = tiny_network()(**sample)
    assert all(torch.equal(network(**sample)[name], expected[name]) for name in ("ce", "mse"))
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in network.parameters())
    assert TextTokens.read(folder).digest == TOKENS.digest


def test_a_checkpoint_can_be_given_larger_grids_whose_table_comes_back(folder, tmp_path):
    settings = UnifiedModelSettings(path=str(folder), max_latent_size=2 * SIZES.latent_side)
    sizes = network_sizes(settings)
    assert sizes.latent_side == 2 * SIZES.latent_side
    save(load(folder, sizes, settings), TOKENS, tmp_path / "larger")
    assert sizes_of(tmp_path / "larger") == sizes


def test_training_goes_on_from_a_checkpoint_that_training_wrote(folder, tmp_path):
    """Its model lies one folder below, beside averaged weights of the trainer's that have the released file's name."""
    step = tmp_path / "step-00000120"
    step.mkdir()
    folder.rename(step / "model")
    (step / "ema.safetensors").write_bytes(b"of the trainer")
    settings = UnifiedModelSettings(path=str(step)).located()
    assert network_sizes(settings) == SIZES
    assert located(str(step)) == settings.path == str(step / "model")


def test_the_folder_has_the_released_names(folder):
    names = load_file(folder / "ema.safetensors").keys()
    for name in (
        "language_model.model.embed_tokens.weight",
        "language_model.model.norm_moe_gen.weight",
        "language_model.lm_head.weight",
        "language_model.model.layers.1.self_attn.q_proj.bias",
        "language_model.model.layers.1.self_attn.q_proj_moe_gen.weight",
        "language_model.model.layers.1.self_attn.k_norm_moe_gen.weight",
        "language_model.model.layers.1.mlp_moe_gen.gate_proj.weight",
        "language_model.model.layers.1.post_attention_layernorm.weight",
        "vit_model.vision_model.embeddings.patch_embedding.weight",
        "vit_model.vision_model.encoder.layers.1.self_attn.out_proj.weight",
        "vit_model.vision_model.post_layernorm.bias",
        "connector.fc1.weight",
        "vae2llm.bias",
        "llm2vae.weight",
        "time_embedder.mlp.2.weight",
        "latent_pos_embed.pos_embed",
        "vit_pos_embed.pos_embed",
    ):
        assert name in names, name
    assert json.loads((folder / "vit_config.json").read_text())["num_hidden_layers"] == 3  # released loaders take one off


def test_the_autoencoder_of_a_training_step_has_another_name(folder):
    (folder / "ae.safetensors").rename(folder / "vae_model.safetensors")
    image = picture(16, 24).permute(2, 0, 1).contiguous()
    assert torch.equal(read(folder).autoencoder.encode(image)[0], tiny_network().autoencoder.encode(image)[0])
    (folder / "vae_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no image autoencoder: put ae\.safetensors there"):
        read(folder)


def test_weights_in_shards_and_in_bf16_are_read(folder):
    state = {key: tensor.bfloat16() for key, tensor in load_file(folder / "ema.safetensors").items()}
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: state[key] for key in keys}, folder / file)
    index = {"weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (folder / "ema.safetensors.index.json").write_text(json.dumps(index))
    (folder / "ema.safetensors").unlink()
    network = read(folder)
    assert network.dtype == torch.bfloat16
    assert torch.equal(network.llm2vae.weight, tiny_network().llm2vae.weight.bfloat16())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("connector.fc1.bias"), "1 missing: connector.fc1.bias"),
        (lambda state: state.update(stray=torch.zeros(1)), "1 unexpected: stray"),
        (lambda state: state.update({"vae2llm.bias": torch.zeros(3)}), "1 of another shape: vae2llm.bias"),
        (lambda state: state["vit_pos_embed.pos_embed"].add_(0.1), "vit_pos_embed.pos_embed is not the fixed table"),
        (lambda state: [state.pop(key) for key in list(state) if "_moe_gen" in key], "missing: language_model"),
    ],
)
def test_a_key_that_does_not_fit_is_named(folder, change, named):
    rewrite(folder / "ema.safetensors", change)
    with pytest.raises(UserError, match=named):
        read(folder)


def only_understanding(state: dict[str, torch.Tensor]) -> None:
    for key in list(state):
        if "_moe_gen" in key or key.startswith(("vae2llm", "llm2vae", "time_embedder")):
            del state[key]


def test_weights_for_understanding_only_start_drawing_when_told_to(folder):
    rewrite(folder / "ema.safetensors", only_understanding)
    with pytest.raises(UserError, match=r"holds no weights to draw with.*--model\.new_generation true"):
        read(folder)
    network = read(folder, new_generation=True)
    layer = network.language_model.model.layers[0].mlp
    assert torch.equal(layer.generation.up_proj.weight, layer.understanding.up_proj.weight)
    assert layer.generation.up_proj.weight is not layer.understanding.up_proj.weight
    assert not network.llm2vae.weight.any() and network.vae2llm.weight.std() > 0
    assert all(parameter.device.type == "cpu" and parameter.requires_grad for parameter in network.parameters())


def test_weights_that_are_not_there_are_not_replaced_by_others(folder):
    (folder / "ema.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"no ema\.safetensors; it has model\.safetensors"):
        read(folder)
    assert read(folder, weights="model").dtype == torch.float32


def test_a_damaged_file_is_named(folder):
    (folder / "ema.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=f"cannot read the weights {folder / 'ema.safetensors'}"):
        read(folder)
    (folder / "llm_config.json").write_text("{}")
    save(tiny_network(), TOKENS, folder)
    (folder / "llm_config.json").write_text("{}")
    with pytest.raises(UserError, match="lacks 'vocab_size'"):
        sizes_of(folder)
