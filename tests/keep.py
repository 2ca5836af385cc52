"""A checkpoint that a run would remove, kept: where a kill right after that step would have left it."""

import json
import shutil
import sys
from pathlib import Path

from ray import cloudpickle
from ray.train import UserCallback

from raymed.training.checkpoint import step_of
from raymed.training.loop import SAVED
from raymed.training.step_log import STEPS


class Keep(UserCallback):
    """Copies the checkpoint of a step before its run removes it for later ones."""

    def __init__(self, step: int, to: Path) -> None:
        self.step, self.to = step, to
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the controller does not know this file

    def after_report(self, run_context, metrics, checkpoint):
        name = metrics[0].get(SAVED)
        if name and step_of(name) == self.step:
            run = Path(run_context.run_config.storage_path, run_context.run_config.name)
            shutil.copytree(run / name, self.to / name)


class KeepSteps(UserCallback):
    """Appends what is reported of single steps to a file, one line each."""

    def __init__(self, file: Path) -> None:
        self.file = file
        cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def after_report(self, run_context, metrics, checkpoint):
        with self.file.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in metrics[0][STEPS])
