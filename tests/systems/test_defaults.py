"""What every system takes where nothing else is said."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from raymed.data.micro_batches import Division
from raymed.recipes.metric import VAL_LOSS
from raymed.systems.clip.options import ClipOptions
from raymed.systems.lung.options import LungOptions
from raymed.systems.mamba_vlm.options import TrainVlm
from raymed.systems.unimedvl.options import UniMedVLOptions
from raymed.systems.vitp.options import VitpOptions
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec

CONFIGS = sorted(Path(__file__).parents[2].joinpath("configs").glob("*.yaml"))
SYSTEMS = {"lung": LungOptions, "clip": ClipOptions, "vitp": VitpOptions, "mamba": TrainVlm, "unimedvl": UniMedVLOptions}


def helpful(train: TrainSettings, workers: int, contrastive: bool = False) -> int:
    recipe: Any = SimpleNamespace(name="", metrics=(VAL_LOSS,), contrastive=contrastive)
    return RunSpec("run", "", "", recipe, dataclasses.replace(train, monitor=VAL_LOSS.name)).helpful(workers)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize("config", [*SYSTEMS, *CONFIGS], ids=lambda config: Path(config).name)
def test_no_default_leaves_a_worker_idle(config, workers):
    """Neither options as they are nor a file of configs/: workers that cannot be kept busy are not taken."""
    (options,) = [options() for name, options in SYSTEMS.items() if name in str(config).rpartition("/")[2]]
    given = {} if config in SYSTEMS else yaml.safe_load(config.read_text(encoding="utf-8")).get("train", {})
    train = dataclasses.replace(options.train, **given)
    taken = helpful(train, workers)
    assert taken == min(workers, train.global_batch)
    if options is ClipOptions:
        compared = Division(train.micro_batch, helpful(train, workers, True), train.norm_group, True)
        assert compared.balance([tuple((row,) for row in range(train.global_batch))]) == (0.0, 1.0)
    for group in (0, train.norm_group):
        division = Division(train.micro_batch, taken, group)
        if group <= train.micro_batch * taken or not group:
            assert division.balance([tuple((row,) for row in range(train.global_batch))]) == (0.0, 1.0)
