"""The jobs one after the other: each is typed as training's last lines say."""

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
from commands import done, script
from safetensors.torch import save_file

from raymed.data.phantom import PhantomSettings
from raymed.data.split import SplitSettings
from raymed.job.command_line import parse
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.autoencoder import ImageAutoencoder, checkpoint_state
from raymed.systems.unimedvl.checkpoint_config import AUTOENCODER_CONFIG, AUTOENCODERS
from raymed.systems.unimedvl.mixture_config import MixtureConfig
from raymed.systems.unimedvl.phantoms import phantom_config
from raymed.systems.unimedvl.prepare import prepare_sequences
from raymed.systems.unimedvl.prepare_settings import SequenceSettings
from raymed.systems.unimedvl.settings import PRESETS, TINY


def write_autoencoder(folder: Path) -> Path:
    """Random weights of an autoencoder, which else is fitted for a minute."""
    sizes, folder = PRESETS[TINY], folder / "autoencoder"
    folder.mkdir()
    state = checkpoint_state(ImageAutoencoder(sizes.autoencoder, sizes.latent_patch))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / AUTOENCODERS[0])
    (folder / AUTOENCODER_CONFIG).write_text(json.dumps(asdict(sizes.autoencoder)))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)  # four jobs, one with a Ray of its own
def test_what_training_says_can_be_done_next_judges_answers_and_draws(tmp_path: Path) -> None:
    words = ("--phantom.patients", "12", "--train.epochs", "1", "--model.vae_path", write_autoencoder(tmp_path))
    told = done("train_unimedvl", tmp_path, *words)
    commands = dict(re.findall(r"python jobs/(\w+)\.py (.+)$", told, re.MULTILINE))
    assert list(commands) == ["evaluate_unimedvl", "vqa", "edit_image"]
    printed = {name: done(name, tmp_path, *shlex.split(words)) for name, words in commands.items()}
    assert "commonest answer" in printed["evaluate_unimedvl"] and "phantom_windows" in printed["evaluate_unimedvl"]
    assert all((tmp_path / name).stat().st_size for name in ("judged/answers.csv", "judged/pictures.png"))
    assert all((tmp_path / name).stat().st_size for name in ("edited.png", "edited-sheet.png"))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_all_samples_can_be_trained_on_and_what_nobody_knows_then_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = MixtureConfig.read(phantom_config(Folder.at(tmp_path), PhantomSettings(patients=6, size=64)))
    everything = SequenceSettings(split=SplitSettings("100/0/0", folds=0))
    prepared = prepare_sequences(config, str(tmp_path / "DATA"), everything).prepared
    job = script("train_unimedvl")
    words = ["--data", prepared.folder.uri, "--storage", str(tmp_path / "runs"), "--train.steps", "2"]
    words += ["--model.vae_path", str(write_autoencoder(tmp_path))]
    outcome = job.main(parse(job.TrainUniMedVL, words, aliases=job.GUIDE, script=job))
    assert "no val patients: all are trained on. There is no val_loss" in caplog.text
    assert outcome.text.startswith("no val_loss in ") and outcome.data["val_loss"] is None
