"""Train UniMedVL, which reads medical pictures and draws them, on a mixture of data sets.

    python jobs/train_unimedvl.py                                      # phantom patients, a CPU will do
    python jobs/train_unimedvl.py --dataset-config-file configs/my_data.yaml --model.path UniMedVL --workers 8
    python jobs/train_unimedvl.py --data PREPARED --resume-from-ema UniMedVL --workers 8
    python jobs/vqa.py --model CHECKPOINT --image PICTURE --prompt "Which lung is affected?"

With weights to begin from, settings are those of configs/unimedvl_sft.yaml where nothing else is said. The same command goes
on with an interrupted run. CHECKPOINT is what the last lines name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raymed.job.job import Outcome, run
from raymed.systems.unimedvl.options import GUIDE, UniMedVLOptions
from raymed.tuning.budget import Budget

FINETUNING = Path(__file__).parent.parent / "configs" / "unimedvl_sft.yaml"
WEIGHTS = {"--model.path", "--model-path", "--resume-from", "--resume-from-ema"}


def settings_file(words: Sequence[str]) -> Path | None:
    """Weights to begin from are tuned with settings of their own."""
    return FINETUNING if any(word.partition("=")[0].replace("_", "-") in WEIGHTS for word in words) else None


def main(options: UniMedVLOptions) -> Outcome:
    from raymed.cluster.connection import connect
    from raymed.systems.unimedvl.memory import log_memory_plan
    from raymed.tuning.estimate import describe
    from raymed.tuning.execution import run_search
    from raymed.tuning.run_outcome import run_outcome

    connect(start=not options.dry_run)
    search = options.open_search(options.prepared(), Budget(trials=1))
    log_memory_plan(search.template)
    if options.dry_run:
        return describe(search)
    return run_outcome(
        search, run_search(search), "ask it: python jobs/vqa.py --model {checkpoint} --image PICTURE --prompt QUESTION"
    )


if __name__ == "__main__":
    run(UniMedVLOptions, main, defaults=settings_file, aliases=GUIDE)
