from itertools import pairwise

import numpy as np
import pytest
import torch
from packed_samples import SIZES, TOKENS, picture, tiny_network

from raymed.errors import UserError
from raymed.systems.unimedvl.context import Context, look_at, read_latents, read_text, take_in
from raymed.systems.unimedvl.sampler import Contexts, draw, guide, scheduler
from raymed.systems.unimedvl.tool_settings import DrawingSettings

V, WITHOUT_TEXT, WITHOUT_IMAGES = (
    torch.tensor([[3.0, 4.0], [0.0, 1.0]]),
    torch.tensor([[0.0, 0.0], [0.0, 3.0]]),
    torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
)


def test_times_are_shifted_towards_the_noise_as_published():
    assert scheduler(DrawingSettings(num_timesteps=5)).sigmas.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert len(scheduler(DrawingSettings()).timesteps) == 49


def test_a_scale_of_1_is_no_guidance():
    assert torch.equal(guide([V], DrawingSettings()), V)
    one = DrawingSettings(cfg_text_scale=1.0, cfg_img_scale=9.0)
    assert not one.text_guided and not one.image_guided  # without text there is none by pictures either
    torch.testing.assert_close(guide([V, WITHOUT_TEXT], one), V)
    assert not DrawingSettings(cfg_img_scale=1.0).image_guided


def test_renormalised_velocities_are_no_longer_than_the_plain_one():
    """By hand: with a scale of 2 the guided velocity is 2 v - without_text: (6, 8), (0, -1)."""
    settings = {"cfg_text_scale": 2.0, "cfg_img_scale": 1.0}
    channel = guide([V, WITHOUT_TEXT], DrawingSettings(cfg_renorm_type="channel", **settings))
    assert channel.tolist() == [pytest.approx([3, 4]), pytest.approx([0, -1])]  # shares 1/2 and 1
    whole = guide([V, WITHOUT_TEXT], DrawingSettings(cfg_renorm_type="global", **settings))
    share = np.sqrt(26 / 101)
    assert whole.tolist() == [pytest.approx([6 * share, 8 * share]), pytest.approx([0, -share])]
    floored = guide([V, WITHOUT_TEXT], DrawingSettings(cfg_renorm_type="channel", cfg_renorm_min=0.8, **settings))
    assert floored.tolist() == [pytest.approx([4.8, 6.4]), pytest.approx([0, -1])]


def test_pictures_guide_after_the_text_was_renormalised():
    """text_channel: (3, 4), (0, -1) after the text; then without_images + 2 (that - without_images)."""
    settings = DrawingSettings(cfg_text_scale=2.0, cfg_img_scale=2.0)
    guided = guide([V, WITHOUT_TEXT, WITHOUT_IMAGES], settings)
    assert guided.tolist() == [pytest.approx([5, 8]), pytest.approx([0, -2])]


def test_the_interval_of_guidance_excludes_its_start_and_includes_its_end():
    settings = DrawingSettings(cfg_interval=(0.4, 0.9))
    assert [settings.guided(time) for time in (0.4, 0.41, 0.9, 0.91)] == [False, True, True, False]


@pytest.mark.parametrize(
    "wrong",
    [{"num_timesteps": 1}, {"timestep_shift": 0.0}, {"cfg_interval": (0.9, 0.4)}, {"cfg_renorm_min": 2.0}],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError):
        DrawingSettings(**wrong)


@pytest.fixture(scope="module")
def read():
    network = tiny_network().eval()
    pictures = take_in(network, Context.empty(network), TOKENS, picture(16, 24))
    pictures = look_at(network, pictures, TOKENS, picture(28, 42))
    instruction = [TOKENS.start, *TOKENS.ids("Make it darker."), TOKENS.end]
    full, _ = read_text(network, pictures, instruction)
    alone, _ = read_text(network, Context.empty(network), instruction)
    return network, Contexts(full, pictures, alone)


def test_branches_in_one_batch_are_what_they_are_one_by_one(read):
    """Contexts of unequal length are filled up; what is filled in is seen by nobody."""
    network, contexts = read
    noise = torch.randn(6, SIZES.latent_width, generator=torch.Generator().manual_seed(1))
    settings = DrawingSettings(num_timesteps=6, cfg_interval=(0.5, 1.0))
    latents = noise
    steps = scheduler(settings)
    sigmas = steps.sigmas.tolist()
    with torch.no_grad():
        for time, after in pairwise(sigmas):
            times = torch.full((6,), time)
            each = [
                network.llm2vae(read_latents(network, context, TOKENS, latents, times, 2, 3)[0][0])
                for context in (contexts if time > 0.5 else contexts[:1])
            ]
            latents = latents - guide(each, settings) * (time - after)  # Euler's step, written out
    drawn = draw(network, contexts, TOKENS, 2, 3, settings, noise)
    torch.testing.assert_close(drawn, latents, rtol=1e-4, atol=1e-5)


def test_the_same_noise_draws_the_same_picture_and_progress_is_told(read):
    network, contexts = read
    noise = torch.randn(6, SIZES.latent_width)
    told = []
    settings = DrawingSettings(num_timesteps=4)
    first = draw(network, contexts, TOKENS, 2, 3, settings, noise, lambda step, steps: told.append((step, steps)))
    assert torch.equal(first, draw(network, contexts, TOKENS, 2, 3, settings, noise))
    assert told == [(1, 3), (2, 3), (3, 3)]
