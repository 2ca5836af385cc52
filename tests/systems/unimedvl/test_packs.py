"""Packed sequences: positions, splits, what is learned, and samples that lie end to end as if each were alone."""

from dataclasses import fields

import numpy as np
import pytest

from raymed.data.record import Image, Record
from raymed.errors import UserError
from raymed.systems.unimedvl.masks import visible
from raymed.systems.unimedvl.modes import CAUSAL, FULL, NOISE
from raymed.systems.unimedvl.packs import PLACES, PackedSequence, encode_sample, pack, token_count
from raymed.systems.unimedvl.sequence import CondDropout, Element, to_messages
from raymed.systems.unimedvl.settings import GridSettings
from raymed.systems.unimedvl.tokens import TextTokens

GRIDS = GridSettings(vit_patch=2, vit_side=8, latent_stride=4, latent_side=8)
TOKENS = TextTokens.bytes()
ALWAYS = CondDropout(1.0, 1.0, 1.0)


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.arange(height * width * channels, dtype=np.uint8).reshape(height, width, channels)


def record(elements: list[Element], name: str = "r", images: tuple[Image, ...] | None = None) -> Record:
    if images is None:
        images = (Image("input", 0, pixels(4, 6)), Image("output", 0, pixels(4, 8, 1)), Image("output", 1, pixels(8, 4)))
    return Record(name, "p", "p", 0, None, "s", images, to_messages(elements))


EDIT = [
    Element("vae", place=0, droppable=True),
    Element("vit", place=0, droppable=True),
    Element("human", "ab", droppable=True),
    Element("target", place=1),
    Element("gpt", "xyz"),
]


def test_a_pictures_tokens_share_a_position_and_one_that_is_drawn_takes_none() -> None:
    sample = encode_sample(record(EDIT), GRIDS, TOKENS)
    # 1x2 latents, 2x3 patches, 2 letters, 2x1 latents, 3 letters; each with two marks
    assert sample.split_lengths.tolist() == [4, 8, 4, 4, 5]
    assert sample.split_modes.tolist() == [FULL, FULL, CAUSAL, NOISE, CAUSAL]
    assert sample.positions.tolist() == [0] * 4 + [1] * 8 + [2, 3, 4, 5] + [6] * 4 + [6, 7, 8, 9, 10]
    assert sample.noisy.tolist() == [False, True] and sample.target_counts.tolist() == [2]


def test_what_is_dropped_keeps_its_position_if_it_is_a_picture() -> None:
    sample = encode_sample(record(EDIT), GRIDS, TOKENS, ALWAYS, np.random.default_rng(0))
    assert sample.split_modes.tolist() == [NOISE, CAUSAL]
    assert sample.positions.tolist() == [2] * 4 + [2, 3, 4, 5, 6]


def test_an_answer_is_learned_to_its_end_and_nothing_else_is() -> None:
    sample = encode_sample(record(EDIT), GRIDS, TOKENS)
    assert sample.labels.tolist() == [*TOKENS.ids("xyz"), TOKENS.end]
    ids = dict(zip(sample.text_places.tolist(), sample.text_ids.tolist(), strict=True))
    assert [ids[place] for place in sample.supervised.tolist()] == [TOKENS.start, *TOKENS.ids("xyz")]
    assert sample.label_weights.tolist() == [1.0] * 4 and sample.supervised_counts.tolist() == [4]
    long = encode_sample(record(EDIT), GRIDS, TOKENS, reweight=True)
    assert long.label_weights.tolist() == [0.5] * 4


def test_every_token_is_text_patch_or_latent_exactly_once() -> None:
    sample = encode_sample(record(EDIT), GRIDS, TOKENS)
    places = np.concatenate([sample.text_places, sample.patch_places, sample.latent_places])
    assert sorted(places.tolist()) == list(range(len(sample.positions)))
    marks = [TOKENS.vision_start, TOKENS.vision_end]
    assert np.isin(sample.text_ids, marks).sum() == 6


def test_patches_and_pixels_are_in_the_order_that_the_networks_read_them_in() -> None:
    sample = encode_sample(record(EDIT), GRIDS, TOKENS)
    picture = pixels(4, 6)
    assert sample.patches.shape == (6, 12)
    assert np.array_equal(sample.patches[4].reshape(2, 2, 3), picture[2:4, 2:4])
    assert sample.patch_positions.tolist() == [0, 1, 2, 8, 9, 10] and sample.patch_counts.tolist() == [6]
    assert sample.latent_grids.tolist() == [[1, 2], [2, 1]] and sample.latent_positions.tolist() == [0, 1, 0, 8]
    grey = sample.pixels[: 3 * 4 * 8].reshape(3, 4, 8)
    assert np.array_equal(grey[0], pixels(4, 8, 1)[:, :, 0]) and np.array_equal(grey[0], grey[2])
    assert np.array_equal(sample.pixels[3 * 4 * 8 :].reshape(3, 8, 4), pixels(8, 4).transpose(2, 0, 1))


def test_the_mask_of_a_sample_made_by_hand() -> None:
    """Text, a clean picture, and noise: the oracle is written out token by token."""
    elements = [Element("human", ""), Element("vae", place=0), Element("target", place=1)]
    images = (Image("output", 0, pixels(4, 4)), Image("output", 1, pixels(4, 4)))
    sample = encode_sample(record(elements, images=images), GRIDS, TOKENS)
    seen = visible(sample.split_lengths, sample.split_modes).astype(int).tolist()
    text = [[1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]
    clean, noise = [1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]
    assert seen == [*text, clean, clean, clean, noise, noise, noise]


def test_samples_of_a_pack_are_what_they_are_alone() -> None:
    text = encode_sample(record([Element("human", "ab"), Element("gpt", "c")], "t", ()), GRIDS, TOKENS)
    edit = encode_sample(record(EDIT), GRIDS, TOKENS)
    both = pack([text, edit, text])
    lengths = [len(text.positions), len(edit.positions), len(text.positions)]
    assert both.samples == 3 and len(both.positions) == sum(lengths)
    assert both.split_samples.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2] and both.image_samples.tolist() == [1, 1]
    assert both.positions.tolist() == [*text.positions, *edit.positions, *text.positions]
    for field in fields(PackedSequence):
        alone = getattr(edit, field.name)
        joined = getattr(both, field.name)
        assert joined.dtype == alone.dtype == getattr(text, field.name).dtype, field.name
        if field.name in PLACES:
            inside = (joined >= lengths[0]) & (joined < lengths[0] + lengths[1])
            assert np.array_equal(joined[inside] - lengths[0], alone), field.name


@pytest.mark.parametrize("elements", [EDIT, [Element("human", "añ"), Element("gpt", "")]])
def test_the_estimate_of_a_length_is_its_length(elements) -> None:
    areas = [area for kind, area in (("vae", 2), ("vit", 6), ("target", 2)) for each in elements if each.kind == kind]
    length = token_count(elements, lambda text: len(TOKENS.ids(text)), areas)
    assert length == len(encode_sample(record(elements), GRIDS, TOKENS).positions)


def test_a_picture_that_does_not_fit_the_grid_is_refused_by_its_record() -> None:
    for shape in [(4, 18), (3, 4)]:
        images = (Image("input", 0, pixels(*shape)),)
        with pytest.raises(UserError, match=r"record r: a picture of .* fits no grid of 8x8 tokens of 2 pixels"):
            encode_sample(record([Element("vit"), Element("gpt", "a")], images=images), GRIDS, TOKENS)
    with pytest.raises(UserError, match="lacks picture 1 of its sequence"):
        encode_sample(record([Element("vit"), Element("gpt", "a")], images=()), GRIDS, TOKENS)
