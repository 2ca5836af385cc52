import dataclasses
import json

import numpy as np
import pytest
from packed_samples import SIZES, TOKENS, tiny_network
from PIL import Image
from volume_files import write_dicom

from raymed.data.image import ImageSettings
from raymed.errors import UserError
from raymed.systems.unimedvl.checkpoint import save
from raymed.systems.unimedvl.pipeline import ANALYSIS, Pipeline
from raymed.systems.unimedvl.recipe import UniMedVLRecipe
from raymed.systems.unimedvl.resize import VAE, VIT, ResizeSettings
from raymed.systems.unimedvl.tool_settings import DrawingSettings, ReadingSettings, TextSettings

GREEDY = TextSettings(max_new_tokens=8, do_sample=False)
FAST = DrawingSettings(num_timesteps=3)
SMALL = {"vit": ResizeSettings(14, 56, 28), "vae": ResizeSettings(8, 64, 16)}


def grey(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width), np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As training leaves it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    UniMedVLRecipe(SIZES, **SMALL).export(tiny_network(), folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return Pipeline.open(str(folder))


def test_a_trained_checkpoint_sees_pictures_as_in_training_and_a_released_one_as_the_guide_does(pipeline, tmp_path):
    assert (pipeline.vit, pipeline.vae) == (SMALL["vit"], SMALL["vae"])
    save(tiny_network(), TOKENS, tmp_path)
    released = Pipeline.open(str(tmp_path))
    assert (released.vit, released.vae) == (VIT, VAE)


def test_a_drawn_picture_has_the_shape_of_the_first_one(pipeline):
    assert pipeline.draw([grey(120, 60)], "Darker.", FAST, 1).size == (64, 32)
    assert pipeline.draw([], "A lung.", FAST, 1).size == (64, 64)


def test_a_seed_decides_and_no_seed_does_not(pipeline):
    picture = grey(32, 32)
    first, again, other = (np.asarray(pipeline.draw([picture], "Darker.", FAST, seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    sampled = TextSettings(max_new_tokens=12)
    answers = [pipeline.answer([picture], "Findings?", sampled, seed) for seed in (3, 3, 0, 0)]
    assert answers[0] == answers[1] and answers[2] != answers[3]


def test_the_picture_and_the_question_decide_the_answer(pipeline):
    settings = TextSettings(max_new_tokens=12)

    def answers(picture: Image.Image, question: str) -> list[str]:
        return [pipeline.answer([picture], question, settings, seed) for seed in range(1, 5)]

    asked = answers(grey(32, 32), "Findings?")
    assert asked != answers(grey(56, 28), "Findings?") and asked != answers(grey(32, 32), "Which side?")


def test_an_analysis_is_added_to_the_instruction_and_a_plan_said_to_be_one(pipeline):
    picture = grey(32, 32)
    said = pipeline.answer([picture], "Darker.", GREEDY)
    assert pipeline.prepare_instruction(picture, "Darker.", GREEDY) == f"Darker.\n\n{said}"
    planned = pipeline.prepare_instruction(picture, "Darker.", GREEDY, thinking=True)
    assert planned.startswith(f"Darker.\n\n{ANALYSIS}") and said not in planned


def test_a_picture_is_planned_before_it_is_drawn_and_the_plan_guides_it_alone(pipeline):
    picture = grey(32, 32)
    plan = pipeline.plan([picture], "Darker.", GREEDY, 1)
    assert plan == pipeline.plan([picture], "Darker.", GREEDY, 1) != pipeline.answer([picture], "Darker.", GREEDY, 1)
    drawn = [np.asarray(pipeline.draw([picture], "Darker.", FAST, 1, plan=text)) for text in ("", "Left.", "Right.")]
    assert not any(np.array_equal(drawn[one], drawn[other]) for one, other in ((0, 1), (1, 2)))


def test_a_picture_is_drawn_in_the_shape_that_is_asked_for_or_refused(pipeline):
    assert pipeline.draw([grey(120, 60)], "Darker.", FAST, 1, shape=(16, 40)).size == (40, 16)
    for shape in ((20, 40), (16, 0), (16, 800)):
        with pytest.raises(UserError, match="multiples of 8 pixels"):
            pipeline.draw([grey(120, 60)], "Darker.", FAST, 1, shape=shape)


def test_sizes_of_another_stride_are_refused(folder, pipeline):
    larger = Pipeline.open(str(folder), reading=ReadingSettings(vit_transform_size=(42, 14, 14)))
    assert larger.vit.max_image_size == 42 and larger.vae == pipeline.vae
    with pytest.raises(UserError, match="8 pixels wide, not 16"):
        Pipeline.open(str(folder), reading=ReadingSettings(vae_transform_size=(1024, 32, 16)))


@pytest.mark.parametrize("wrong", [{"target_gpu_device": "cuda"}, {"max_mem_per_gpu": "40"}])
def test_gpus_and_memory_are_read_as_the_guide_writes_them_or_refused(wrong):
    several = ReadingSettings(target_gpu_device="0,1", max_mem_per_gpu="40GiB")
    assert (several.gpu, several.memory) == (0, 40 * 2**30) and ReadingSettings(max_mem_per_gpu="").memory is None
    with pytest.raises(UserError, match=next(iter(wrong))):
        ReadingSettings(**wrong)


def test_a_picture_that_cannot_be_read_is_named(pipeline, tmp_path):
    (tmp_path / "chest.png").write_bytes(b"no picture")
    for name in ("chest.png", "none.png"):
        with pytest.raises(UserError, match=name):
            pipeline.open_picture(tmp_path / name)


def test_a_picture_is_read_as_training_reads_it_or_refused(pipeline, tmp_path):
    """Pillow would make all but the darkest 256 of 65,536 grey values white, and leave a rotation undone."""
    deep, turned, clear = (tmp_path / name for name in ("deep.png", "turned.jpg", "clear.png"))
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(deep)
    rotation = Image.Exif()
    rotation[0x0112] = 6
    grey(32, 64).save(turned, exif=rotation)
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(clear)
    for path, reason in ((deep, "16-bit"), (turned, "EXIF")):
        with pytest.raises(UserError, match=rf"{path.name}.*{reason}"):
            pipeline.open_picture(path)
    assert dataclasses.replace(pipeline, image=ImageSettings(exif="apply")).open_picture(turned).size == (64, 32)
    with pytest.raises(UserError, match="8 bits"):
        pipeline.open_picture(Image.open(deep))
    assert np.asarray(pipeline.open_picture(clear)).min() == 255


def test_16_bits_and_dicom_are_read_as_training_read_them_or_as_it_is_said(folder, tmp_path):
    deep, slice_ = tmp_path / "deep.png", tmp_path / "slice.dcm"
    Image.fromarray(np.array([[0, 4095], [2048, 1024]], np.uint16)).save(deep)
    write_dicom(slice_, np.array([[-600, 40]] * 2, np.int16), 0.0)
    trained = UniMedVLRecipe(SIZES, **SMALL, image=ImageSettings(sixteen_bit="bits,12", window="mediastinum"))
    trained.export(tiny_network(), tmp_path / "model")
    assert UniMedVLRecipe.read(tmp_path / "model").image == trained.image
    pipeline = Pipeline.open(str(tmp_path / "model"))
    assert np.asarray(pipeline.open_picture(deep)).tolist() == [[0, 255], [128, 64]]
    assert np.asarray(pipeline.open_picture(slice_)).tolist() == [[0, 127]] * 2, "in the mediastinal window"
    in_lung = Pipeline.open(str(folder), reading=ReadingSettings(window="lung", sixteen_bit="stretch"))
    assert np.asarray(in_lung.open_picture(deep)).max() == 255
    assert np.asarray(in_lung.open_picture(slice_)).tolist() == [[127, 236]] * 2


def test_both_kinds_of_weights_can_be_asked_for(folder, tmp_path):
    with pytest.raises(UserError, match=r"no model\.safetensors; it has ema\.safetensors"):
        Pipeline.open(str(folder), weights="model")


def test_transparency_is_put_on_white(pipeline):
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    white = Image.new("RGB", (32, 32), "white")
    drawn = [np.asarray(pipeline.draw([each], "Darker.", FAST, 1)) for each in (clear, white)]
    assert np.array_equal(*drawn)


def test_settings_of_pictures_travel_with_the_model(folder):
    assert UniMedVLRecipe.read(folder).vit == SMALL["vit"]
    assert json.loads((folder / "recipe.json").read_text())["vae"]["image_stride"] == 8
