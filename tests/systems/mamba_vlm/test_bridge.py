import pytest
import torch

from raymed.errors import UserError
from raymed.systems.mamba_vlm.bridge import MambaBridge, build_bridge
from raymed.systems.mamba_vlm.interaction import CrossInteraction, averaged, evenly_spaced
from raymed.systems.mamba_vlm.tokens import cap_tokens, capped_count, crop, pool, region_corners, sequence


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("width", "millions"), [(2560, 96.9), (768, 9.1)])
def test_the_mamba_bridge_has_the_size_of_the_guides_own(width: int, millions: float) -> None:
    with torch.device("meta"):
        assert parameters(MambaBridge(512, width)) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_the_other_bridges_have_as_many_parameters(kind: str) -> None:
    with torch.device("meta"):
        other = build_bridge(kind, 512, 768, "concat")  # type: ignore[arg-type]
        assert parameters(other) == pytest.approx(parameters(MambaBridge(512, 768)), rel=0.002)


def test_the_backward_direction_is_the_forward_one_of_the_reversed_sequence() -> None:
    torch.manual_seed(0)
    bridge, tokens = MambaBridge(6, 8, merge="mean"), torch.randn(2, 5, 6)
    bridge.vim_bwd.load_state_dict(bridge.vim_fwd.state_dict())
    torch.testing.assert_close(bridge(tokens.flip(1)), bridge(tokens).flip(1))


def test_directions_that_are_merged_by_their_mean_are_halved() -> None:
    bridge = MambaBridge(8, 64, "mean").eval()
    tokens = torch.randn(1, 5, 8)
    placed = bridge.norm(bridge.proj(tokens))
    both = bridge.vim_fwd(placed) + bridge.vim_bwd(placed.flip(1)).flip(1)
    torch.testing.assert_close(bridge(tokens), bridge.out_proj(both / 2))


@pytest.mark.parametrize("kind", ["mamba", "attention"])
def test_tokens_mix_along_the_sequence_in_both_directions(kind: str) -> None:
    torch.manual_seed(0)
    bridge = build_bridge(kind, 6, 8, "concat")  # type: ignore[arg-type]
    tokens = torch.randn(1, 5, 6)
    changed = tokens.clone()
    changed[0, 2] += 1
    difference = (bridge(tokens) - bridge(changed)).abs().sum(-1)[0]
    assert (difference > 0).all()


def test_the_linear_bridge_mixes_nothing() -> None:
    bridge, tokens = build_bridge("linear", 6, 8, "concat"), torch.randn(1, 5, 6)
    torch.testing.assert_close(bridge(tokens)[:, 1:3], bridge(tokens[:, 1:3]))


@pytest.mark.parametrize(
    ("count", "cap", "kept"),
    [
        (784, 196, 196),
        (784, 144, 144),
        (784, 96, 81),
        (784, 64, 64),
        (784, 32, 25),
        (49, 64, 49),
        (144, 96, 81),
        (50, 32, 32),
    ],
)
def test_the_cap_is_that_of_the_guides_table(count: int, cap: int, kept: int) -> None:
    assert capped_count(count, cap) == kept
    assert cap_tokens(torch.zeros(1, count, 3), cap).shape == (1, kept, 3)


def test_capped_tokens_are_averages_of_their_squares_row_after_row() -> None:
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert cap_tokens(sequence(maps), 4).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_the_centre_of_784_tokens_is_rows_and_columns_10_to_16() -> None:
    maps = torch.arange(784.0).reshape(1, 1, 28, 28)
    corners = region_corners(maps, 7, "center")
    assert corners.tolist() == [[10, 10]]
    tokens = sequence(crop(maps, corners, 7))[0, :, 0]
    assert tokens.tolist() == [28 * row + column for row in range(10, 17) for column in range(10, 17)]


def test_a_region_follows_the_mask_and_stays_within_the_map() -> None:
    maps, mask = torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 32, 32)
    mask[0, 0, 18:22, 10:14] = 1  # around token (4.5, 2.5)
    mask[1, 0, :2, :2] = 1
    assert region_corners(maps, 3, "mask", mask).tolist() == [[4, 2], [0, 0], [2, 2]]


def test_a_salient_region_is_where_features_are_largest() -> None:
    maps = torch.zeros(1, 2, 6, 6)
    maps[0, 1, 3:5, 1:3] = -2
    assert region_corners(maps, 2, "saliency").tolist() == [[3, 1]]


def test_a_region_larger_than_the_map_or_without_masks_is_refused() -> None:
    with pytest.raises(UserError, match="4 x 4"):
        region_corners(torch.zeros(1, 1, 4, 4), 7, "center")
    with pytest.raises(UserError, match="mask_path"):
        region_corners(torch.zeros(1, 1, 4, 4), 2, "mask")


def test_pooling_never_makes_a_map_larger() -> None:
    assert pool(torch.zeros(1, 1, 28, 28), 12).shape == (1, 1, 12, 12)
    assert pool(torch.zeros(1, 1, 7, 7), 12).shape == (1, 1, 7, 7)


def test_the_interactions_state_has_the_values_of_a_calculation_by_hand() -> None:
    states = averaged(torch.full((1, 3, 1), 2.0), torch.zeros(1, 1))  # delta 0.5, b 2, x 1
    torch.testing.assert_close(states.flatten(), torch.tensor([1.0, 1.5, 1.75]))
    torch.testing.assert_close(3 * states.flatten(), torch.tensor([3.0, 4.5, 5.25]))


def test_the_closed_form_is_the_loop() -> None:
    torch.manual_seed(0)
    values, logits = torch.randn(2, 50, 4), torch.randn(2, 4) * 3
    delta, state, states = logits.sigmoid(), torch.zeros(2, 4), []
    for time in range(50):
        state = (1 - delta) * state + delta * values[:, time]
        states.append(state)
    torch.testing.assert_close(averaged(values, logits), torch.stack(states, 1), atol=1e-6, rtol=1e-5)


def test_compression_keeps_positions_at_equal_distances() -> None:
    kept = evenly_spaced(torch.arange(10.0)[None, :, None], 4).flatten()
    assert kept.tolist() == [0, 3, 6, 9]
    assert evenly_spaced(torch.arange(8.0)[None, :, None], 3).flatten().tolist() == [0, 3, 7]
    assert evenly_spaced(torch.zeros(1, 3, 1), 512).shape == (1, 3, 1)


def test_the_gated_interaction_changes_nothing_before_it_is_trained() -> None:
    torch.manual_seed(0)
    interaction, visual = CrossInteraction(8, 4, form="gated"), torch.randn(2, 5, 8)
    question, mask = torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)
    torch.testing.assert_close(interaction(visual, question, mask), visual)
    with torch.no_grad():
        interaction.alpha.fill_(1.0)
    assert not torch.allclose(interaction(visual, question, mask), visual)


@pytest.mark.parametrize("form", ["guide", "gated"])
def test_a_row_meets_its_own_question_and_nothing_of_its_padding(form: str) -> None:
    torch.manual_seed(0)
    interaction = CrossInteraction(8, 4, form=form)  # type: ignore[arg-type]
    if form == "gated":
        torch.nn.init.ones_(interaction.alpha)
    visual, question = torch.randn(1, 5, 8), torch.randn(1, 6, 8)
    mask = torch.arange(6)[None] < 2
    alone = interaction(visual, question[:, :2], mask[:, :2])
    torch.testing.assert_close(interaction(visual, question, mask), alone)
