"""How near drawn pictures are to those that were wanted, and to those that they were made from; per patient.

An editor that gives its input back may be near to its target where little was to change. So every figure about targets
stands beside that of the unchanged input, and how near a picture is to its input is a figure of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import sqrtm

from raymed.data.tiles import stretch
from raymed.errors import UserError
from raymed.evaluation import intervals
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.text_metrics import per_patient

MOST_PSNR = 100.0  # dB, of equal pictures
WINDOW, SIGMA = 11, 1.5  # of structural similarity, in pixels
RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Pictures:
    """Drawn pictures, a row each; uint8 [height, width, 1 or 3] of any size.

    Attributes:
        patients: whose they are, [rows].
        inputs: what each was made from.
        targets: what was wanted.
        drawn: what a model drew, of its target's size.
    """

    patients: np.ndarray
    inputs: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]
    drawn: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        if not len(self.patients):
            raise UserError("there is no picture to judge: choose a split that has patients")
        if not len(self.patients) == len(self.inputs) == len(self.targets) == len(self.drawn):
            raise ValueError("a picture is missing")

    def only(self, rows: np.ndarray) -> Pictures:
        """Those of some rows, bool [rows]."""
        places = np.flatnonzero(rows).tolist()
        shown, targets, drawn = ([part[place] for place in places] for part in (self.inputs, self.targets, self.drawn))
        return Pictures(self.patients[places], shown, targets, drawn)


@dataclass(frozen=True, eq=False)
class PictureScores:
    """How near pictures are, and how sure that is.

    Attributes:
        metrics: means over patients with their 95 % intervals: ``psnr`` (dB) and ``ssim`` to the target; ``input_psnr`` and
            ``input_ssim`` of the unchanged input to the target; ``kept_psnr`` of what was drawn to the input; ``psnr_gain``,
            how much nearer to its target a drawn picture is than its input.
        copies: whether the model gives its input back: what it draws is nearer to the input than to the target, and not
            surely nearer to the target than the input is.
    """

    metrics: dict[str, Estimate]
    copies: bool

    def __str__(self) -> str:
        gain, kept, psnr = (self.metrics[name] for name in ("psnr_gain", "kept_psnr", "psnr"))
        if self.copies:
            return (
                f"it gives its input back: what it draws is nearer to the input ({kept.value:.1f} dB) than to the target "
                f"({psnr.value:.1f} dB)"
            )
        ends = gain.interval(1)
        if (gain.low or 0.0) > 0:
            return f"what it draws is nearer to the target than the input is, by {gain.value:.1f} dB [{ends}]"
        if (gain.high or 0.0) < 0:
            return f"what it draws is farther from the target than the input is, by {-gain.value:.1f} dB (gain [{ends}])"
        return f"what it draws is not surely nearer to the target than the input is: {gain.value:+.1f} dB [{ends}]"


def score_pictures(pictures: Pictures, resamples: int = RESAMPLES, seed: int = 0) -> PictureScores:
    """Judge drawn pictures, each patient counting once."""
    rows: dict[str, list[float]] = {name: [] for name in ("psnr", "ssim", "input_psnr", "input_ssim", "kept_psnr")}
    for shown, target, drawn in zip(pictures.inputs, pictures.targets, pictures.drawn, strict=True):
        shown = stretch(shown, target.shape[1], target.shape[0])
        for name, score, pair in (
            ("psnr", psnr, (target, drawn)),
            ("ssim", ssim, (target, drawn)),
            ("input_psnr", psnr, (target, shown)),
            ("input_ssim", ssim, (target, shown)),
            ("kept_psnr", psnr, (shown, drawn)),
        ):
            rows[name].append(score(*pair))
    values = {name: np.array(each) for name, each in rows.items()}
    values["psnr_gain"] = values["psnr"] - values["input_psnr"]
    _, owner = np.unique(np.asarray(pictures.patients, dtype=object), return_inverse=True)
    metrics = {name: intervals.mean(per_patient(each, owner), resamples, seed) for name, each in values.items()}
    surely_nearer = (metrics["psnr_gain"].low or 0.0) > 0
    copies = metrics["kept_psnr"].value > metrics["psnr"].value and not surely_nearer
    return PictureScores(metrics, copies)


def psnr(target: np.ndarray, drawn: np.ndarray) -> float:
    """Peak signal-to-noise ratio, in dB: 10 log10(255² / mean squared difference), at most `MOST_PSNR`.

    Args:
        target, drawn: uint8 [height, width, 1 or 3], of one size; grey counts as three equal channels.
    """
    one, other = _comparable(target, drawn)
    error = float(np.mean((one - other) ** 2))
    return min(MOST_PSNR, 10 * float(np.log10(255**2 / error))) if error else MOST_PSNR


def ssim(target: np.ndarray, drawn: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) in Gaussian windows of 11 pixels, deviation 1.5; 1 of equal pictures.

    Args:
        target, drawn: uint8 [height, width, 1 or 3], of one size from 11 x 11 up; grey counts as three equal channels.
    """
    from monai.metrics.regression import KernelType, compute_ssim_and_cs  # all of MONAI, half a second of it

    one, other = (torch.from_numpy(each.transpose(2, 0, 1)[None]) for each in _comparable(target, drawn))
    similarity, _ = compute_ssim_and_cs(
        other,
        one,
        2,
        kernel_size=(WINDOW, WINDOW),
        kernel_sigma=(SIGMA, SIGMA),
        data_range=255,
        kernel_type=KernelType.GAUSSIAN,
    )
    return float(similarity.mean())


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The distance of two sets of features as if both were normal (Heusel et al. 2017): |m - m'|² + tr(C + C' - 2 (C C')^½).

    Args:
        one, other: features, [pictures, width], of at least two pictures each.
    """
    if min(len(one), len(other)) < 2:
        raise UserError("a distance between sets of pictures needs two pictures of each")
    means = np.sum((one.mean(0) - other.mean(0)) ** 2)
    spreads = [np.atleast_2d(np.cov(each, rowvar=False)) for each in (one, other)]
    root = np.real(sqrtm(spreads[0] @ spreads[1]))
    return float(means + np.trace(spreads[0] + spreads[1] - 2 * root))


def _comparable(target: np.ndarray, drawn: np.ndarray) -> list[np.ndarray]:
    """float32 [height, width, 3].

    Raises:
        ValueError: the pictures are not of one size.
    """
    if target.shape[:2] != drawn.shape[:2]:
        raise ValueError(f"pictures of {target.shape[:2]} and {drawn.shape[:2]} cannot be compared")
    return [np.broadcast_to(each.astype(np.float32), (*each.shape[:2], 3)).copy() for each in (target, drawn)]
