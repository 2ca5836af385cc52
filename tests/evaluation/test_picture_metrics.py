"""Pictures judged: known values, and an editor that gives its input back is called that."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from raymed.errors import UserError
from raymed.evaluation.picture_metrics import MOST_PSNR, Pictures, frechet_distance, psnr, score_pictures, ssim

PATIENTS = np.array([f"p{number // 2}" for number in range(24)])


def pictures(seed: int, count: int = 24, side: int = 24) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    made = [gaussian_filter(draw.normal(size=(side, side + 4)), 2) for _ in range(count)]
    return [np.clip(each * 300 + 120, 0, 255).astype(np.uint8)[:, :, None] for each in made]


def test_known_values() -> None:
    one = np.full((16, 16, 1), 100, np.uint8)
    assert psnr(one, one) == MOST_PSNR and ssim(one, one) == pytest.approx(1.0)
    assert psnr(one, one + 10) == pytest.approx(10 * np.log10(255**2 / 100))
    assert psnr(one, np.repeat(one + 10, 3, axis=2)) == psnr(one, one + 10)
    # of flat pictures only the first factor is left: (2 a b + c) / (a² + b² + c), c = (0.01 * 255)²
    c = 2.55**2
    assert ssim(one, one + 10) == pytest.approx((2 * 100 * 110 + c) / (100**2 + 110**2 + c), abs=2e-4)


def test_structural_similarity_is_that_of_the_formula() -> None:
    """Against the formula written out at one place, with its window."""
    one, other = (made[0][:11, :11].astype(float)[:, :, 0] for made in (pictures(0), pictures(1)))
    axis = np.arange(11) - 5
    weights = np.exp(-(axis**2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2

    def mean(values: np.ndarray) -> float:
        return float((window * values).sum())

    a, b = mean(one), mean(other)
    va, vb, together = mean(one**2) - a**2, mean(other**2) - b**2, mean(one * other) - a * b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * a * b + c1) * (2 * together + c2) / ((a**2 + b**2 + c1) * (va + vb + c2))
    got = ssim(one.astype(np.uint8)[:, :, None], other.astype(np.uint8)[:, :, None])
    assert got == pytest.approx(expected, abs=1e-4)


def test_an_editor_that_gives_its_input_back_is_called_that() -> None:
    shown, wanted = pictures(0), pictures(1)
    noise = np.random.default_rng(2)
    near = [np.clip(each + noise.normal(0, 6, each.shape), 0, 255).astype(np.uint8) for each in shown]
    scores = score_pictures(Pictures(PATIENTS, shown, wanted, near))
    assert scores.copies and "gives its input back" in str(scores)
    assert scores.metrics["kept_psnr"].value > 25 > scores.metrics["psnr"].value


def test_an_editor_that_does_what_it_is_asked_is_not() -> None:
    shown, wanted = pictures(0), pictures(1)
    half = [((a.astype(int) + 3 * b.astype(int)) // 4).astype(np.uint8) for a, b in zip(shown, wanted, strict=True)]
    scores = score_pictures(Pictures(PATIENTS, shown, wanted, half))
    gain = scores.metrics["psnr_gain"]
    assert not scores.copies and gain.low is not None and gain.low > 0
    assert gain.value == pytest.approx(20 * np.log10(4), abs=0.3)
    assert "what it draws is nearer to the target than the input is, by 12" in str(scores)
    lost = score_pictures(Pictures(PATIENTS, shown, shown, wanted))
    assert not lost.copies and "what it draws is farther from the target" in str(lost)


def test_small_edits_by_an_editor_that_makes_them_are_no_copies() -> None:
    """Input and target hardly differ, so what is drawn is near to both."""
    shown = pictures(0)
    wanted = [np.clip(each.astype(int) + 12 * (np.arange(each.shape[1]) > 14)[None, :, None], 0, 255) for each in shown]
    wanted = [each.astype(np.uint8) for each in wanted]
    assert not score_pictures(Pictures(PATIENTS, shown, wanted, wanted)).copies
    assert score_pictures(Pictures(PATIENTS, shown, wanted, shown)).copies


def test_patients_count_once_however_many_pictures_they_have() -> None:
    flat = [np.full((12, 12, 1), value, np.uint8) for value in (100, 100, 100, 100)]
    drawn = [each + np.uint8(step) for each, step in zip(flat, (1, 1, 1, 10), strict=True)]
    scores = score_pictures(Pictures(np.array(["a", "a", "a", "b"]), flat, flat, drawn))
    expected = (10 * np.log10(255**2) + 10 * np.log10(255**2 / 100)) / 2
    assert scores.metrics["psnr"].value == pytest.approx(expected)


def test_the_distance_between_sets_of_pictures() -> None:
    draw = np.random.default_rng(0)
    one = draw.normal(size=(4000, 3))
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(one, one + np.array([3, 0, 0])) == pytest.approx(9.0, abs=1e-6)
    assert frechet_distance(one, 2 * draw.normal(size=(4000, 3))) == pytest.approx(3.0, abs=0.2)
    with pytest.raises(UserError, match="two pictures of each"):
        frechet_distance(one[:1], one)


def test_pictures_that_cannot_be_compared_are_errors() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr(np.zeros((4, 4, 1), np.uint8), np.zeros((4, 5, 1), np.uint8))
    with pytest.raises(UserError, match="no picture to judge"):
        Pictures(np.array([]), [], [], [])
