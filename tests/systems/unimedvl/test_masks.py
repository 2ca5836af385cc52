import numpy as np
import pytest
import torch

from raymed.systems.unimedvl.masks import (
    BLOCK,
    CAUSAL,
    FULL,
    NOISE,
    DenseAttention,
    FlexAttention,
    Splits,
    attend,
    block_mask,
    packed_attention,
    visible,
)

HOST = torch.device("cpu")
#  text of 3, a clean picture of 2, a picture being drawn of 3, a text of 2
EDIT = (torch.tensor([3, 2, 3, 2]), torch.tensor([CAUSAL, FULL, NOISE, CAUSAL]))
BY_HAND = """
x.........
xx........
xxx.......
xxxxx.....
xxxxx.....
xxxxxxxx..
xxxxxxxx..
xxxxxxxx..
xxxxx...x.
xxxxx...xx
"""


def drawn(mask: np.ndarray) -> str:
    return "\n" + "\n".join("".join("x" if seen else "." for seen in row) for row in mask.tolist()) + "\n"


def pack(*samples: tuple[torch.Tensor, torch.Tensor]) -> Splits:
    owners = torch.cat([torch.full_like(lengths, index) for index, (lengths, _) in enumerate(samples)])
    return Splits(torch.cat([each for each, _ in samples]), torch.cat([each for _, each in samples]), owners)


def rule(splits: Splits) -> np.ndarray:
    """The rule in words, pair by pair."""
    tokens = [
        (sample, split, mode)
        for split, (length, mode, sample) in enumerate(
            zip(splits.lengths.tolist(), splits.modes.tolist(), splits.samples.tolist(), strict=True)
        )
        for _ in range(length)
    ]
    sees = np.zeros((len(tokens), len(tokens)), bool)
    for q, (q_sample, q_split, q_mode) in enumerate(tokens):
        for k, (k_sample, k_split, k_mode) in enumerate(tokens):
            if q_sample != k_sample:
                continue
            if q_split == k_split:
                sees[q, k] = q_mode != CAUSAL or k <= q
            else:
                sees[q, k] = k_split < q_split and k_mode != NOISE
    return sees


def test_a_text_is_causal_a_picture_sees_itself_and_noise_is_seen_by_itself_only():
    assert drawn(visible(*(each.numpy() for each in EDIT))) == BY_HAND


def random_pack(seed: int) -> Splits:
    draws = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(4):
        splits = int(torch.randint(1, 6, (), generator=draws))
        samples.append((torch.randint(1, 30, (splits,), generator=draws), torch.randint(0, 3, (splits,), generator=draws)))
    return pack(*samples)


@pytest.mark.parametrize("seed", range(5))
def test_dense_masks_are_the_rule_and_no_sample_sees_another(seed):
    splits = random_pack(seed)
    heads = [torch.randn(1, count, splits.total, 8, dtype=torch.float64) for count in (4, 2, 2)]
    query, key, value = heads
    whole = attend(query, key, value, torch.from_numpy(rule(splits)))
    torch.testing.assert_close(DenseAttention(splits, HOST)(0, query, key, value), whole)


@pytest.mark.parametrize("seed", range(5))
def test_the_flex_mask_is_the_rule_and_padding_is_seen_by_padding_only(seed):
    splits = random_pack(seed)
    total = splits.total
    mask = block_mask(splits, HOST)
    side = total + -total % BLOCK
    index = torch.arange(side)
    zero = torch.tensor(0)
    seen = mask.mask_mod(zero, zero, index[:, None], index[None])
    np.testing.assert_array_equal(seen[:total, :total].numpy(), rule(splits))
    assert not seen[:total, total:].any() and not seen[total:, :total].any()
    assert seen[total:, total:].all()  # a row that sees nothing would be a division by nothing


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_what_dense_masks_do():
    splits = random_pack(7)
    query, key, value = (torch.randn(1, count, splits.total, 16) for count in (4, 2, 2))
    with torch.compiler.set_stance("force_eager"):
        flex = FlexAttention(splits, HOST)(0, query, key, value)
    torch.testing.assert_close(flex, DenseAttention(splits, HOST)(0, query, key, value))


def test_samples_that_are_text_only_need_no_mask_of_their_own():
    texts = pack((torch.tensor([4]), torch.tensor([CAUSAL])), (torch.tensor([2, 3]), torch.tensor([CAUSAL, CAUSAL])))
    attention = packed_attention(texts, HOST)
    assert isinstance(attention, DenseAttention)
    query = torch.randn(1, 2, 9, 8)
    whole = attend(query, query, query, torch.from_numpy(rule(texts)))
    torch.testing.assert_close(attention(0, query, query, query), whole)
