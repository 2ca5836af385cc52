import math

import pytest
import torch
from packed_samples import SIZES, TOKENS, edit_sample, picture, tiny_network

from raymed.systems.unimedvl.context import Context, look_at, read_latents, read_text, take_in
from raymed.systems.unimedvl.flow import noisy


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(6, SIZES.latent_width, generator=torch.Generator().manual_seed(3))


def test_at_the_start_the_velocity_is_zero(noise):
    network = tiny_network(moving=False)
    losses = network(**edit_sample("Make it darker.", picture(16, 24, 1), 0.4, noise))
    clean, _ = network.autoencoder.encode(picture(16, 24, 1).permute(2, 0, 1).contiguous())
    torch.testing.assert_close(losses["latent_losses"], (noise - clean).square().mean(1))


def test_losses_are_sums_over_supervised_tokens_and_over_targets_only(noise):
    network = tiny_network()
    sample = edit_sample("Make it darker.", picture(16, 24, 1), 0.4, noise)
    losses = network(**sample)
    assert losses["token_losses"].shape == (8,) and losses["latent_losses"].shape == (6,)
    assert losses["ce"].item() == pytest.approx(losses["token_losses"].sum().item())
    assert losses["mse"].item() == pytest.approx(losses["latent_losses"].sum().item())
    halved = network(**sample | {"label_weights": torch.full((8,), 0.5)})
    assert halved["ce"].item() == pytest.approx(losses["ce"].item() / 2)


def test_what_is_read_piece_by_piece_is_what_a_packed_sequence_holds(noise):
    """Training and inference see one model: positions, masks, marks and experts are the same in both."""
    network = tiny_network().eval()
    question, target, time = "Make it darker.", picture(16, 24, 1), 0.4
    sample = edit_sample(question, target, time, noise)
    with torch.no_grad():
        packed = network(**sample)
    context = take_in(network, Context.empty(network), TOKENS, picture(16, 24))
    context = look_at(network, context, TOKENS, picture(28, 42))
    context, _ = read_text(network, context, [TOKENS.start, *TOKENS.ids(question), TOKENS.end])
    losses = []
    before = context
    for token, label in zip([TOKENS.start, *TOKENS.ids("Darker.")], sample["labels"].tolist(), strict=True):
        before, logits = read_text(network, before, [token])
        losses.append(-logits.log_softmax(0)[label].item())
    assert losses == pytest.approx(packed["token_losses"].tolist(), rel=1e-4)

    context, _ = read_text(network, context, [TOKENS.start, *TOKENS.ids("Darker."), TOKENS.end])
    clean, _ = network.autoencoder.encode(target.permute(2, 0, 1).contiguous())
    with torch.no_grad():
        times = torch.full((6,), time)
        last, _ = read_latents(network, context, TOKENS, noisy(clean, noise, times), times, 2, 3)
        velocity = network.llm2vae(last[0])
    torch.testing.assert_close((velocity - (noise - clean)).square().mean(1), packed["latent_losses"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kept", ["text only", "no ViT picture"])
def test_every_weight_has_a_gradient_whatever_the_pack_lacks(noise, kept):
    """Workers whose packs hold different things use the same weights, or their collectives would wait for each other."""
    network = tiny_network().train()
    sample = edit_sample("Make it darker.", picture(16, 24, 1), 0.4, noise)
    none = {name: sample[name][:0] for name in ("patches", "patch_positions", "patch_places", "patch_counts")}
    if kept == "text only":
        texts = slice(4, -2)
        length = int(sample["split_lengths"][2:4].sum())
        none |= {name: sample[name][:0] for name in sample if name.startswith("latent_") or name == "pixels"}
        none |= {name: sample[name][:0] for name in ("times", "noise", "sampling_noise", "targets")}
        none |= {name: sample[name][2:4] for name in ("split_lengths", "split_modes", "split_samples")}
        none |= {"text_ids": sample["text_ids"][texts], "positions": torch.arange(length)}
        none |= {"text_places": torch.arange(length), "supervised": sample["supervised"] - 16}
    else:
        none |= {"split_lengths": torch.tensor([8, 2, *sample["split_lengths"][2:].tolist()])}
        moved = {
            name: torch.where(sample[name] >= 16, sample[name] - 6, sample[name])
            for name in ("text_places", "latent_places", "supervised")
        }
        moved["text_places"][3] -= 6
        none |= moved | {"positions": torch.cat([sample["positions"][:10], sample["positions"][16:]])}
    losses = network(**sample | none)
    (losses["ce"] + losses["mse"]).backward()
    assert math.isfinite(losses["ce"].item())
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_the_autoencoder_is_no_part_of_what_is_trained_or_stored():
    network = tiny_network()
    inside = {id(parameter) for parameter in network.parameters()}
    assert not inside & {id(parameter) for parameter in network.autoencoder.parameters()}
    assert not any("autoencoder" in key for key in network.state_dict())


def test_random_weights_begin_by_looking_at_the_same_place_of_another_picture():
    network = tiny_network()
    attention, side = network.language_model.model.layers[0].self_attn, SIZES.latent_side
    places = torch.arange(side**2).view(side, side)[:4, :4].flatten()
    draws = torch.Generator().manual_seed(0)

    def embedded(time: float) -> torch.Tensor:
        latents = torch.randn(len(places), SIZES.latent_width, generator=draws)
        return network.embed_latents(latents, torch.full((len(places),), time), places)

    with torch.no_grad():
        query, key = (
            norm.generation(projection.generation(states).unflatten(1, (-1, attention.width))[:, 0])
            for norm, projection, states in (
                (attention.q_norm, attention.q_proj, embedded(0.7)),
                (attention.k_norm, attention.k_proj, embedded(0.0)),
            )
        )
    assert torch.equal((query @ key.T).argmax(1), torch.arange(len(places)))
