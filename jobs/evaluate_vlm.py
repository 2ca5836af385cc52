"""Judge a report writer on patients: guards first, then loss, BLEU, ROUGE-L and findings with 95 % intervals.

python jobs/evaluate_vlm.py                                          # stage 2's best, on the data it was trained with
python jobs/evaluate_vlm.py --model models:/raymed-mamba_vlm@champion --data PREPARED --split test --out FOLDER
python jobs/evaluate_vlm.py --model MAMBA --linear LINEAR --data PREPARED     # what the Mamba bridge is worth
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.job.job import JobOptions, Outcome, run
from raymed.job.submitted import lasting
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.file_names import STAGE_2_BEST
from raymed.systems.mamba_vlm.options import TrainVlm
from raymed.systems.mamba_vlm.settings import GenerationSettings


@dataclass(frozen=True, kw_only=True)
class EvaluateVlm(JobOptions):
    """Options of judging a report writer.

    Attributes:
        model: A .pt file of stage 2, models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, or a folder with a model or
            checkpoint.
        data: Folder or URI of prepared reports (jobs/prepare_mamba.py; default: those that a .pt file was trained with; else
            those of config/paths.yaml, or about phantom patients).
        split: Which patients: train, val, test or all; auto takes test, or val where there are no test patients.
        linear: A model with a simpler bridge (bridge.kind linear or attention), to compare with.
        findings: Label table whose words are looked for in the texts: a YAML file, or the name of one of raymed's own.
        generation: How texts are generated.
        micro_batch: Reports at once.
        out: Folder for texts.csv, a line for each report (default: none is written).
    """

    model: str = field(default_factory=lambda: str(Path(lasting("outputs"), STAGE_2_BEST)))
    data: str | None = None
    split: Literal["auto", "train", "val", "test", "all"] = "auto"
    linear: str | None = None
    findings: str = "chest_findings"
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    micro_batch: int = 8
    out: str | None = None


def main(options: EvaluateVlm) -> Outcome:
    from raymed.data.labels import LabelTable
    from raymed.evaluation.findings import Findings
    from raymed.spreadsheet import to_csv
    from raymed.systems.mamba_vlm.evaluation import Writer, evaluate_writer, training_data

    findings = Findings(LabelTable.open(options.findings))
    writer, *simple = (Writer.open(name, options.tracking) for name in (options.model, options.linear) if name)
    data = options.data or training_data(options.model)
    prepared = Prepared.open(data) if data else TrainVlm(storage=options.storage).prepared()
    split = prepared.judged_split if options.split == "auto" else options.split
    rows = prepared.rows(split)
    if not len(rows):
        raise UserError(f"{prepared.folder.uri} has no {split} patients: choose another --split")
    where = f"{split} reports of {prepared.folder.uri}"
    if options.dry_run:
        return Outcome(f"would judge {options.model} on {len(rows)} {where}", {"reports": len(rows)})
    result = evaluate_writer(
        writer, prepared, rows, findings, options.generation, options.micro_batch, next(iter(simple), None), options.seed
    )
    text = [*result.lines, f"{options.model} on {len(rows)} {where}"]
    if options.out is not None:
        folder = Folder.at(options.out)
        folder.write("texts.csv", to_csv(result.texts))
        text.append(f"every report: {folder.uri}/texts.csv")
    facts = {"model": options.model, "data": prepared.digest, "split": split}
    return Outcome("\n".join(text), facts | result.to_dict())


if __name__ == "__main__":
    run(EvaluateVlm, main)
