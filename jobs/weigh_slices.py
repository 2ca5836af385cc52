"""A model of the patient: learn which slices to look at (gated attention), and whether that beats the mean of all.

python jobs/weigh_slices.py --model models:/raymed-lung@champion --data PREPARED
python jobs/weigh_slices.py --model models:/raymed-lung@champion --data PREPARED --out HEAD

A small head is trained on what the model saw in the slices of the training patients, in seconds; both decide about the
validation patients, and are compared patient by patient. The model itself stays as it is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from raymed.data.prepared import Prepared
from raymed.job.job import JobOptions, Outcome, run
from raymed.storage.folder import Folder
from raymed.systems.lung.settings import HeadSettings


@dataclass(frozen=True, kw_only=True)
class WeighSlices(JobOptions):
    """Options of learning which slices to look at.

    Attributes:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, a folder with a model or checkpoint, or an InternVL
            folder that was trained elsewhere.
        data: Folder or URI of prepared data (jobs/prepare_lung.py).
        fold: Cross-validation fold that is val (default: the stored split).
        head: The head.
        micro_batch: Slices that are predicted at once.
        workers: Ray actors that predict; 1 works in this process.
        bootstrap: Resamples of patients behind the interval of the loss.
        out: Folder for the head and for slices.csv, what each slice of the validation patients weighs (default: neither).
    """

    model: str
    data: str
    fold: int | None = None
    head: HeadSettings = field(default_factory=HeadSettings)
    micro_batch: int = 32
    workers: int = 1
    bootstrap: int = 1000
    out: str | None = None


def main(options: WeighSlices) -> Outcome:
    from raymed.evaluation.predict import chosen_rows
    from raymed.systems.lung.elsewhere import open_lung
    from raymed.systems.lung.patient_model import PatientModel
    from raymed.systems.lung.slice_features import SliceFeatures

    prepared = Prepared.open(options.data)
    model = open_lung(options.model, options.tracking, prepared.labels, prepared.size)
    slices = model.slices.unlimited
    train, val = (chosen_rows(prepared, split, options.fold, slices, options.seed) for split in ("train", "val"))
    notes = model.notes(prepared, prepared.columns(val, ["patient"])["patient"])
    if options.dry_run:
        work = f"would look at {len(train)} slices to learn and at {len(val)} to judge"
        return Outcome("\n".join([*notes, work]), {"slices": len(train) + len(val), "notes": notes})
    opened = model.open()
    seen, asked = (SliceFeatures.of(opened, prepared, rows, options.micro_batch, options.workers) for rows in (train, val))
    learned = PatientModel.of(seen, asked, options.head, options.bootstrap, options.seed)
    text = [*learned.lines(), *notes, *([learned.write(Folder.at(options.out))] if options.out else [])]
    text.append(f"{model.name} on {len(learned.patients.ids)} validation patients of {prepared.folder.uri}")
    data = {"model": model.name, "choices": [asdict(learned.mean), asdict(learned.attention)], "notes": notes}
    return Outcome("\n".join(text), data | {"verdict": learned.verdict, "counting_slices": learned.counting})


if __name__ == "__main__":
    run(WeighSlices, main)
