"""The model card: what a registered model is, how good it is per patient, and what it must not be used for.

After Mitchell et al. 2019, "Model Cards for Model Reporting". No patient is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymed.data.leak import guard
from raymed.data.prepared import Prepared
from raymed.evaluation.comparison import comparison
from raymed.evaluation.metrics import RARE, Evaluation
from raymed.evaluation.predict import Inference
from raymed.evaluation.summary import show
from raymed.models.settings import LITE

if TYPE_CHECKING:
    from raymed.registry.assessment import CardFacts
    from raymed.registry.candidate import Refit
    from raymed.registry.patient_assessment import PatientAssessment

CAUTION = """Research use. It supports the reading of images by a physician and does not replace it; it has no clearance as
a medical device. It knows only the classes below: a patient with anything else is given one of them all the same. Figures
hold for patients like those it was tested on; another scanner, hospital, population or preparation of the pictures can
change them, so test it on your own patients first."""


def write(facts: CardFacts, inference: Inference, assessment: PatientAssessment) -> str:
    """The card of a classifier, as Markdown."""
    prepared, refit = assessment.prepared, facts.refit
    manifest, slices = prepared.manifest, inference.slices
    classes = ", ".join(f"{row.name} ({' / '.join(row.names.values()) or row.code})" for row in inference.labels.classes)
    window = inference.acquisition.window(inference.image.window)
    window += f"; {inference.image.resize} to {inference.image.size} px"
    temperature = f"temperature {assessment.temperature:.3f}"
    parts = [
        f"# {inference.name}",
        f"Decides per patient between: {classes}. The patient's probabilities are the mean over "
        f"{'all slices' if slices.choice == 'all' else f'{slices.per_patient} slices (choice: {slices.choice})'} of each "
        f"{slices.per} ({window}), "
        f"temperature-scaled with {temperature}.",
        "## Use",
        CAUTION.replace("\n", " "),
        "## Patient-level figures",
        *(f"**Pictures, not patients**: {warning}." for warning in unknown_patients(prepared)),
        *_figures(assessment, refit, facts.looks),
        "## Calibration",
        f"Temperature scaling (Guo et al. 2017), fitted on {assessment.validation.patients} validation patients: "
        f"{temperature}.",
        *_calibration(assessment),
        "## Data",
        f"Prepared data with digest `{prepared.digest}`; {manifest.quarantined} slices in quarantine, "
        f"{len(manifest.left_out)} patients without a usable slice, "
        f"{near_duplicates(prepared)}.",
        *_used(assessment, refit),
        f"Trained on pictures of this kind: {inference.acquisition}. Others are told by a note beside the prediction.",
        f"Checked again before judging: {guard(prepared.index, assessment.candidate.fold, manifest.patients_known)}.",
        "## Network",
        f"Recipe {facts.settings.get('recipe', '')}, {_origin(facts.settings)}; run `{assessment.candidate.run_id}`.",
        "## Licence",
        facts.licence or licence(facts.settings),
    ]
    return "\n\n".join(parts) + "\n"


def _figures(assessment: PatientAssessment, refit: Refit | None, looks: int) -> list[str]:
    parts = []
    if refit is not None:
        left = "no held-out patients are left to judge them on"
        if "test" not in refit.splits:
            left = "`--split test` of the evaluation job judges them on patients they have not seen"
        parts.append(
            f"**Figures and temperature belong to the model before refitting.** The registered weights come from the same "
            f"configuration, trained again on {' + '.join(refit.splits)}; {left}."
        )
    if assessment.test is None:
        parts.append(
            "**There is no test split.** The figures are those of the validation patients, which also chose the model: they "
            "flatter it."
        )
        return [*parts, *_tables(assessment.validation, "validation")]
    if looks > 1:
        parts.append(
            f"**These test patients have judged {looks} models so far.** Figures of a model that is picked among them by "
            "its test figures flatter it."
        )
    return [*parts, *_tables(assessment.test, "test")]


def _tables(evaluation: Evaluation, split: str) -> list[str]:
    figures = [f"| {name} | {show(estimate)} |" for name, estimate in evaluation.metrics.items()]
    rows = [
        f"| {each.name}{' *' if each.rare else ''} | {each.support} | {show(each.sensitivity)} | "
        f"{show(each.specificity)} | {show(each.precision)} | {show(each.auc)} |"
        for each in evaluation.classes
    ]
    head = ["| class | patients | sensitivity | specificity | precision | AUC |", "|---|---|---|---|---|---|"]
    parts = [
        f"{evaluation.patients} {split} patients; 95 % intervals in brackets. `loss` is the negative log likelihood of the "
        "patient's probability.",
        "\n".join(["| figure | value |", "|---|---|", *figures]),
        "\n".join([*head, *rows]),
        "Compared with: " + "; ".join(f"*{title}*, {sentence}" for title, sentence in comparison(evaluation).items()) + ".",
    ]
    if any(each.rare for each in evaluation.classes):
        parts.append(f"\\* fewer than {RARE} patients: one patient more would change these figures.")
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
    slope = f"Slope {show(calibration.slope)}, share right minus mean confidence {show(calibration.gap)}."
    return [" ".join([error, *([word] if calibration.beyond_chance else []), slope])]


def unknown_patients(prepared: Prepared) -> list[str]:
    """A warning where nobody said whose the pictures are; none where patients are known."""
    if prepared.manifest.patients_known:
        return []
    return [
        "every picture counts as a patient of its own, for nobody said whose it is: a patient with several may be in "
        "training and test, and the figures then flatter"
    ]


def near_duplicates(prepared: Prepared) -> str:
    """What was done about patients who share near-duplicate pictures."""
    groups, mode = len(prepared.manifest.near_duplicates), prepared.manifest.settings.get("near_duplicates", "group")
    if not groups:
        return "no patients share near-duplicate pictures"
    if mode == "warn":
        return f"{groups} groups of patients who share near-duplicate pictures, NOT kept in one split (near_duplicates warn)"
    return f"{groups} groups of patients who share near-duplicate pictures, each kept in one split"


def _used(assessment: PatientAssessment, refit: Refit | None) -> list[str]:
    """Who was trained and judged on, of those there are."""
    usage, parts = assessment.usage, []
    if usage.leaves_patients_out:
        parts.append(f"**Trained on a limit, as for a first try**: {usage}.")
    lines = [
        ["patients (slices) used", *usage.splits],
        ["---"] * (len(usage.splits) + 1),
        *usage.table(),
    ]
    parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if refit is not None:
        parts.append(f"The registered weights were trained again on every patient of {' + '.join(refit.splits)}.")
    return parts


def _origin(settings: Mapping[str, Any]) -> str:
    model = settings.get("model", {})
    path = model.get("path")
    return f"weights from {Path(path).name}" if path else f"preset {model.get('preset')} from random weights"


def licence(settings: Mapping[str, Any]) -> str:
    """What follows from the weights that a recipe with these settings started from."""
    model = settings.get("model", {})
    if model.get("path"):
        start = Path(model["path"]).name
        return f"Not stated. The weights started from {start}, whose licence applies; so do the terms of the data."
    if LITE in model.get("preset", "").split("+"):
        return f"Not stated. {LITE} started from ImageNet weights under Apache-2.0; the terms of the data apply too."
    return "Not stated. The weights started from random numbers; the terms of the data apply."
