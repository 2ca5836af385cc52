"""What several parts train: a small InternVL on a few phantom patients, which lie below RAYMED_HOME and are made once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

from train_lung import TrainLung

from raymed.cluster.connection import connect
from raymed.data.phantom import PhantomSettings
from raymed.data.prepared import Prepared
from raymed.models.settings import ModelSettings
from raymed.recipes.settings import AugmentSettings
from raymed.training.settings import TrainSettings


def small_lung(device: str, name: str, **train: Any) -> TrainLung:
    """Options of jobs/train_lung.py, for a run of that name."""
    patients, size, preset = (48, 112, "internvl-small") if device == "cuda" else (16, 56, "internvl-tiny")
    return TrainLung(
        name=name,
        phantom=PhantomSettings(patients=patients, size=128, slices=(3, 3)),
        phantom_size=size,
        model=ModelSettings(preset=preset),
        augment=AugmentSettings(preset="none"),
        train=TrainSettings(**{"epochs": 2, "lr": 1e-3, "global_batch": 8, "micro_batch": 8} | train),
    )


def open_data(options: TrainLung) -> Prepared:
    """The phantom patients, prepared under a Ray of this process."""
    connect()
    return options.prepared()
