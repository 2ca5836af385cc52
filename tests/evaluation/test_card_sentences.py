"""Words are data: each sentence of a model card that claims something has a rule, and cards on which it holds and does not.

A sentence that is on a card and in neither table below is a failure, so none is added without its rule.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from search_report import CLASSES, patients
from test_sentences import FACTS, assessed, calibrated

from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.registry.assessment import CardFacts
from raymed.registry.candidate import Candidate, Refit
from raymed.registry.loss_assessment import LossAssessment
from raymed.training.checkpoint import PREDICTIONS, Progress, new_name
from raymed.training.checkpoint import seal as seal_checkpoint

CLAIMS = {
    # sentence of the card: a card on which it holds, and one on which it does not
    "Decides per patient between: ": ("usual", "images"),
    "Decides per image between: ": ("images", "usual"),
    "The patient's probabilities are the mean over 16 slices (choice: uniform) of each patient": ("usual", "all slices"),
    "The patient's probabilities are the mean over all slices of each patient": ("all slices", "usual"),
    "Each image decides for itself.": ("images", "usual"),
    "grey values as in the files: no window of ours": ("usual", "CT"),
    "Pictures: window lung": ("CT", "usual"),
    "a patient with anything else is given one of them all the same": ("usual", "images"),
    "an image with anything else is given one of them all the same": ("images", "usual"),
    "**Pictures, not patients**": ("images", "usual"),
    "**Figures belong to the model before refitting.**": ("refit", "usual"),
    "no held-out patients are left to judge them on": ("refit on all", "refit"),
    "judges them on patients they were not trained on": ("refit", "refit on all"),
    "The registered weights were trained again on every patient of train + val": ("refit", "usual"),
    "The registered weights come from the same configuration, trained again on every patient": ("loss, refit", "loss"),
    "**There is no test split.**": ("no test", "usual"),
    "The figures are those of the validation patients, which also chose the model: they flatter it.": ("no test", "usual"),
    "test patients; 95 % intervals in brackets.": ("usual", "no test"),
    "validation patients; 95 % intervals in brackets.": ("no test", "usual"),
    "**These test patients have judged 3 models so far.**": ("third look", "usual"),
    "**These test patients have judged 3 models": ("loss, third look", "loss"),  # of texts and pictures, too
    "Figures of a model that is picked among them by its test figures flatter it.": ("third look", "usual"),
    "Compared with: *always normal*, right for 25.0 %": ("guessing", "no test"),
    "the model is not surely better than that": ("guessing", "usual"),
    "more than chance, so a model can look good by telling sources apart": ("telling source", "usual"),
    "over pairs of patients of one source": ("rare", "usual"),
    "means over classes leave that out": ("class without patients", "usual"),
    "fewer than 10 patients: one patient more would change": ("rare", "usual"),
    "Temperature scaling, fitted on 96 validation patients: ": ("usual", "refit"),
    "fitted on 96 validation patients **with the model before refitting**, for the data have no folds": (
        "refit",
        "cross-fitted",
    ),
    "Temperature scaling, cross-fitted: 3 networks of the same configuration": ("cross-fitted", "refit"),
    "Figures here are of the model before refitting, whose temperature": ("cross-fitted", "refit"),
    "**More than chance explains**: do not take the probabilities at their word.": ("too sure", "usual"),
    "Slope cannot be formed": ("perfect", "usual"),
    "patients without a usable slice": ("usual", "images"),
    "no patients share near-duplicate pictures": ("usual", "warned"),
    "NOT kept in one split": ("warned", "usual"),
    "no patient, study or picture is in two splits": ("usual", "images"),
    "whether a patient is, nobody knows": ("images", "usual"),
    "**The registered model is the mean of 3 networks, each trained without one fold.**": ("mean of folds", "no test"),
    "Every patient is judged by the one that was trained without it, in the epoch that its fold chose, which flatters; the "
    "mean itself can be judged on none of these patients.": ("mean of folds", "no test"),
    "left-out patients; 95 % intervals in brackets.": ("mean of folds", "no test"),
    "Temperature scaling, fitted on what 3 networks, each trained without one fold, say of that fold's patients": (
        "mean of folds",
        "no test",
    ),
    "**Trained elsewhere, nobody here knows on whom.**": ("elsewhere", "usual"),
    "If patients who are judged here were among them, the figures flatter it.": ("elsewhere", "usual"),
    "which also fitted its temperature: they flatter it.": ("elsewhere, no test", "no test"),
    "Trained on pictures of this kind: ": ("usual", "elsewhere"),
    "Judged on pictures of this kind: ": ("elsewhere", "usual"),
    "**Trained on a limit, as for a first try**": ("limit", "usual"),
    "whose files do not say what they show": ("usual", "CT"),
    "Trained on pictures of this kind: 72 CT": ("CT", "usual"),
    "preset tiny from random weights; run": ("usual", "ImageNet"),
    "from random weights but for efficientnet-lite0, from ImageNet weights": ("ImageNet", "usual"),
    "weights from InternVL2_5-1B": ("started", "usual"),
    "Not stated.": ("usual", "licensed"),
    "The weights started from random numbers": ("usual", "licensed"),
    "The weights started from InternVL2_5-1B, whose licence applies": ("started", "usual"),
    "started from ImageNet weights under Apache-2.0": ("ImageNet", "usual"),
    "val_loss is that of step 8, before it.": ("loss, later step", "loss"),
    "**Loss and figures belong to the model before refitting.**": ("loss, refit", "loss"),
}
FIXED = (
    # says what is shown, what a word means or what to do: nothing that could be otherwise
    r"^Research use\.$",
    r"^It supports the reading of images by a physician",
    r"^Figures hold for (patients|images) like those it was judged on; another scanner",
    r"^`loss` is the negative log likelihood",
    r"^Compared with: \*always \w+\*, right for [\d.]+ % of these (patients|images)",
    r"^Temperature scaling, fitted on \d+ validation images: ",
    r"^\d+ test images; 95 %",
    r"^Expected calibration error [\d.]+; a perfectly calibrated model would show",
    r"^Slope -?[\d.]+ \[",
    r"^Others are told by a note beside the prediction\.$",
    r"^Prepared data with digest `\w+`; \d+ slices in quarantine, no near-duplicate images\.$",
    r"^Terms of the hospital\.$|^The search\.$|^A lower loss does not prove a better one\.$",  # from outside
)


def settings(**model: object) -> dict[str, object]:
    return {"recipe": "lung", "model": model}


@pytest.fixture(scope="module")
def cards(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    def changed(**manifest: object) -> Prepared:
        return dataclasses.replace(prepared, manifest=dataclasses.replace(prepared.manifest, **manifest))  # type: ignore[arg-type]

    def facts(**changes: object) -> CardFacts:
        return dataclasses.replace(FACTS, **changes)  # type: ignore[arg-type]

    def candidate(slices: SliceSettings) -> Candidate:
        return Candidate("run", "checkpoint", prepared.folder.uri, None, slices, 0)

    good, sharp = patients((30, 30, 30, 30), 6.0, 2), patients((30, 30, 30, 30), 9.0, 1)
    told = np.where(sharp.labels == 0, "east", "west").astype(object)
    usual, limited = assessed(prepared, calibrated(1.0, 200)), candidate(SliceSettings(limit=4))
    elsewhere = dataclasses.replace(usual.candidate, trained_here=False)
    folded = dataclasses.replace(usual.candidate, folds=3)
    scans = prepared.index.set_column(
        prepared.index.schema.get_field_index("modality"), "modality", [["CT"] * prepared.index.num_rows]
    ).cast(prepared.index.schema)
    warned = changed(near_duplicates=[["a", "b"]], settings=prepared.manifest.settings | {"near_duplicates": "warn"})
    folds = tuple(fold(prepared, number, tmp_path_factory.mktemp("fold")) for number in range(prepared.folds))
    checkpoint = tmp_path_factory.mktemp("trial") / new_name(8, 0)
    checkpoint.mkdir()
    Progress(global_step=8, history=[{"val_loss": 1.25, "global_step": 8}]).write(checkpoint)
    later = checkpoint.parent / new_name(9, 1)
    later.mkdir()
    Progress(global_step=9, history=[{"val_loss": 1.25, "global_step": 8}]).write(later)

    def loss(folder: Path) -> LossAssessment:
        judged = dataclasses.replace(usual.candidate, checkpoint=str(folder))
        return LossAssessment.of(judged, prepared, "A lower loss does not prove a better one.", "")

    return {
        "usual": usual.card(FACTS),
        "no test": assessed(prepared, None).card(FACTS),
        "third look": usual.card(facts(looks=3)),
        "refit": usual.card(facts(refit=Refit("there", ("train", "val")))),
        "refit on all": usual.card(facts(refit=Refit("there", ("train", "val", "test")))),
        "cross-fitted": usual.card(facts(refit=Refit("there", ("train", "val"), folds))),
        "images": assessed(changed(patients_known=False), good).card(FACTS),
        "all slices": assessed(prepared, good, candidate=candidate(SliceSettings(choice="all"))).card(FACTS),
        "CT": assessed(dataclasses.replace(prepared, index=scans), good).card(FACTS),
        "too sure": assessed(prepared, calibrated(3.0)).card(FACTS),
        "perfect": assessed(prepared, dataclasses.replace(sharp, probabilities=np.eye(4)[sharp.labels])).card(FACTS),
        "guessing": assessed(prepared, patients((20, 20, 20, 20), 0.0, 3)).card(FACTS),
        "telling source": assessed(prepared, dataclasses.replace(sharp, sources=told)).card(FACTS),
        "class without patients": assessed(prepared, good.part(good.labels != 3)).card(FACTS),
        "rare": assessed(prepared, patients((20, 20, 20, 4), 3.0, 3)).card(FACTS),
        "limit": assessed(prepared, good, candidate=limited, usage=limited.usage(prepared)).card(FACTS),
        "elsewhere": assessed(prepared, good, candidate=elsewhere, usage=elsewhere.usage(prepared)).card(FACTS),
        "elsewhere, no test": assessed(prepared, None, candidate=elsewhere, usage=elsewhere.usage(prepared)).card(FACTS),
        "mean of folds": assessed(prepared, None, candidate=folded, usage=folded.usage(prepared)).card(FACTS),
        "started": usual.card(facts(settings=settings(path="/models/InternVL2_5-1B"))),
        "ImageNet": usual.card(facts(settings=settings(preset="small-cnn+efficientnet-lite0"))),
        "licensed": usual.card(facts(licence="Terms of the hospital.")),
        "warned": assessed(warned, good).card(FACTS),
        "loss": loss(checkpoint).card(FACTS),
        "loss, later step": loss(later).card(FACTS),
        "loss, third look": loss(checkpoint).card(facts(looks=3)),
        "loss, refit": loss(checkpoint).card(facts(refit=Refit("there", ("train", "val")))),
    }


def fold(prepared: Prepared, number: int, run: Path) -> str:
    """The last checkpoint of a network that was trained without a fold, and then asked about it."""
    folder = run / new_name(1, 0)
    folder.mkdir()
    rows = prepared.rows("val", number)
    labels = prepared.columns(rows, ["label"])["label"]
    np.savez(folder / PREDICTIONS, row=rows, logits=3 * np.eye(len(CLASSES), dtype=np.float32)[labels])
    seal_checkpoint(folder, 0, 1)
    return str(folder)


def sentences(card: str) -> list[str]:
    """The sentences of a card's paragraphs, without headings, tables and settings."""
    prose = [part for part in card.strip().split("\n\n") if not part.startswith(("#", "|", "```"))]
    return [
        each for part in prose for each in re.split(r"(?:(?<=[.?!])|(?<=[.?!]\*\*)) (?=[A-Z0-9`*])", " ".join(part.split()))
    ]


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_sentence_is_on_the_card_where_it_holds_and_not_where_it_does_not(claim: str, cards: dict[str, str]) -> None:
    holds, fails = CLAIMS[claim]
    assert claim in cards[holds]
    assert claim not in cards[fails]


def test_no_sentence_is_on_a_card_without_a_rule(cards: dict[str, str]) -> None:
    for name, card in cards.items():
        for sentence in sentences(card):
            ways = sentence, sentence.replace("image", "patient")  # one rule for both words
            known = any(claim in way or way in claim for claim in CLAIMS for way in ways)
            assert known or any(re.search(words, sentence) for words in FIXED), (
                f"{sentence!r} of the card {name!r} is in no table: give it a rule and a card on which it is left out"
            )
