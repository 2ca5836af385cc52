"""The pretraining jobs' options: what the files in configs/ say is what is trained."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from commands import script

from raymed.data.corpus import open_tokenizer_digest
from raymed.data.phantom import PhantomSettings
from raymed.errors import UserError
from raymed.job.job import parse
from raymed.models import internvl
from raymed.models.internvl_text import tokenizer_digest
from raymed.models.settings import ModelSettings
from raymed.systems.vitp import network as internvl_pretrain
from raymed.systems.vitp.options import VitpOptions

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "batch", "stage", "warmup", "decay", "steps"),
    [("vitp_medical", 128, 1, 0.2, 0.01, 0), ("guide_vitp", 8, 2, 0.0, 0.0, 8000)],
)
def test_the_published_settings_are_what_their_file_gives(
    name: str, batch: int, stage: int, warmup: float, decay: float, steps: int
) -> None:
    job = script("pretrain_vitp")
    options = parse(VitpOptions, ["--config", str(ROOT / "configs" / f"{name}.yaml"), "--workers", "8"], script=job)
    train = options.train
    assert (train.global_batch, train.zero_stage, train.lr, train.warmup) == (batch, stage, 2e-5, warmup)
    assert (train.weight_decay, train.clip, train.precision, train.steps) == (decay, 1.0, "bf16", steps)
    assert (options.token_drop.mode, options.token_drop.rate, options.model.drop_path) == ("code", 0.75, 0.1)
    assert (options.mixture.packing, options.mixture.max_tokens) == (False, 4096)
    assert train.global_batch % (train.micro_batch * options.workers) == 0, "every worker takes whole micro-batches"


def test_the_default_search_varies_settings_that_exist() -> None:
    from raymed.systems.vitp.recipe import VitpRecipe
    from raymed.tuning.space import get_setting

    job = script("tune_vitp")
    options = parse(job.TuneVitp, ["--trials", "3"], defaults=ROOT / "configs" / "tune_vitp.yaml", script=job)
    assert options.trials == 3 and options.search.space
    for name in options.search.space:
        get_setting(options if name.startswith("train.") else VitpRecipe(56), name)


@pytest.mark.slow
def test_given_weights_are_trained_as_the_medical_script_does(tmp_path: Path) -> None:
    """The settings of phantoms, a hundred times its learning rate, would ruin them."""
    asked = ["jobs/pretrain_vitp.py", "--model.path", str(tmp_path), "--print-config"]
    said = subprocess.run([sys.executable, *asked], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    assert yaml.safe_load(said)["train"]["lr"] == 2e-5
    options = VitpOptions(model=ModelSettings(path=str(tmp_path)))
    with pytest.raises(UserError, match=r"would ruin .*vitp_medical"):
        options.recipe(None)  # type: ignore[arg-type]


def test_a_vit_is_taken_out_by_the_guides_two_bare_words() -> None:
    job = script("extract_vit")
    guide = parse(job.ExtractVit, ["CHECKPOINT", "VIT", "--layout", "internvl"], aliases=job.GUIDE, script=job)
    ours = parse(job.ExtractVit, ["--model", "CHECKPOINT", "--out", "VIT", "--layout", "internvl"], script=job)
    assert guide == ours
    with pytest.raises(UserError):
        parse(job.ExtractVit, ["CHECKPOINT"], aliases=job.GUIDE, script=job)


def test_backbones_are_compared_by_their_bare_words_and_steps_are_typed_as_the_guide_has_them() -> None:
    compare, pretrain = script("compare_backbones"), script("pretrain_vitp")
    found = parse(compare.CompareBackbones, ["A", "B", "C", "--input", "PREPARED"], script=compare)
    assert found.models == ["A", "B", "C"] and found.input == "PREPARED"
    named = parse(compare.CompareBackbones, ["--models", "A", "B", "--input", "PREPARED"], script=compare)
    assert named.models == ["A", "B"]
    assert parse(pretrain.VitpOptions, ["--max_steps", "8000"], script=pretrain).train.steps == 8000


def test_a_model_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMED_MODELS", str(tmp_path))
    module = internvl_pretrain.build(ModelSettings(preset="internvl-tiny"), 28, "imagenet")
    (tmp_path / "Small").mkdir()
    module.export(tmp_path / "Small")
    settings = ModelSettings(path="Small")
    assert tokenizer_digest(internvl.tokenizer_of(settings)) == open_tokenizer_digest("Small")
    with pytest.raises(UserError, match=r"no model 'Large'.*Nothing is downloaded"):
        internvl.tokenizer_of(ModelSettings(path="Large"))


@pytest.mark.slow
def test_a_run_is_not_watched_by_a_figure_that_nothing_gives(tmp_path: Path) -> None:
    """Found out before an epoch is trained, not after."""
    options = VitpOptions(storage=str(tmp_path), phantom=PhantomSettings(patients=8, size=56, slices=(2, 2)))
    prepared = options.prepared()
    able = "the best epoch of vitp is chosen by one of val_loss, val_choice_loss"
    for monitor, reason in (("val_choice_loss", "no validation sample asks"), ("val_acc", able)):
        with pytest.raises(UserError, match=reason):
            replace(options, train=replace(options.train, monitor=monitor)).spec(prepared)
