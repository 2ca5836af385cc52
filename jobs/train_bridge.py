"""Stage 1 of the report writer: encoder and Mamba bridge learn from pictures; files go to --output_dir.

    python jobs/train_bridge.py                                        # phantom patients with reports, a CPU will do
    python jobs/train_bridge.py --epochs 3 --batch_size 4 --lr 1e-4    # the guide's command, with its config/paths.yaml
    python jobs/train_bridge.py --data PREPARED --loss contrast --vision.encoder ENCODER

The guide's own loss is --loss proxy_l2; its best tokens are all zero, so the default is another. The same command goes on
with an interrupted run.
"""

from __future__ import annotations

import dataclasses

from raymed.job.job import Outcome, run
from raymed.systems.mamba_vlm.options import GUIDE, TrainBridge
from raymed.tuning.budget import Budget


def main(options: TrainBridge) -> Outcome:
    from raymed.cluster.connection import connect
    from raymed.systems.mamba_vlm.memory import TRAINING, memory_advice
    from raymed.systems.mamba_vlm.output import StageFiles
    from raymed.tuning.estimate import describe
    from raymed.tuning.execution import run_search
    from raymed.tuning.run_outcome import run_outcome

    options = options.completed()
    connect(start=not options.dry_run)
    search = options.open_search(options.prepared(), Budget(trials=1))
    if options.dry_run:
        return describe(search)
    files = StageFiles(options.output, search.template)
    with memory_advice(TRAINING):
        study = run_search(search, files.watch)
        outcome = run_outcome(search, study, "stage 2: python jobs/train_vlm.py")
    lines = files.finish(search.spec_of(study.trials[-1]), outcome.data["checkpoint"])
    return dataclasses.replace(outcome, text="\n".join([*lines, outcome.text]))


if __name__ == "__main__":
    run(TrainBridge, main, aliases=GUIDE)
