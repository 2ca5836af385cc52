"""The learning rate over the steps of a run."""

from __future__ import annotations

import math

from raymed.training.settings import TrainSettings


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """Share of the peak learning rate at `step` of `total`: linear warm-up, if any, then cosine to `final_lr`."""
    rising = max(1, round(settings.warmup * total)) if settings.warmup else 0
    if step < rising:
        return (step + 1) / rising
    progress = min(1.0, (step - rising) / max(1, total - rising))
    return settings.final_lr + (1 - settings.final_lr) * (1 + math.cos(math.pi * progress)) / 2
