"""The page of a search: figures of the winner, what it drew beside what was wanted, and all trials; one HTML file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raymed.evaluation.picture_metrics import psnr
from raymed.evaluation.report import picture_uri
from raymed.evaluation.search_summary import SearchSummary
from raymed.systems.unimedvl.evaluation import Drawings
from raymed.systems.unimedvl.evaluation_files import panels

if TYPE_CHECKING:
    from raymed.registry.assessment import CardFacts
    from raymed.systems.unimedvl.assessment import GeneralistAssessment

PANEL = 768  # pixels: the width of input, target and drawing together
MEANINGS = {
    "exact": "share of answers that are the reference's words",
    "token_f1": "F1 of an answer's words",
    "bleu": "of an answer's runs of words",
    "rouge_l": "longest common run of words",
    "psnr": "dB; of the drawing to its target",
    "ssim": "structural similarity to the target, 1 of equal pictures",
    "input_psnr": "dB; of the unchanged input to the target",
    "input_ssim": "structural similarity of the unchanged input to the target",
    "kept_psnr": "dB; of the drawing to its input",
    "psnr_gain": "dB; how much nearer to the target the drawing is than the input",
}


def render(assessment: GeneralistAssessment, search: SearchSummary, facts: CardFacts) -> str:
    """The page. It names no patient, and loads nothing."""
    evaluation = assessment.evaluation
    return assessment.rendered(
        search,
        facts,
        "raymed.systems.unimedvl",
        "report.html",
        assessment=assessment,
        metrics=evaluation.metrics(),
        meanings=MEANINGS,
        panels=described(evaluation.drawings) if evaluation.drawings else [],
    )


def described(drawings: Drawings) -> list[dict[str, str]]:
    """The first panels as data URIs, their data set, and how near the drawing is to its target."""
    shown = zip(panels(drawings), drawings.sources, drawings.pictures.targets, drawings.pictures.drawn, strict=False)
    return [
        {
            "source": source,
            "picture": picture_uri(np.asarray(panel), PANEL),
            "psnr": f"{psnr(target, drawn):.1f}",
        }
        for panel, source, target, drawn in shown
    ]
