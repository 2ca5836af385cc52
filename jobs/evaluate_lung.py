"""Judge a model on prepared patients, with 95 % intervals.

python jobs/evaluate_lung.py --model models:/raymed-lung@champion --data PREPARED --split test
python jobs/evaluate_lung.py --model models:/raymed-lung@champion --data OTHER_HOSPITAL --split all
python jobs/evaluate_lung.py --model runs/search/trials/trial-0003/step-00000120-ab12cd34 --data PREPARED --split val
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from raymed.data.prepared import Prepared
from raymed.job.job import JobOptions, Outcome, run
from raymed.spreadsheet import to_csv
from raymed.storage.folder import Folder


@dataclass(frozen=True, kw_only=True)
class Evaluate(JobOptions):
    """Options of judging a model.

    Attributes:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, or a folder with a model or checkpoint.
        data: Folder or URI of prepared data (jobs/prepare_lung.py).
        split: Which patients: train, val, test or all.
        fold: Cross-validation fold that is val (default: the stored split).
        method: How slices decide: mean of their probabilities, or majority vote (figures of decisions only).
        micro_batch: Slices that are predicted at once.
        workers: Ray actors that predict; 1 works in this process.
        bootstrap: Resamples of patients behind the interval of the loss.
        out: Folder for patients.csv and slices.csv: label, decision and probabilities of each (default: none is written).
    """

    model: str
    data: str
    split: Literal["train", "val", "test", "all"] = "test"
    fold: int | None = None
    method: Literal["mean", "vote"] = "mean"
    micro_batch: int = 32
    workers: int = 1
    bootstrap: int = 1000
    out: str | None = None


def main(options: Evaluate) -> Outcome:
    from raymed.evaluation.metrics import evaluate
    from raymed.evaluation.patients import softmax, to_patients
    from raymed.evaluation.predict import chosen_rows, predict_rows
    from raymed.evaluation.scores import overall
    from raymed.evaluation.summary import lines
    from raymed.evaluation.tables import patient_table, slice_table
    from raymed.recipes.exported import open_model
    from raymed.registry.address import resolve_model
    from raymed.tracking.tracker import Tracker

    resolved = resolve_model(options.model, Tracker.open(options.tracking))
    prepared = Prepared.open(options.data)
    rows = chosen_rows(prepared, options.split, options.fold, resolved.slices.unlimited, options.seed)
    notes = resolved.notes(prepared, prepared.columns(rows, ["patient"])["patient"])
    if options.dry_run:
        return Outcome("\n".join([*notes, f"would judge {len(rows)} slices"]), {"slices": len(rows), "notes": notes})
    logits, columns = predict_rows(open_model(resolved.network), prepared, rows, options.micro_batch, options.workers)
    names = prepared.labels.names
    probabilities = softmax(logits / (resolved.inference.temperature if resolved.inference else 1.0))
    patients = to_patients(probabilities, columns["patient"], columns["label"], columns["source"], options.method)
    evaluation = evaluate(patients, names, options.bootstrap, options.seed)
    per_slice = overall(columns["label"], probabilities)
    text = [
        *lines(evaluation),
        "",
        f"single slices ({len(rows)}): " + ", ".join(f"{name} {value:.3f}" for name, value in per_slice.items()),
        *notes,
    ]
    if options.out is not None:
        folder = Folder.at(options.out)
        folder.write("patients.csv", to_csv(patient_table(patients, names)))
        folder.write("slices.csv", to_csv(slice_table(columns, probabilities, names)))
        text.append(f"every patient and slice: {folder.uri}/patients.csv and slices.csv")
    text.append(f"{resolved.name} on {evaluation.patients} patients ({options.split}) of {prepared.folder.uri}")
    data = {"model": resolved.name, "data": prepared.digest, "split": options.split, "notes": notes}
    return Outcome("\n".join(text), data | {"evaluation": asdict(evaluation), "slices": per_slice})


if __name__ == "__main__":
    run(Evaluate, main)
