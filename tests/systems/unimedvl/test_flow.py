import numpy as np
import pytest
import torch

from raymed.systems.unimedvl.flow import draw_times, flow_losses, noisy, shift_time, velocity


@pytest.mark.parametrize(("time", "moved"), [(0.0, 0.0), (0.25, 0.5), (0.5, 0.75), (0.75, 0.9), (1.0, 1.0)])
def test_a_shift_of_3_moves_times_as_published(time, moved):
    assert shift_time(time, 3.0) == pytest.approx(moved)
    assert shift_time(time, 1.0) == time


def test_the_path_goes_straight_from_the_picture_to_the_noise():
    latents, noise = torch.randn(5, 8), torch.randn(5, 8)
    times = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    path = noisy(latents, noise, times)
    assert torch.equal(path[0], latents[0]) and torch.equal(path[4], noise[4])
    torch.testing.assert_close(path - times[:, None] * velocity(latents, noise), latents)


def test_the_loss_of_a_token_is_the_mean_over_its_numbers():
    latents, noise = torch.zeros(2, 4), torch.ones(2, 4)
    predicted = torch.tensor([[1.0, 1, 1, 1], [1, 1, 3, 1]])
    assert flow_losses(predicted, latents, noise).tolist() == [0.0, 1.0]


def test_times_are_logistic_normal_and_follow_from_the_generator():
    times = draw_times(np.random.default_rng(1), 4000, 1.0)
    assert times.dtype == np.float32
    assert np.array_equal(times, draw_times(np.random.default_rng(1), 4000, 1.0))
    logits = np.log(times / (1 - times))
    assert abs(logits.mean()) < 0.06 and abs(logits.std() - 1) < 0.05
    np.testing.assert_allclose(draw_times(np.random.default_rng(1), 9, 3.0), shift_time(times[:9], 3.0), rtol=1e-6)
