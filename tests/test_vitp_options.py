"""The pretraining jobs' options: what the files in configs/ say is what is trained."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from raymed.job import parse
from raymed.vitp import VitpOptions

ROOT = Path(__file__).parent.parent


def _job(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "jobs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "batch", "stage"), [("vitp_medical", 128, 1), ("vitp_custom", 8, 2)])
def test_the_published_settings_are_what_their_file_gives(name: str, batch: int, stage: int) -> None:
    job = _job("pretrain_vitp")
    options = parse(VitpOptions, ["--config", str(ROOT / "configs" / f"{name}.yaml"), "--workers", "8"], script=job)
    train = options.train
    assert (train.global_batch, train.zero_stage, train.lr, train.warmup) == (batch, stage, 2e-5, 0.2)
    assert (train.weight_decay, train.clip, train.precision) == (0.01, 1.0, "bf16")
    assert (options.token_drop.mode, options.token_drop.rate, options.model.drop_path) == ("code", 0.75, 0.1)
    assert (options.mixture.packing, options.mixture.max_tokens) == (False, 4096)
    assert train.global_batch % (train.micro_batch * options.workers) == 0, "every worker takes whole micro-batches"


def test_the_default_search_varies_settings_that_exist() -> None:
    from raymed.recipes.vitp import VitpRecipe
    from raymed.tuning.space import get_setting

    job = _job("tune_vitp")
    options = parse(job.TuneVitp, ["--trials", "3"], defaults=ROOT / "configs" / "tune_vitp.yaml", script=job)
    assert options.trials == 3 and options.search.space
    for name in options.search.space:
        get_setting(options if name.startswith("train.") else VitpRecipe(56), name)
