"""Judge UniMedVL on prepared patients: its answers beside guessing, its pictures beside the unchanged input.

python jobs/evaluate_unimedvl.py --model CHECKPOINT --out JUDGED                       # on phantom patients
python jobs/evaluate_unimedvl.py --model models:/raymed-unimedvl@champion --data PREPARED --out JUDGED
python jobs/evaluate_unimedvl.py --model RUN/trials/trial-0000/step-00000120-ab12cd34 --data PREPARED --split val
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raymed.job.job import JobOptions, Outcome, run
from raymed.systems.unimedvl.tool_settings import DrawingSettings, TextSettings


@dataclass(frozen=True, kw_only=True)
class EvaluateUnimedvl(JobOptions):
    """Options of judging UniMedVL.

    Attributes:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, or a folder with a model or checkpoint.
        data: Folder or URI of prepared data (jobs/prepare_unimedvl.py); without it, phantom patients.
        split: Which patients: train, val, test or all; auto takes test, or val where there are no test patients.
        limit: Most questions, and most pictures (0 = all).
        text: How answers are written.
        drawing: How pictures are drawn.
        out: Folder for answers.csv and pictures.png (default: none is written).
    """

    model: str
    data: str | None = None
    split: Literal["auto", "train", "val", "test", "all"] = "auto"
    limit: int = 200
    text: TextSettings = field(default_factory=lambda: TextSettings(max_new_tokens=128, do_sample=False))
    drawing: DrawingSettings = field(default_factory=DrawingSettings)
    out: str | None = None


def main(options: EvaluateUnimedvl) -> Outcome:
    from raymed.data.prepared import Prepared
    from raymed.errors import UserError
    from raymed.recipes.exported import open_model
    from raymed.registry.address import resolve_model
    from raymed.systems.unimedvl.evaluation import evaluate_rows
    from raymed.systems.unimedvl.evaluation_files import write_evaluation
    from raymed.systems.unimedvl.network import UniMedVL
    from raymed.systems.unimedvl.options import PHANTOMS
    from raymed.systems.unimedvl.phantoms import prepare_phantoms
    from raymed.systems.unimedvl.reader import Reader
    from raymed.systems.unimedvl.tokens import TextTokens
    from raymed.tracking.tracker import Tracker

    resolved = resolve_model(options.model, Tracker.open(options.tracking))
    prepared = Prepared.open(options.data) if options.data else prepare_phantoms(options.folder, PHANTOMS)
    split = prepared.judged_split if options.split == "auto" else options.split
    rows = prepared.rows(split)
    if not len(rows):
        raise UserError(f"{prepared.folder.uri} has no {split} patients: choose another --split")
    if options.dry_run:
        return Outcome(f"would judge {resolved.name} on {len(rows)} records ({split})", {"records": len(rows)})
    _, network = open_model(resolved.network)
    if not isinstance(network, UniMedVL):
        raise UserError(f"{resolved.name} is a model of another system: it neither answers nor draws")
    reader = Reader(network, TextTokens.read(resolved.network), options.text, options.drawing, options.seed)
    evaluation = evaluate_rows(reader, prepared, rows, options.limit, options.seed)
    if not evaluation.patients:
        raise UserError("no row asks about a picture, or has one drawn from another: choose another split or other data")
    lines = evaluation.lines()
    if options.out is not None:
        lines += write_evaluation(evaluation, options.out)
    lines.append(f"{resolved.name} on {split} patients of {prepared.folder.uri}")
    data = {"model": resolved.name, "data": prepared.digest, "split": split, "figures": evaluation.figures()}
    return Outcome("\n".join(lines), data)


if __name__ == "__main__":
    run(EvaluateUnimedvl, main)
