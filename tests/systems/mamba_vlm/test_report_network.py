from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raymed.errors import UserError
from raymed.systems.mamba_vlm.captions import Captions, encode_captions, prompt_ids
from raymed.systems.mamba_vlm.guide_files import load_into, read_checkpoint, write_checkpoint
from raymed.systems.mamba_vlm.language_model import LanguageModel
from raymed.systems.mamba_vlm.network import ReportWriter
from raymed.systems.mamba_vlm.pretraining import COLLAPSED, BridgePretraining, Objective
from raymed.systems.mamba_vlm.settings import (
    BridgeSettings,
    GenerationSettings,
    InteractionSettings,
    LanguageSettings,
    VisionSettings,
)
from raymed.systems.mamba_vlm.vision import encoder_plan

VISION = VisionSettings(preset="tiny", output_stage=2, target_side=8)
NONE = InteractionSettings()
LANGUAGE = LanguageModel.find(LanguageSettings())


def writer(vision: VisionSettings = VISION, interaction: InteractionSettings = NONE, seed: int = 0) -> ReportWriter:
    torch.manual_seed(seed)
    return ReportWriter(encoder_plan(vision), vision, BridgeSettings(max_visual_tokens=16), interaction, LANGUAGE)


def losses(network: ReportWriter, captions: Captions, **pictures: torch.Tensor) -> torch.Tensor:
    return network(
        captions.tokens, captions.prompt_lengths, captions.rows, captions.positions, captions.targets, **pictures
    )["token_losses"]


def captions_of(questions: list[str], answers: list[str]) -> Captions:
    return encode_captions(LANGUAGE.tokenizer, questions, answers, LANGUAGE.end, 100)


def test_a_full_size_picture_becomes_784_tokens_of_the_guides_shapes() -> None:
    plan = encoder_plan(VisionSettings())
    assert plan.features == (32, 64, 128, 256, 512)
    vision = VisionSettings(preset="tiny", target_side=28)
    network = writer(vision)
    with torch.no_grad():
        features = network.features(torch.zeros(1, 1, 1, 512, 512))
        assert features.shape == (1, 1, 64, 28, 28)
        assert network.bridged(features).shape == (1, 784, 64)
        assert network.visual_tokens(features).shape == (1, 16, 64)


def test_several_slices_share_the_cap_and_are_all_seen() -> None:
    network = writer()
    pictures = torch.randn(1, 3, 1, 32, 32)
    tokens = network.visual_tokens(network.features(pictures))
    assert tokens.shape == (1, 3 * 4, 64)  # 16 // 3 = 5: the largest square is 4
    pictures[:, 2] += 1
    changed = network.visual_tokens(network.features(pictures))
    assert not torch.allclose(tokens[:, 8:], changed[:, 8:])


@pytest.mark.parametrize("interaction", [InteractionSettings(), InteractionSettings(use=True)])
def test_a_batch_has_the_losses_of_each_row_alone(interaction: InteractionSettings) -> None:
    network, pictures = writer(interaction=interaction), torch.randn(2, 1, 1, 32, 32)
    questions, answers = ["left?", "which lobe is it?"], ["a long answer", "no"]
    together = losses(network, captions_of(questions, answers), pictures=pictures)
    alone = [
        losses(network, captions_of([question], [answer]), pictures=pictures[row : row + 1])
        for row, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_scores_where_they_are_read_give_the_loss_of_all_of_them() -> None:
    network, pictures = writer(), torch.randn(2, 1, 1, 32, 32)
    captions = captions_of(["side?", "what?"], ["left", "nothing"])
    visual = network.visual_tokens(network.features(pictures))
    text = network.language_model.embed(captions.tokens)
    scores = network.language_model.logits(network.language_model(torch.cat([visual, text], 1)))
    labels = torch.full(scores.shape[:2], -100)
    labels[captions.rows, visual.shape[1] + captions.positions] = captions.targets
    wanted = torch.nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(losses(network, captions, pictures=pictures).sum(), wanted)


def test_gradients_reach_encoder_bridge_and_interaction() -> None:
    network = writer(interaction=InteractionSettings(use=True))
    losses(network, captions_of(["what?"], ["a nodule"]), pictures=torch.randn(1, 1, 1, 32, 32)).sum().backward()
    for part in (network.encoder, network.bridge, network.cmi_connector):
        assert part is not None
        assert all(parameter.grad is not None for parameter in part.parameters())


def test_kept_features_of_a_frozen_encoder_give_the_same_loss_and_no_gradient() -> None:
    network = writer(VisionSettings(preset="tiny", output_stage=2, target_side=8, freeze=True))
    captions, pictures = captions_of(["what?"], ["a nodule"]), torch.randn(1, 1, 1, 32, 32)
    kept = network.features(pictures)
    torch.testing.assert_close(losses(network, captions, features=kept), losses(network, captions, pictures=pictures))
    losses(network, captions, pictures=pictures).sum().backward()
    assert all(parameter.grad is None for parameter in network.encoder.parameters())


def test_a_text_depends_on_its_own_picture_and_question_and_on_no_other_row() -> None:
    network = writer(interaction=InteractionSettings(use=True, form="guide"), seed=1)
    prompts = [prompt_ids(LANGUAGE.tokenizer, question) for question in ("what?", "is there a nodule on the left?")]
    features = network.features(torch.randn(2, 1, 1, 32, 32) * 3)
    settings = GenerationSettings(max_new_tokens=8)
    together = network.generate(prompts, features, settings)
    alone = [network.generate([prompt], features[row : row + 1], settings)[0] for row, prompt in enumerate(prompts)]
    assert together == alone


def pretraining(objective: Objective) -> BridgePretraining:
    torch.manual_seed(0)
    table = torch.randn(257, 64)
    return BridgePretraining(encoder_plan(VISION), VISION, BridgeSettings(), 64, objective, table)


def trained(objective: Objective, steps: int) -> tuple[float, float]:
    """The tokens' mean square and spread after some steps on four pictures."""
    network, pictures = pretraining(objective), torch.randn(4, 1, 1, 32, 32)
    words = torch.randint(1, 257, (4, 6))
    hidden = torch.rand(4, 1, 1, 8, 8) < 0.5
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(steps):
        output = network(pictures, hidden=hidden, words=words, word_mask=torch.ones_like(words, dtype=torch.bool))
        optimizer.zero_grad()
        output["losses"].mean().backward()
        optimizer.step()
    return float(output["energy"]), float(output["token_std"])


def test_the_guides_own_loss_makes_all_tokens_zero_and_the_others_do_not() -> None:
    energy, spread = trained("proxy_l2", 50)
    assert energy < COLLAPSED and spread < 0.05
    for objective in ("masked", "contrast"):
        energy, spread = trained(objective, 10)  # type: ignore[arg-type]
        assert energy > 10 * COLLAPSED and spread > 0.05


def test_a_reconstruction_counts_hidden_parts_only_and_never_sees_them() -> None:
    network, pictures = pretraining("masked"), torch.randn(1, 1, 1, 32, 32)
    hidden = torch.zeros(1, 1, 1, 8, 8, dtype=torch.bool)
    hidden[..., :4, :] = True
    before = network(pictures, hidden=hidden)["token_std"]
    pictures[..., :16, :] = torch.randn(16, 32)
    torch.testing.assert_close(network(pictures, hidden=hidden)["token_std"], before)


def test_files_of_the_guide_give_back_what_was_trained_and_nothing_of_the_language_model(tmp_path: Path) -> None:
    first, second = writer(seed=0), writer(seed=1)
    write_checkpoint(tmp_path / "vision_bridge_best_val.pt", first.state_dict(), step=7, val_loss=0.5)
    checkpoint = read_checkpoint(tmp_path / "vision_bridge_best_val.pt")
    assert checkpoint.values == {"step": 7, "val_loss": 0.5}
    assert not any(key.startswith("language_model") for key in checkpoint.weights)
    report = load_into(second, checkpoint, tmp_path)
    assert not report.missing and not report.unexpected
    assert all(torch.equal(tensor, second.state_dict()[key]) for key, tensor in checkpoint.weights.items())


def test_an_interaction_that_a_file_lacks_keeps_its_random_weights(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "old.pt", writer().state_dict(), step=1)
    network = writer(interaction=InteractionSettings(use=True))
    report = load_into(network, read_checkpoint(tmp_path / "old.pt"), tmp_path / "old.pt")
    assert report.missing and all(key.startswith("cmi_connector.") for key in report.missing)


def test_an_encoder_of_another_shape_is_refused_with_its_keys(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "old.pt", writer().state_dict(), step=1)
    other = writer(VisionSettings(preset="tiny", output_stage=3, target_side=8))
    with pytest.raises(UserError, match=r"missing: encoder\.stages\.3"):
        load_into(other, read_checkpoint(tmp_path / "old.pt"), tmp_path / "old.pt")


def test_deeper_stages_of_an_encoder_are_left_out_and_counted(tmp_path: Path) -> None:
    write_checkpoint(
        tmp_path / "deep.pt", writer(VisionSettings(preset="tiny", output_stage=3, target_side=8)).state_dict(), 1
    )
    deep = read_checkpoint(tmp_path / "deep.pt")
    bridge = {key: tensor for key, tensor in writer().state_dict().items() if key.startswith("bridge.")}
    report = load_into(writer(), replace(deep, weights=deep.weights | bridge), tmp_path)
    assert not report.missing and report.unexpected
    assert all(key.startswith("encoder.stages.3.") for key in report.unexpected)


def test_older_names_of_layers_are_understood(tmp_path: Path) -> None:
    network = writer()
    places = {"convs.0.conv": "0", "convs.0.norm": "1", "convs.1.conv": "3", "convs.1.norm": "4"}
    state = {}
    for key, tensor in network.state_dict().items():
        for unit, place in places.items():
            key = key.replace(f".0.{unit}.", f".{place}.") if key.startswith("encoder.") else key
        if not key.startswith("language_model."):
            state[key] = tensor
    assert "encoder.stages.1.3.weight" in state and "bridge.vim_fwd.mamba.A_log" in state
    torch.save({"step": 1, "model_state_dict": state}, tmp_path / "users.pt")
    report = load_into(writer(seed=1), read_checkpoint(tmp_path / "users.pt"), tmp_path)
    assert not report.missing and not report.unexpected


def test_an_mlp_in_the_place_of_mamba_is_refused_by_name(tmp_path: Path) -> None:
    state = {"bridge.vim_fwd.mamba.0.weight": torch.zeros(2, 2), "bridge.vim_fwd.mamba.2.weight": torch.zeros(2, 2)}
    torch.save({"step": 1, "model_state_dict": state}, tmp_path / "mlp.pt")
    with pytest.raises(UserError, match="MLP in place of Mamba"):
        read_checkpoint(tmp_path / "mlp.pt")


def test_a_bit_that_flipped_in_a_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "vision_bridge_final.pt"
    write_checkpoint(path, {"bridge.proj.weight": torch.ones(64, 64)}, 1)
    assert read_checkpoint(path).values == {"step": 1}
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(64, 64).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged in its record"):
        read_checkpoint(path)
