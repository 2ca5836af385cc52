"""Judge a model on prepared patients, with 95 % intervals.

python jobs/evaluate_lung.py --model models:/raymed-lung@champion --data PREPARED --split test
python jobs/evaluate_lung.py --model models:/raymed-lung@champion --data OTHER_HOSPITAL --split all
python jobs/evaluate_lung.py --model runs/search/trials/trial-0003/step-00000120-ab12cd34 --data PREPARED --split val
python jobs/evaluate_lung.py --model work_dirs/med_cls/checkpoint-2000 --data PREPARED    # an InternVL trained elsewhere
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from raymed.data.prepared import Prepared
from raymed.job.job import JobOptions, Outcome, run
from raymed.storage.folder import Folder


@dataclass(frozen=True, kw_only=True)
class Evaluate(JobOptions):
    """Options of judging a model.

    Attributes:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, a folder with a model or checkpoint, or an InternVL
            folder that was trained elsewhere, which is asked to choose from the label table of the data.
        data: Folder or URI of prepared data (jobs/prepare_lung.py).
        split: Which patients: train, val, test or all.
        fold: Cross-validation fold that is val (default: the stored split).
        per_patient: Slices of a patient that are looked at (0 = as the model was trained; --choice all takes all).
        choice: Which: uniform, middle or all (default: as the model was trained).
        method: How slices decide: mean of their probabilities, of the logarithms of those (log-mean), or majority vote
            (figures of decisions only).
        micro_batch: Slices that are predicted at once.
        workers: Ray actors that predict; 1 works in this process.
        bootstrap: Resamples of patients behind the interval of the loss.
        out: Folder for patients.csv (or images.csv) and slices.csv: label, decision, probabilities (default: neither).
    """

    model: str
    data: str
    split: Literal["train", "val", "test", "all"] = "test"
    fold: int | None = None
    per_patient: int = 0
    choice: Literal["uniform", "middle", "all"] | None = None
    method: Literal["mean", "log-mean", "vote"] = "mean"
    micro_batch: int = 32
    workers: int = 1
    bootstrap: int = 1000
    out: str | None = None


def main(options: Evaluate) -> Outcome:
    from raymed.evaluation.calibration import Temperature
    from raymed.evaluation.predict import chosen_rows, predict_rows
    from raymed.systems.lung.elsewhere import open_lung
    from raymed.systems.lung.evaluation import Judged, looked_at

    prepared = Prepared.open(options.data)
    model = open_lung(options.model, options.tracking, prepared.labels, prepared.size)
    trained = model.slices.unlimited
    slices = replace(
        trained, per_patient=options.per_patient or trained.per_patient, choice=options.choice or trained.choice
    )
    rows = chosen_rows(prepared, options.split, options.fold, slices, options.seed)
    notes = model.notes(prepared, prepared.columns(rows, ["patient"])["patient"])
    if slices != trained:
        notes.append(f"asked about other slices than it was trained on: {slices.told}; trained on {trained.told}")
    if options.dry_run:
        text = "\n".join([*notes, f"would judge {len(rows)} slices"])
        return Outcome(text, {"slices": len(rows), "notes": notes})
    logits, columns = predict_rows(model.open(), prepared, rows, options.micro_batch, options.workers)
    temperature = model.inference.temperature if model.inference else Temperature()
    unit = prepared.manifest.unit
    judged = Judged.of(logits, columns, prepared.labels, temperature, options.method, options.bootstrap, options.seed, unit)
    lines = [*judged.lines(), *notes]
    if options.out is not None:
        lines.append(judged.write(Folder.at(options.out)))
    if options.split in ("test", "all"):
        tested = set(prepared.columns(prepared.rows("test", options.fold), ["patient"])["patient"])
        ids = [patient for patient in judged.patients.ids.astype(str).tolist() if patient in tested]
        lines += looked_at(options.model, options.tracking, ids, unit)
    count = judged.evaluation.patients
    lines.append(f"{model.name} on {count} {unit}s ({options.split}) of {prepared.folder.uri}")
    data = {"model": model.name, "data": prepared.digest, "split": options.split, "notes": notes}
    return Outcome("\n".join(lines), data | judged.data())


if __name__ == "__main__":
    run(Evaluate, main)
