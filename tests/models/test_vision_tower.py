"""A ViT taken out of any layout is the same ViT, bit for bit; what is not understood is named; sizes change as stated."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from commands import script
from safetensors.torch import load_file, save_file
from transformers import AutoModel, InternVLForConditionalGeneration, InternVLVisionConfig, InternVLVisionModel

from raymed.errors import UserError
from raymed.models import internvl_config, vision
from raymed.models.backbone_weights import POSITIONS
from raymed.models.internvl_weights import remote_code_state, write_remote_code
from raymed.models.vision_tower import EXTRACTED, PATCHES, VisionTower

SIZE = 56


@pytest.fixture(scope="module")
def network() -> InternVLForConditionalGeneration:
    torch.manual_seed(0)
    network = InternVLForConditionalGeneration._from_config(internvl_config.preset_config("internvl-tiny", SIZE))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def native(network: InternVLForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def remote(network: InternVLForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    write_remote_code(network.state_dict(), network.config, folder)
    return folder


def expected(network: InternVLForConditionalGeneration) -> dict[str, torch.Tensor]:
    return network.model.vision_tower.state_dict()


@pytest.mark.parametrize("layout", ["native", "remote"])
def test_every_tensor_is_taken_or_listed(
    layout: str, network: InternVLForConditionalGeneration, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(layout)
    tower = VisionTower.read(folder)
    assert tower.state.keys() == expected(network).keys()
    assert all(torch.equal(tower.state[key], tensor) for key, tensor in expected(network).items())
    keys = load_file(folder / "model.safetensors").keys()
    left_out = [key for part in tower.left_out.values() for key in part]
    fused = 6 * 2 - 2 * 2 if layout == "remote" else 0  # two blocks, whose q, k and v are one tensor there
    assert len(keys) == len(left_out) + len(tower.state) - fused
    assert set(tower.left_out) == {"projector", "language model"}


@pytest.mark.parametrize("layout", ["native", "internvl"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_written_reads_back_bit_for_bit(layout: str, kind: str, native: Path, tmp_path: Path) -> None:
    tower = VisionTower.read(native)
    out = tmp_path / "vit" if kind == "folder" else tmp_path / "vit.pth"
    tower.write(out, layout)  # type: ignore[arg-type]
    if kind == "file":  # the weights alone: the configuration has to lie beside them
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_vision", **tower.config.to_dict()}))
    assert VisionTower.read(out).digest == tower.digest


@pytest.mark.parametrize("layout", ["native", "internvl"])
def test_a_vit_of_internvit_6bs_kind_reads_back_bit_for_bit(layout: str, tmp_path: Path) -> None:
    """Norms of queries and keys, RMS norms, and no bias of queries, keys and values."""
    torch.manual_seed(0)
    config = InternVLVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=SIZE,
        attention_bias=False, use_qk_norm=True, norm_type="rms_norm",
    )  # fmt: skip
    module = AutoModel.from_config(config)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    tower = VisionTower(config, module.state_dict(), {}, "made")
    assert any("q_norm" in key for key in tower.state) and not any("q_proj.bias" in key for key in tower.state)
    tower.write(tmp_path / "vit", layout)  # type: ignore[arg-type]
    again = VisionTower.read(tmp_path / "vit")
    assert again.digest == tower.digest and again.config.norm_type == "rms_norm" and again.config.use_qk_norm
    assert all(torch.equal(again.state[key], value) for key, value in tower.state.items())


def test_a_single_file_has_the_names_that_a_loader_of_internvl_looks_for(remote: Path, tmp_path: Path) -> None:
    """Such a loader passes over names that it does not know: with transformers' names it would keep its random weights."""
    job, out = script("extract_vit"), tmp_path / "vitp_vit.pth"
    outcome = job.main(job.ExtractVit(model=str(remote / "model.safetensors"), out=str(out), storage=str(tmp_path / "runs")))
    assert "the ViT, internvl:" in outcome.text
    original = {
        key.removeprefix("vision_model."): tensor
        for key, tensor in load_file(remote / "model.safetensors").items()
        if key.startswith("vision_model.")
    }
    written = torch.load(out, weights_only=True)
    assert written.keys() == original.keys() and all(torch.equal(written[key], original[key]) for key in original)
    folder = job.main(job.ExtractVit(model=str(remote), out=str(tmp_path / "vit"), storage=str(tmp_path / "runs")))
    assert "the ViT, native:" in folder.text, "a folder is for transformers"


@pytest.mark.slow
def test_transformers_loads_it_without_raymed(
    native: Path, network: InternVLForConditionalGeneration, tmp_path: Path
) -> None:
    VisionTower.read(native).write(tmp_path, "native")
    pixels = torch.randn(2, 3, SIZE, SIZE)
    torch.save(pixels, tmp_path / "pixels.pt")
    code = (
        "import sys, torch; from transformers import AutoModel; folder = sys.argv[1];"
        "out = AutoModel.from_pretrained(folder)(torch.load(folder + '/pixels.pt')).last_hidden_state;"
        "assert 'raymed' not in sys.modules; torch.save(out.detach(), folder + '/out.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=tmp_path, capture_output=True)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), network.model.vision_tower(pixels).last_hidden_state)
    assert json.loads((tmp_path / EXTRACTED).read_text())["left_out"]["projector"]


def test_a_raymed_classifier_gives_its_backbone_and_lists_its_head(tmp_path: Path) -> None:
    config = InternVLVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=28, attention_bias=True
    )
    classifier = vision.ImageClassifier(config, 4, 28)
    classifier.export(tmp_path)
    tower = VisionTower.read(tmp_path)
    assert all(torch.equal(tower.state[key], tensor) for key, tensor in classifier.backbone.state_dict().items())
    assert all(key.startswith("head.") for key in tower.left_out["head"]) and tower.left_out.keys() == {"head"}


@pytest.mark.parametrize("change", ["unknown", "missing", "shape"])
def test_keys_that_do_not_fit_are_named(change: str, remote: Path, tmp_path: Path) -> None:
    state = load_file(remote / "model.safetensors")
    key = "vision_model.encoder.layers.1.ls1"
    if change == "unknown":
        state["vision_model.encoder.layers.0.attn.qkv.lora_A.weight"] = torch.zeros(2)
    elif change == "missing":
        del state[key]
    else:
        state[key] = torch.zeros(3)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((remote / "config.json").read_bytes())
    with pytest.raises(UserError, match="lora_A" if change == "unknown" else "layer.1.lambda_1"):
        VisionTower.read(tmp_path)


def test_weights_without_a_configuration_are_those_of_the_300m_or_refused(remote: Path, tmp_path: Path) -> None:
    save_file(load_file(remote / "model.safetensors"), tmp_path / "alone.safetensors")
    with pytest.raises(UserError, match="do not fit"):
        VisionTower.read(tmp_path / "alone.safetensors")


@pytest.mark.parametrize("layout", ["native", "internvl"])
def test_a_single_file_of_the_300m_is_understood_by_its_names_in_both_layouts(
    layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of its 300 million weights each tensor is one number, laid out in its shape: the file takes no room."""
    caplog.set_level("INFO", "raymed")
    with torch.device("meta"):
        shapes = InternVLVisionModel(InternVLVisionConfig(attention_bias=True)).state_dict()
    state = shapes
    if layout == "internvl":
        renamed = remote_code_state({f"model.vision_tower.{key}": tensor for key, tensor in shapes.items()})
        state = {key.removeprefix("vision_model."): tensor for key, tensor in renamed.items()}
    zero = torch.zeros((), dtype=torch.bfloat16)
    torch.save({key: zero.expand(tensor.shape) for key, tensor in state.items()}, tmp_path / "vit.pth")
    tower = VisionTower.read(tmp_path / "vit.pth")
    assert "taken for the InternViT-300M" in caplog.text
    assert (tower.layers, tower.size, tower.patch) == (24, 448, 14)
    assert {key: tensor.shape for key, tensor in tower.state.items()} == {key: each.shape for key, each in shapes.items()}
    assert any(key.endswith("q_proj.bias") for key in tower.state)


def test_a_language_model_of_another_family_does_not_matter(remote: Path, tmp_path: Path) -> None:
    for file in remote.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = json.loads((tmp_path / "config.json").read_text())
    content["llm_config"]["architectures"] = ["InternLM2ForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert VisionTower.read(tmp_path).digest == VisionTower.read(remote).digest


def test_a_patch_and_its_enlargement_give_the_same_embedding(native: Path) -> None:
    tower = VisionTower.read(native)
    larger = tower.resized(64, 16)
    assert (larger.size, larger.patch, larger.state[POSITIONS].shape) == (64, 16, tower.state[POSITIONS].shape)
    patches = torch.rand(5, 3, 14, 14)
    enlarged = F.interpolate(patches, (16, 16), mode="bicubic", align_corners=False)
    before, after = F.conv2d(patches, tower.state[PATCHES]), F.conv2d(enlarged, larger.state[PATCHES])
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_positions_are_those_that_transformers_would_interpolate(native: Path) -> None:
    tower = VisionTower.read(native)
    pixels = torch.randn(1, 3, 84, 84)
    given, resized = tower.build(), tower.resized(84).build()
    torch.testing.assert_close(resized(pixels).last_hidden_state, given(pixels).last_hidden_state)
    with pytest.raises(UserError, match="84 or 98"):
        tower.resized(90)


def test_another_model_is_not_overwritten(native: Path) -> None:
    with pytest.raises(UserError, match="another model"):
        VisionTower.read(native).write(native, "native")
    assert AutoModel.from_pretrained(native)


def test_weights_do_not_replace_those_of_the_model_they_are_taken_from(native: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(native, model)
    before = (model / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="another model already"):
        VisionTower.read(model).write(model / "model.safetensors", "native")
    assert (model / "model.safetensors").read_bytes() == before
    alone = tmp_path / "vit.safetensors"
    for _ in range(2):  # a command may be run again
        VisionTower.read(model).write(alone, "native")
    assert VisionTower.read(model).source == str(model) and alone.is_file()


def test_a_vit_that_wants_other_pixels_is_another_and_its_weights_do_not_go_without_saying_so(
    network: InternVLForConditionalGeneration, native: Path, tmp_path: Path
) -> None:
    tower = VisionTower.read(native)
    (tmp_path / "other").mkdir()
    for file in native.iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    config = json.loads((native / "config.json").read_text())
    config["vision_config"] |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    other = VisionTower.read(tmp_path / "other")
    assert other.digest != tower.digest, "features of both could be compared"
    with pytest.raises(UserError, match=r"mean \(0.5, 0.5, 0.5\).*give a folder"):
        other.write(tmp_path / "vit.pth", "native")
    other.write(tmp_path / "vit", "native")
    assert VisionTower.read(tmp_path / "vit").digest == other.digest
