"""From people's own pictures to a CSV with one line per patient: what the prediction jobs of all systems share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from raymed.data.sources import Listing, SourceSettings, list_source, some
from raymed.errors import UserError
from raymed.job.job import JobOptions, Outcome
from raymed.language import say
from raymed.spreadsheet import to_csv
from raymed.storage.folder import Folder, require_other

if TYPE_CHECKING:
    from raymed.evaluation.predict import Inference, Model

FOLDERS = ("folders", "dicom", "nifti")  # formats in which a folder may be a class's or a patient's
MOST = 10  # ways in which patients are unlike the training pictures that are told


@dataclass(frozen=True, kw_only=True)
class PredictOptions(JobOptions):
    """Options of predicting.

    Attributes:
        input: A folder, picture, CSV, DICOM series or NIfTI volume.
        out: The CSV to write; columns patient_id, decision, shown_as, p_<class>, slices, model, note.
        source: How the input is read. With class folders above those of patients, `source.labelled true` passes over them.
        micro_batch: Slices that are predicted at once.
        workers: Ray actors that predict; 1 works in this process.
    """

    input: str
    out: str
    source: SourceSettings = field(default_factory=lambda: SourceSettings(labelled=False, patient_ids="tell"))
    micro_batch: int = 32
    workers: int = 1


def predict(options: PredictOptions, inference: Inference, open_network: Callable[[], Model]) -> Outcome:
    """Predict every patient of the input and write the CSV.

    Args:
        open_network: called once it is known that there is something to predict.

    Raises:
        UserError: the model was made under another pixel rule, the input cannot be read, its folders may be classes instead
            of patients, or the CSV cannot be written.
    """
    import pandas as pd

    from raymed.data.geometry import mixed
    from raymed.evaluation.predict import predict_studies, reasons, table

    inference.image.require_rule()
    listing = list_source(Path(options.input), options.source, usable=False)
    if not options.source.labelled and not options.source.patient_regex:
        _refuse_classes(listing, inference)
    _require_one_class(listing)
    lost = reasons(refusal for refusal in listing.refusals if refusal.patient is None)
    slices = sum(len(study.slices) for study in listing.studies)
    found = f"{listing.format}: {slices} slices in {len(listing.studies)} studies"
    warnings = [*listing.notes, *filter(None, [mixed(listing)]), *(f"not used: {line}" for line in lost)]
    if options.dry_run:
        text = "\n".join([*warnings, found, say("dry run: nothing was written")])
        return Outcome(text, {"found": found, "warnings": warnings})
    out = Path(options.out).expanduser().resolve()
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name the CSV to write, such as {out / 'predictions.csv'}")
    Folder.at(out.parent).check_writable()  # before hours of work
    if out.exists():
        require_other(
            out, options.input, *(listing.root / piece.path for study in listing.studies for piece in study.slices)
        )
        warnings.append(say("{out}: an earlier file of this name was replaced", out=out))
    predictions = list(predict_studies(open_network(), listing, inference, options.micro_batch, options.workers))
    unlike = Counter(how for each in predictions for how in each.unlike)
    warnings += [f"unlike the training pictures: {how} ({count} patients)" for how, count in unlike.most_common(MOST)]
    lines = pd.DataFrame(table(predictions, inference))
    Folder.at(out.parent).write(out.name, to_csv(lines))
    undecided = int(lines["decision"].isna().sum())
    decided = {str(name): count for name, count in lines["decision"].value_counts().items()}
    data = {"out": str(out), "patients": len(lines), "decided": decided, "undecided": undecided, "warnings": warnings}
    words = [
        *warnings,
        found,
        say(
            "decided: {decided}; without a usable slice: {undecided} patients",
            decided=", ".join(f"{name} {count}" for name, count in inference.labels.told(decided).items()) or say("none"),
            undecided=undecided,
        ),
        say("predictions: {out}", out=out),
    ]
    return Outcome("\n".join(words), data)


def _refuse_classes(listing: Listing, inference: Inference) -> None:
    """Folders named after the classes would be taken for patients, and all who lie in one for a single person."""
    patients, labels = sorted({study.patient for study in listing.studies}), inference.labels
    classes = [each for each in patients if labels.knows(each) and each not in labels.codes]  # 1 and 2 may well be patients
    if classes and listing.format in FOLDERS:
        raise UserError(
            f"{listing.root}: {', '.join(classes)} are named like classes, not like patients. If the "
            "patients' folders lie in them, pass --source.labelled true; else name the patient with "
            "--source.patient-regex"
        )


def _require_one_class(listing: Listing) -> None:
    """Patients who are numbered anew in each class folder would be taken for one person."""
    classes: dict[str, set[str]] = {}
    for study in listing.studies:
        if study.label is not None:
            classes.setdefault(study.patient, set()).add(study.label)
    several = [f"{patient} ({' and '.join(sorted(labels))})" for patient, labels in classes.items() if len(labels) > 1]
    if several and listing.format in FOLDERS:
        raise UserError(
            f"{listing.root}: {len(several)} patients are in several classes, as one person: "
            f"{some(several)}. If they are several persons, tell them apart with --source.patient-regex "
            "'^([^/]+/[^/]+)/'; else put each into one class"
        )
