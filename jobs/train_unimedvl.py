"""Train UniMedVL, which reads medical pictures and draws them, on a mixture of data sets.

    python jobs/train_unimedvl.py                                      # phantom patients, a CPU will do
    python jobs/train_unimedvl.py --dataset-config-file configs/my_data.yaml --model.path UniMedVL --workers 8
    python jobs/train_unimedvl.py --data PREPARED --resume-from-ema UniMedVL --workers 8
    python jobs/vqa.py --model CHECKPOINT --image PICTURE --prompt "Which lung is affected?"

With weights to begin from, settings are those of configs/unimedvl_sft.yaml where nothing else is said. The same command goes
on with an interrupted run. CHECKPOINT is what the last lines name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymed.job.job import Outcome, run
from raymed.systems.options import CONFIGS
from raymed.systems.unimedvl.guide import GUIDE
from raymed.systems.unimedvl.options import UniMedVLOptions
from raymed.tuning.budget import Budget

FINETUNING = CONFIGS / "unimedvl_sft.yaml"


@dataclass(frozen=True, kw_only=True)
class TrainUniMedVL(UniMedVLOptions):
    """Options of UniMedVL training."""

    def implied(self) -> Mapping[str, Any] | Path:
        """Weights to begin from are tuned with settings of their own."""
        return super().implied() if self.starting_model.path is None else FINETUNING


def main(options: TrainUniMedVL) -> Outcome:
    from raymed.cluster.connection import connect
    from raymed.systems.unimedvl.memory import log_memory_plan
    from raymed.tuning.estimate import describe
    from raymed.tuning.execution import run_search
    from raymed.tuning.run_outcome import run_outcome

    connect(start=not options.dry_run)
    prepared = options.prepared()
    search = options.open_search(prepared, Budget(trials=1))
    log_memory_plan(search.template)
    if options.dry_run:
        return describe(search)
    return run_outcome(search, run_search(search), options.advice(prepared))


if __name__ == "__main__":
    run(TrainUniMedVL, main, aliases=GUIDE)
