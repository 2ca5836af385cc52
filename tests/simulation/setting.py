"""What kind of night a seed makes: most are small, since what breaks at all breaks small, and cheap."""

from __future__ import annotations

import random
from dataclasses import dataclass

NEWER = 30_000  # nights from this seed on also have what came later; those before are as they were when they were noted


@dataclass(frozen=True)
class Setting:
    """What kind of night it is."""

    storage: str
    hosts: int
    concurrent: int
    halving: int
    checkpoint_steps: int
    seed: int
    trials: int = 4
    epochs: int = 3

    @classmethod
    def of(cls, seed: int) -> Setting:
        draw = random.Random(f"setting {seed}")
        return cls(
            storage=draw.choice(("/shared/storage", "/shared/storage", "s3://bucket/storage")),
            hosts=draw.choice((1, 2)),
            concurrent=draw.choice((1, 1, 2)),
            halving=draw.choice((0, 1)),
            checkpoint_steps=draw.choice((0, 2)),
            seed=draw.randrange(3),
            trials=draw.choice((1, 2, 2, 2, 2, 3, 4)),
            epochs=draw.choice((1, 2, 2, 2, 3)),
        )

    @property
    def moments(self) -> int:
        """How often a night without faults touches the world, about."""
        return 200 + 100 * self.trials * self.epochs
