"""How many slices of a patient to look at, and how they should decide: every combination on the same patients.

python jobs/compare_slices.py --model models:/raymed-lung@champion --data PREPARED
python jobs/compare_slices.py --model work_dirs/med_cls/checkpoint-2000 --data PREPARED --per-patient 8 16 0

Validation patients are asked, since a choice is made by them; all of their slices are predicted once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from raymed.data.prepared import Prepared
from raymed.job.job import JobOptions, Outcome, run


@dataclass(frozen=True, kw_only=True)
class CompareSlices(JobOptions):
    """Options of comparing numbers of slices and ways to decide.

    Attributes:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, a folder with a model or checkpoint, or an InternVL
            folder that was trained elsewhere.
        data: Folder or URI of prepared data (jobs/prepare_lung.py).
        per_patient: Numbers of slices of a patient to compare (0 = all); the first with the mean is what the others are
            compared with.
        fold: Cross-validation fold that is val (default: the stored split).
        micro_batch: Slices that are predicted at once.
        workers: Ray actors that predict; 1 works in this process.
        bootstrap: Resamples of patients behind the intervals of the loss.
    """

    model: str
    data: str
    per_patient: list[int] = field(default_factory=lambda: [16, 8, 0])
    fold: int | None = None
    micro_batch: int = 32
    workers: int = 1
    bootstrap: int = 1000


def main(options: CompareSlices) -> Outcome:
    from raymed.evaluation.predict import predict_rows
    from raymed.systems.lung.choices import compare, heading, places_of
    from raymed.systems.lung.elsewhere import open_lung

    prepared = Prepared.open(options.data)
    model = open_lung(options.model, options.tracking, prepared.labels, prepared.size)
    rows = prepared.rows("val", options.fold)
    notes = model.notes(prepared, prepared.columns(rows, ["patient"])["patient"])
    if options.dry_run:
        return Outcome("\n".join([*notes, f"would judge {len(rows)} slices"]), {"slices": len(rows), "notes": notes})
    chosen = places_of(prepared, rows, model.slices.unlimited, options.per_patient, options.seed)
    logits, columns = predict_rows(model.open(), prepared, rows, options.micro_batch, options.workers)
    choices = compare(logits, columns, chosen, options.bootstrap, options.seed)
    text = [heading(), *map(str, choices), "each with its own temperature, fitted on these patients", *notes]
    text.append(f"{model.name} on {len(set(columns['patient']))} validation patients of {prepared.folder.uri}")
    return Outcome("\n".join(text), {"model": model.name, "choices": [asdict(each) for each in choices], "notes": notes})


if __name__ == "__main__":
    run(CompareSlices, main)
