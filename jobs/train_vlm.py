"""Stage 2 of the report writer: a frozen language model is made to write the report of a picture; files go to --output_dir.

    python jobs/train_vlm.py                                           # phantom patients with reports, a CPU will do
    python jobs/train_vlm.py --epochs 2 --batch_size 1 --lr 1e-5 --vision_checkpoint outputs/vision_bridge_best_val.pt
    python jobs/train_vlm.py --epochs 20 --batch_size 1 --lr 2e-5 --max_visual_tokens 96      # goes on, 20 epochs more
    python jobs/train_vlm.py --data PREPARED --from_scratch --llm.path mamba-130m-hf

Without --vision_checkpoint it begins with stage 2's last file in --output_dir, or else with stage 1's. The same command goes
on with an interrupted run.
"""

from __future__ import annotations

import dataclasses

from raymed.job.job import Outcome, run
from raymed.systems.mamba_vlm.options import GUIDE, TrainVlm
from raymed.tuning.budget import Budget


def main(options: TrainVlm) -> Outcome:
    from raymed.cluster.connection import connect
    from raymed.systems.mamba_vlm.memory import TRAINING, memory_advice
    from raymed.systems.mamba_vlm.output import StageFiles
    from raymed.tuning.estimate import describe
    from raymed.tuning.execution import run_search
    from raymed.tuning.run_outcome import run_outcome

    options = options.completed()
    connect(start=not options.dry_run)
    prepared = options.prepared()
    search = options.open_search(prepared, Budget(trials=1))
    if options.dry_run:
        return describe(search)
    files = StageFiles(options.output, search.template)
    with memory_advice(TRAINING):
        study = run_search(search, files.watch)
        outcome = run_outcome(search, study, options.advice(prepared))
    lines = files.finish(search.spec_of(study.trials[-1]), outcome.data["checkpoint"])
    return dataclasses.replace(outcome, text="\n".join([*lines, outcome.text]))


if __name__ == "__main__":
    run(TrainVlm, main, aliases=GUIDE)
