"""The jobs one after the other: each is typed as training's last lines say."""

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
from commands import done
from safetensors.torch import save_file

from raymed.systems.unimedvl.autoencoder import ImageAutoencoder, checkpoint_state
from raymed.systems.unimedvl.checkpoint_config import AUTOENCODER_CONFIG, AUTOENCODERS
from raymed.systems.unimedvl.settings import PRESETS, TINY


@pytest.mark.slow
@pytest.mark.timeout(900)  # four jobs, one with a Ray of its own
def test_what_training_says_can_be_done_next_judges_answers_and_draws(tmp_path: Path) -> None:
    sizes, folder = PRESETS[TINY], tmp_path / "autoencoder"  # which else is fitted for a minute
    folder.mkdir()
    state = checkpoint_state(ImageAutoencoder(sizes.autoencoder, sizes.latent_patch))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / AUTOENCODERS[0])
    (folder / AUTOENCODER_CONFIG).write_text(json.dumps(asdict(sizes.autoencoder)))
    words = ("--phantom.patients", "12", "--train.epochs", "1", "--model.vae_path", folder)
    told = done("train_unimedvl", tmp_path, *words)
    commands = dict(re.findall(r"python jobs/(\w+)\.py (.+)$", told, re.MULTILINE))
    assert list(commands) == ["evaluate_unimedvl", "vqa", "edit_image"]
    printed = {name: done(name, tmp_path, *shlex.split(words)) for name, words in commands.items()}
    assert "commonest answer" in printed["evaluate_unimedvl"] and "phantom_windows" in printed["evaluate_unimedvl"]
    assert all((tmp_path / name).stat().st_size for name in ("judged/answers.csv", "judged/pictures.png"))
    assert all((tmp_path / name).stat().st_size for name in ("edited.png", "edited-sheet.png"))
