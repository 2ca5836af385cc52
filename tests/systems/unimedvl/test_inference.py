import inspect

import numpy as np
import pytest
from packed_samples import SIZES, tiny_network
from PIL import Image

from raymed.errors import UserError
from raymed.systems.unimedvl.inference import DEFAULT_CONFIG, ImageGenerator, VQAInferencer
from raymed.systems.unimedvl.recipe import UniMedVLRecipe
from raymed.systems.unimedvl.resize import ResizeSettings


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    UniMedVLRecipe(SIZES, vit=ResizeSettings(14, 56, 28), vae=ResizeSettings(8, 64, 16)).export(tiny_network(), folder)
    return DEFAULT_CONFIG | {"model_path": str(folder), "max_new_tokens": 8, "max_think_tokens": 8}


@pytest.fixture
def chest(tmp_path):
    path = tmp_path / "chest.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)).save(path)
    return path


def test_the_guides_calls_work_as_they_are_written(config, chest, capsys):
    inferencer = VQAInferencer(config)
    inferencer.load_model()
    result = inferencer.infer_single(
        image_path=chest, prompt="Findings?", temperature=0.1, max_new_tokens=6, do_sample=True, show_image=False
    )
    assert result.keys() == {"answer", "input_image", "time", "image_path", "prompt", "timestamp"}
    assert result["answer"] in capsys.readouterr().out

    generator = ImageGenerator(config)
    generator.load_model()
    picture = Image.open(chest)
    instruction = generator.prepare_instruction(picture, "Darker.", use_thinking=True)
    drawn = generator.infer_single(picture, instruction, 4.0, 2.0, 3.0, 3, cfg_interval=[0, 1], cfg_renorm_type="global")
    assert drawn["edited_image"].size == (40, 40) and drawn["instruction"] == instruction and drawn["seed"] == 42


def test_what_is_not_said_is_as_in_the_configuration(config, chest):
    greedy = VQAInferencer(config | {"do_sample": False})
    greedy.load_model()
    said = greedy.infer_single(chest, "Findings?")["answer"]
    assert said == greedy.infer_single(chest, "Findings?", temperature=9.0)["answer"]
    shorter = greedy.infer_single(chest, "Findings?", max_new_tokens=2)["answer"]  # a byte, perhaps no character
    assert said.startswith(shorter) and len(shorter) <= 1 <= len(said)


def test_defaults_are_the_guides():
    assert (DEFAULT_CONFIG["temperature"], DEFAULT_CONFIG["max_new_tokens"], DEFAULT_CONFIG["do_sample"]) == (1.0, 512, True)
    assert (DEFAULT_CONFIG["text_temperature"], DEFAULT_CONFIG["text_do_sample"], DEFAULT_CONFIG["seed"]) == (0.3, False, 42)
    defaults = {
        name: value.default
        for name, value in inspect.signature(ImageGenerator.infer_single).parameters.items()
        if name in ("cfg_text_scale", "cfg_img_scale", "timestep_shift", "num_timesteps")
    }
    assert defaults == {"cfg_text_scale": 4.0, "cfg_img_scale": 2.0, "timestep_shift": 3.0, "num_timesteps": 50}


def test_mistakes_are_named(config, chest):
    with pytest.raises(UserError, match="no model_path"):
        VQAInferencer(DEFAULT_CONFIG)
    with pytest.raises(UserError, match=r"no 'temprature'.*temperature"):
        VQAInferencer(config | {"temprature": 1.0})
    with pytest.raises(UserError, match=r"load_model\(\) first"):
        VQAInferencer(config).infer_single(chest, "Findings?")
    VQAInferencer(config | {"offload_folder": "/tmp", "enable_cpu_loading": True})  # the guide's extras do no harm
