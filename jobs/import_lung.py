"""Take an InternVL that was trained elsewhere among the runs, so that jobs/promote.py assesses and registers it.

python jobs/import_lung.py --model work_dirs/med_cls/checkpoint-2000 --data PREPARED
python jobs/promote.py RUN_ID

Nothing is trained. On whom the model was trained nobody here knows, and its card says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.job.job import JobOptions, Outcome, run


@dataclass(frozen=True, kw_only=True)
class ImportLung(JobOptions):
    """Options of importing a model.

    Attributes:
        model: An InternVL folder that was trained elsewhere, or its name under RAYMED_MODELS.
        data: Folder or URI of prepared data (jobs/prepare_lung.py) that it is to be judged on.
        fold: Cross-validation fold that is val (default: the stored split).
    """

    model: str
    data: str
    fold: int | None = None


def main(options: ImportLung) -> Outcome:
    from raymed.systems.lung.elsewhere import ElsewhereTrained, open_lung, register_run
    from raymed.tracking.tracker import Tracker

    prepared = Prepared.open(options.data)
    model = open_lung(options.model, options.tracking, prepared.labels, prepared.size)
    if not isinstance(model, ElsewhereTrained):
        raise UserError(f"{options.model} was trained here: give jobs/promote.py the id of its run")
    if options.dry_run:
        return Outcome(f"{model.asked}\ndry run: nothing was copied", {"model": model.name})
    tracker = Tracker.open(options.tracking, f"raymed-{model.recipe.name}")
    run_id = register_run(model, prepared, options.fold, options.folder, tracker)
    text = [model.asked, tracker.look_at_it, f"calibrate and register it: python jobs/promote.py {run_id}"]
    return Outcome("\n".join(text), {"model": model.name, "run_id": run_id})


if __name__ == "__main__":
    run(ImportLung, main)
