"""Pretrain InternVL on conversations about pictures (ViTP), so that its ViT becomes a better backbone.

    python jobs/pretrain_vitp.py                                       # notes about phantom patients, a CPU will do
    python jobs/prepare_vitp.py --source meta.json --out PREPARED --tokenizer InternVL2_5-1B
    python jobs/pretrain_vitp.py --data PREPARED --model.path InternVL2_5-1B --workers 8
    python jobs/extract_vit.py --model CHECKPOINT --out VIT

With weights to begin from, settings are those of configs/vitp_medical.yaml where nothing else is said. The same command goes
on with an interrupted run. CHECKPOINT is what the last lines name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymed.job.job import Outcome, run
from raymed.systems.options import CONFIGS
from raymed.systems.vitp.options import VitpOptions
from raymed.tuning.budget import Budget

MEDICAL = CONFIGS / "vitp_medical.yaml"


@dataclass(frozen=True, kw_only=True)
class PretrainVitp(VitpOptions):
    """Options of a pretraining run."""

    def implied(self) -> Mapping[str, Any] | Path:
        """Weights to begin from are trained with settings of their own."""
        return super().implied() if self.model.path is None else MEDICAL


def main(options: PretrainVitp) -> Outcome:
    from raymed.cluster.connection import connect
    from raymed.tuning.estimate import describe
    from raymed.tuning.execution import run_search
    from raymed.tuning.run_outcome import run_outcome

    connect(start=not options.dry_run)
    search = options.open_search(options.prepared(), Budget(trials=1))
    if options.dry_run:
        return describe(search)
    return run_outcome(
        search, run_search(search), "take its ViT out: python jobs/extract_vit.py --model {checkpoint} --out VIT"
    )


if __name__ == "__main__":
    run(PretrainVitp, main)
