"""A checkpoint that a run would remove, kept: where a kill right after that step would have left it."""

import shutil
import sys
from pathlib import Path

from ray import cloudpickle
from ray.train import UserCallback


class Keep(UserCallback):
    """Copies the checkpoint of a step before Ray Train removes it for later ones."""

    def __init__(self, step: int, to: Path) -> None:
        self.step, self.to = step, to
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the controller does not know this file

    def after_report(self, run_context, metrics, checkpoint):
        if metrics[0]["global_step"] == self.step:
            shutil.copytree(checkpoint.path, self.to / Path(checkpoint.path).name)
