import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from raymed.systems.unimedvl.checkpoint import checkpoint_name
from raymed.systems.unimedvl.masks import Splits, packed_attention
from raymed.systems.unimedvl.modes import CAUSAL, FULL, NOISE
from raymed.systems.unimedvl.settings import LanguageSizes
from raymed.systems.unimedvl.transformer import LanguageModel, Route, Streams

SIZES = LanguageSizes(vocabulary=50, hidden=32, layers=3, heads=4, key_value_heads=2, intermediate=48, rope_theta=1e4)


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(SIZES)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    return model.eval()


def run(model: LanguageModel, tokens: torch.Tensor, drawn: torch.Tensor, splits: Splits) -> Streams:
    """States of a sequence [tokens, hidden] of which `drawn` (bool) go through the generation expert."""
    places = torch.arange(len(tokens))
    route = Route(places[~drawn], places[drawn])
    attention = packed_attention(splits, tokens.device)
    return model.model(Streams(tokens[~drawn][None], tokens[drawn][None]), route, places[None], attention)


def test_text_alone_is_computed_as_by_a_qwen_with_normalised_queries_and_keys(model):
    config = Qwen3Config(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        tie_word_embeddings=False,
    )
    theirs = Qwen3ForCausalLM(config).eval()
    named = {checkpoint_name(key): tensor for key, tensor in model.state_dict().items()}
    report = theirs.load_state_dict({key: value for key, value in named.items() if "_moe_gen" not in key}, strict=False)
    assert not report.unexpected_keys and all(key.endswith("o_proj.bias") for key in report.missing_keys)
    for layer in theirs.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.bias)
    ids = torch.randint(0, 50, (12,))
    splits = Splits(torch.tensor([12]), torch.tensor([CAUSAL]), torch.tensor([0]))
    last = run(model, model.model.embed_tokens(ids), torch.zeros(12, dtype=torch.bool), splits)
    with torch.no_grad():
        torch.testing.assert_close(model.lm_head(last.understanding[0]), theirs(ids[None]).logits[0])


def test_experts_with_equal_weights_are_one_decoder_wherever_the_tokens_go(model):
    for module in model.modules():
        if hasattr(module, "generation"):
            module.generation.load_state_dict(module.understanding.state_dict())
    tokens = torch.randn(10, 32)
    splits = Splits(torch.tensor([4, 6]), torch.tensor([CAUSAL, FULL]), torch.tensor([0, 0]))
    drawn = torch.tensor([False] * 5 + [True] * 4 + [False])
    mixed = run(model, tokens, drawn, splits)
    whole = run(model, tokens, torch.zeros(10, dtype=torch.bool), splits).understanding[0]
    torch.testing.assert_close(mixed.understanding[0], whole[~drawn])
    torch.testing.assert_close(mixed.generation[0], whole[drawn])


def test_what_comes_after_a_picture_being_drawn_does_not_depend_on_it(model):
    tokens = torch.randn(9, 32)
    other = tokens.clone()
    drawn = torch.tensor([False] * 3 + [True] * 4 + [False] * 2)
    other[drawn] = torch.randn(4, 32)
    splits = Splits(torch.tensor([3, 4, 2]), torch.tensor([CAUSAL, NOISE, CAUSAL]), torch.tensor([0, 0, 0]))
    first, second = run(model, tokens, drawn, splits), run(model, other, drawn, splits)
    assert torch.equal(first.understanding, second.understanding)
    assert not torch.allclose(first.generation, second.generation)


def test_gradient_checkpointing_leaves_gradients_as_they_are(model):
    tokens = torch.randn(6, 32)
    splits = Splits(torch.tensor([6]), torch.tensor([FULL]), torch.tensor([0]))
    drawn = torch.arange(6) > 3
    gradients = []
    for again in (False, True):
        model.train().zero_grad()
        model.model.gradient_checkpointing = again
        sum(stream.sum() for stream in run(model, tokens, drawn, splits)).backward()
        gradients.append([parameter.grad for parameter in model.model.layers.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_an_understanding_expert_that_stands_still_gets_no_gradient_and_passes_none_on(model):
    model.train()
    model.model.understanding_stands_still = True
    tokens = torch.randn(7, 32, requires_grad=True)
    drawn = torch.tensor([False, False, True, True, True, False, False])
    splits = Splits(torch.tensor([2, 3, 2]), torch.tensor([CAUSAL, FULL, CAUSAL]), torch.tensor([0, 0, 0]))
    last = run(model, tokens, drawn, splits)
    model.lm_head(last.understanding[0]).sum().backward()
    assert model.lm_head.weight.grad is not None
    assert tokens.grad is None and all(parameter.grad is None for parameter in model.model.layers.parameters())
    run(model, tokens, drawn, splits).generation.sum().backward()
    moved = {name for name, parameter in model.model.layers.named_parameters() if parameter.grad is not None}
    assert any("generation" in name for name in moved)
    assert not tokens.grad[~drawn].any() and tokens.grad[drawn].any()
