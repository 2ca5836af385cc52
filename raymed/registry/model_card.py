"""The model card: what a registered model is, how good it is per patient, and what it must not be used for.

After Mitchell et al. 2019, "Model Cards for Model Reporting". No patient is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raymed.data.acquisition import Acquisition
from raymed.data.leak import guard
from raymed.data.prepared import Prepared
from raymed.evaluation.comparison import comparison
from raymed.evaluation.metrics import RARE, Evaluation
from raymed.evaluation.predict import Inference
from raymed.evaluation.summary import show
from raymed.language import say
from raymed.models.settings import LITE

if TYPE_CHECKING:
    from raymed.data.plan import SliceSettings
    from raymed.registry.assessment import CardFacts
    from raymed.registry.candidate import Refit
    from raymed.registry.patient_assessment import PatientAssessment

CAUTION = """Research use. It supports the reading of images by a physician and does not replace it; it has no clearance as
a medical device. It knows only the classes below: {one} with anything else is given one of them all the same. Figures
hold for {units} like those it was judged on; another scanner, hospital, population or preparation of the pictures can
change them, so judge it on your own {units} first."""


TRAINED_ELSEWHERE = """**Trained elsewhere, nobody here knows on whom.** If {units} who are judged here were among them, the
figures flatter it."""


def write(facts: CardFacts, inference: Inference, assessment: PatientAssessment) -> str:
    """The card of a classifier, as Markdown."""
    prepared, refit = assessment.prepared, facts.refit
    manifest, unit, units = prepared.manifest, assessment.validation.unit, assessment.validation.units
    classes = ", ".join(f"{row.name} ({' / '.join(row.names.values()) or row.code})" for row in inference.labels.classes)
    candidate = assessment.candidate
    fold = 0 if candidate.folds else candidate.fold
    trained_on = [] if candidate.trained_here else [TRAINED_ELSEWHERE.format(units=units).replace("\n", " ")]
    shown = inference.acquisition
    if not candidate.trained_here:
        shown = Acquisition.of(prepared, np.concatenate(list(candidate.used_rows(prepared).values())))
    window = shown.window(inference.image.window)
    window += f"; {inference.image.resize} to {inference.image.size} px"
    parts = [
        f"# {inference.name}",
        f"Decides per {unit} between: {classes}. {_pooling(inference.slices, unit)} Pictures: {window}.",
        "## Use",
        CAUTION.format(one=f"{'an' if unit == 'image' else 'a'} {unit}", units=units).replace("\n", " "),
        f"## Figures per {unit}",
        *(f"**Pictures, not patients**: {warning}." for warning in unknown_patients(prepared)),
        *trained_on,
        *_figures(assessment, refit, facts.looks),
        "## Calibration",
        _temperature(inference, assessment, refit),
        *_calibration(assessment),
        "## Data",
        f"Prepared data with digest `{prepared.digest}`; {manifest.quarantined} slices in quarantine, "
        + (f"{len(manifest.left_out)} patients without a usable slice, " if manifest.patients_known else "")
        + f"{near_duplicates(prepared)}.",
        *_used(assessment, refit),
        f"{'Trained' if candidate.trained_here else 'Judged'} on pictures of this kind: {shown}."
        + (" Others are told by a note beside the prediction." if candidate.trained_here else ""),
        f"Checked again before judging: {guard(prepared.index, fold, manifest.patients_known)}.",
        "## Network",
        f"Recipe {facts.settings.get('recipe', '')}, {_origin(facts.settings)}; run `{assessment.candidate.run_id}`.",
        "## Licence",
        facts.licence or licence(facts.settings),
    ]
    return "\n\n".join(parts) + "\n"


def _pooling(slices: SliceSettings, unit: str) -> str:
    """How pictures decide."""
    if unit == "image":
        return "Each image decides for itself."
    count = "all slices" if slices.choice == "all" else f"{slices.per_patient} slices (choice: {slices.choice})"
    return f"The patient's probabilities are the mean over {count} of each {slices.per}, then temperature-scaled."


def _temperature(inference: Inference, assessment: PatientAssessment, refit: Refit | None) -> str:
    """Whom the temperature was fitted on; of a refit, whether it is the registered network's."""
    validation, words = assessment.validation, inference.temperature.words(assessment.slices)
    if assessment.candidate.folds:
        return (
            f"Temperature scaling, fitted on what {assessment.candidate.folds} networks, each trained without one fold, say "
            f"of that fold's {validation.units}, {validation.patients} in all: {words}."
        )
    if refit is None:
        return f"Temperature scaling, fitted on {validation.patients} validation {validation.units}: {words}."
    if refit.folds:
        return (
            f"Temperature scaling, cross-fitted: {len(refit.folds)} networks of the same configuration, each trained "
            f"without a fold of train + val and asked about it, give {words}. Figures here are of the model before "
            f"refitting, whose temperature was fitted on {validation.patients} validation {validation.units}: "
            f"{assessment.scaling}."
        )
    return (
        f"Temperature scaling, fitted on {validation.patients} validation {validation.units} **with the model before "
        f"refitting**, for the data have no folds: {words}."
    )


def _figures(assessment: PatientAssessment, refit: Refit | None, looks: int) -> list[str]:
    parts, units = [], assessment.validation.units
    if refit is not None:
        left = f"no held-out {units} are left to judge them on"
        if "test" not in refit.splits:
            left = f"`--split test` of the evaluation job judges them on {units} they were not trained on"
        parts.append(
            f"**Figures belong to the model before refitting.** The registered weights come from the same configuration, "
            f"trained again on {' + '.join(refit.splits)}; {left}."
        )
    if assessment.test is None and assessment.candidate.folds:
        validation = assessment.validation
        parts.append(
            f"**The registered model is the mean of {assessment.candidate.folds} networks, each trained without one fold.** "
            f"Every {validation.unit} is judged by the one that was trained without it, in the epoch that its fold chose, "
            f"which flatters; the mean itself can be judged on none of these {units}."
        )
        return [*parts, *_tables(validation, "left-out")]
    if assessment.test is None:
        parts.append(
            f"**There is no test split.** The figures are those of the validation {units}, which also "
            f"{'chose the model' if assessment.candidate.trained_here else 'fitted its temperature'}: they flatter it."
        )
        return [*parts, *_tables(assessment.validation, "validation")]
    return [*parts, *looked_at(units, looks), *_tables(assessment.test, "test")]


def looked_at(units: str, looks: int) -> list[str]:
    """A warning where test patients have judged other models, too."""
    if looks <= 1:
        return []
    return [
        f"**These test {units} have judged {looks} models so far.** Figures of a model that is picked among them by its "
        "test figures flatter it."
    ]


def _tables(evaluation: Evaluation, split: str) -> list[str]:
    figures = [f"| {name} | {show(estimate)} |" for name, estimate in evaluation.metrics.items()]
    rows = [
        f"| {each.name}{' *' if each.rare else ''} | {each.support} | {show(each.sensitivity)} | "
        f"{show(each.specificity)} | {show(each.precision)} | {show(each.auc)} |"
        for each in evaluation.classes
    ]
    unit, units = evaluation.unit, evaluation.units
    head = [f"| class | {units} | sensitivity | specificity | precision | AUC |", "|---|---|---|---|---|---|"]
    parts = [
        f"{evaluation.patients} {split} {units}; 95 % intervals in brackets. `loss` is the negative log likelihood of the "
        f"{unit}'s probability.",
        "\n".join(["| figure | value |", "|---|---|", *figures]),
        "\n".join([*head, *rows]),
        "Compared with: " + "; ".join(f"*{title}*, {sentence}" for title, sentence in comparison(evaluation).items()) + ".",
    ]
    if any(each.rare for each in evaluation.classes):
        parts.append(f"\\* fewer than {RARE} {units}: one {unit} more would change these figures.")
    return parts


def _calibration(assessment: PatientAssessment) -> list[str]:
    """Whether the probabilities mean what they say, on patients that did not fit the temperature where there are any."""
    calibration = (assessment.test or assessment.validation).calibration
    if calibration is None:
        return []
    error = (
        f"Expected calibration error {calibration.error:.3f}; a perfectly calibrated model would show "
        f"{calibration.perfect:.3f} on average and by chance up to {calibration.perfect_high:.3f}."
    )
    word = "**More than chance explains**: do not take the probabilities at their word."
    slope = "cannot be formed: every decision is right" if calibration.slope is None else show(calibration.slope)
    slope = f"Slope {slope}; share right minus mean confidence {show(calibration.gap)}."
    return [" ".join([error, *([word] if calibration.beyond_chance else []), slope])]


def unknown_patients(prepared: Prepared) -> list[str]:
    """A warning where nobody said whose the pictures are; none where patients are known."""
    if prepared.manifest.patients_known:
        return []
    return [
        say(
            "nobody said whose the pictures are, so figures count images: a patient with several may be in training and "
            "test, and the figures then flatter"
        )
    ]


def near_duplicates(prepared: Prepared) -> str:
    """What was done about patients who share near-duplicate pictures."""
    manifest = prepared.manifest
    groups, mode = len(manifest.near_duplicates), manifest.settings.get("near_duplicates", "group")
    if not groups:
        return (
            say("no patients share near-duplicate pictures") if manifest.patients_known else say("no near-duplicate images")
        )
    who = say("patients who share near-duplicate pictures") if manifest.patients_known else say("near-duplicate images")
    counted = say("1 group") if groups == 1 else say("{groups} groups", groups=groups)
    if mode == "warn":
        return say("{groups} of {who}, NOT kept in one split (near_duplicates warn)", groups=counted, who=who)
    return say("{groups} of {who}, each kept in one split", groups=counted, who=who)


def _used(assessment: PatientAssessment, refit: Refit | None) -> list[str]:
    """Who was trained and judged on, of those there are."""
    usage, parts = assessment.usage, []
    if usage.leaves_patients_out:
        parts.append(f"**Trained on a limit, as for a first try**: {usage}.")
    lines = [
        ["patients (slices) used" if usage.unit == "patient" else "images (pictures) used", *usage.splits],
        ["---"] * (len(usage.splits) + 1),
        *usage.table(),
    ]
    parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if refit is not None:
        parts.append(f"The registered weights were trained again on every {usage.unit} of {' + '.join(refit.splits)}.")
    return parts


def _origin(settings: Mapping[str, Any]) -> str:
    model = settings.get("model", {})
    path = model.get("path")
    if path:
        return f"weights from {Path(path).name}"
    start = "from random weights" + (f" but for {LITE}, from ImageNet weights" if _has_lite(model) else "")
    return f"preset {model.get('preset')} {start}"


def _has_lite(model: Mapping[str, Any]) -> bool:
    return LITE in model.get("preset", "").split("+")


def licence(settings: Mapping[str, Any]) -> str:
    """What follows from the weights that a recipe with these settings started from."""
    model = settings.get("model", {})
    if model.get("path"):
        start = Path(model["path"]).name
        return f"Not stated. The weights started from {start}, whose licence applies; so do the terms of the data."
    if _has_lite(model):
        return f"Not stated. {LITE} started from ImageNet weights under Apache-2.0; the terms of the data apply too."
    return "Not stated. The weights started from random numbers; the terms of the data apply."
