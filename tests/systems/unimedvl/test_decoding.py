import pytest
import torch
from packed_samples import TOKENS, tiny_network

from raymed.errors import UserError
from raymed.systems.unimedvl.context import Context, read_text
from raymed.systems.unimedvl.decoding import pieces, write
from raymed.systems.unimedvl.tokens import TextTokens
from raymed.systems.unimedvl.tool_settings import TextSettings


@pytest.fixture(scope="module")
def network():
    """It ends no answer soon: the mark's logit is 0."""
    made = tiny_network().eval()
    with torch.no_grad():
        made.language_model.lm_head.weight[TOKENS.end].fill_(0)
    return made


def answer(network, tokens=TOKENS, **settings) -> list[int]:
    context, _ = read_text(network, Context.empty(network), [TOKENS.start, *TOKENS.ids("Findings?"), TOKENS.end])
    return list(write(network, context, tokens, TextSettings(**settings), torch.Generator().manual_seed(2)))


def test_the_mark_that_begins_an_answer_counts_in_its_length(network):
    assert len(answer(network, max_new_tokens=6, do_sample=False)) == 5


def test_an_answer_ends_at_its_mark(network):
    whole = answer(network, max_new_tokens=12)
    ending = TextTokens.bytes()
    ending.end = whole[len(whole) // 2]
    assert answer(network, ending, max_new_tokens=12) == whole[: whole.index(ending.end)]


def test_draws_follow_from_the_seed(network):
    assert answer(network, max_new_tokens=20) == answer(network, max_new_tokens=20)


def test_a_low_temperature_takes_the_likeliest(network):
    greedy = answer(network, max_new_tokens=12, do_sample=False)
    assert answer(network, max_new_tokens=12, temperature=1e-4) == greedy


def test_text_comes_in_pieces_of_whole_characters():
    text = "Lungs: 双肺 clear"
    told = list(pieces(iter(TOKENS.ids(text)), TOKENS))
    assert "".join(told) == text and "双" in told and len(told) == len(text)


def test_no_part_of_a_character_is_told_where_the_longest_length_cuts_one():
    ids = TOKENS.ids("双肺")
    assert ["".join(pieces(iter(ids[:length]), TOKENS)) for length in range(7)] == ["", "", "", "双", "双", "双", "双肺"]


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(UserError, match="do_sample False"):
        TextSettings(temperature=0)
