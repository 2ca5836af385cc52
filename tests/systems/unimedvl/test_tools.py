"""The two tools, on the tiny network."""

import json

import numpy as np
import pytest
from packed_samples import SIZES, tiny_network
from PIL import Image, ImageFont

from raymed.errors import UserError
from raymed.systems.unimedvl.asking import VQA, ask_many, ask_one
from raymed.systems.unimedvl.editing import EditImage, edit
from raymed.systems.unimedvl.pipeline import Pipeline
from raymed.systems.unimedvl.questions import read_questions
from raymed.systems.unimedvl.recipe import UniMedVLRecipe
from raymed.systems.unimedvl.resize import ResizeSettings
from raymed.systems.unimedvl.synthetic import GAP, MARK, marked, sheet
from raymed.systems.unimedvl.tool_settings import DrawingSettings, TextSettings

SHORT = TextSettings(max_new_tokens=8, do_sample=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    UniMedVLRecipe(SIZES, vit=ResizeSettings(14, 56, 28), vae=ResizeSettings(8, 64, 16)).export(tiny_network(), folder)
    return str(folder)


@pytest.fixture(scope="module")
def pipeline(model) -> Pipeline:
    return Pipeline.open(model)


@pytest.fixture
def chest(tmp_path):
    path = tmp_path / "chest.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)).save(path)
    return path


def test_an_answer_is_shown_once_as_it_comes_and_is_in_the_outcome(pipeline, chest, capsys):
    outcome = ask_one(pipeline, VQA(model="m", image=str(chest), prompt="Findings?", text=SHORT))
    shown = capsys.readouterr()
    assert outcome.data["answer"] == shown.out.strip() and not outcome.text and not shown.err
    again = ask_one(pipeline, VQA(model="m", image=str(chest), prompt="Findings?", text=SHORT, json=True))
    assert again.data["answer"] == outcome.data["answer"] and not capsys.readouterr().out, "the JSON object stands alone"


def test_questions_of_a_file_are_answered_line_by_line(pipeline, chest, tmp_path):
    lines = [{"id": 7, "image": "chest.png", "prompt": "Findings?"}, {"image": ["chest.png"] * 2, "prompt": "Same?"}]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n\n".join(map(json.dumps, lines)))
    outcome = ask_many(
        pipeline, VQA(model="m", questions=str(file), out=str(tmp_path / "out" / "answers.jsonl"), text=SHORT)
    )
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [{**answer, "answer": 0} for answer in answers] == [{**line, "answer": 0} for line in lines]
    alone = ask_one(pipeline, VQA(model="m", image=str(chest), prompt="Findings?", text=SHORT)).data["answer"]
    assert answers[0]["answer"] == alone and outcome.data["answers"] == 2


def test_every_line_that_is_no_question_is_named(tmp_path, chest):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "Findings?"}\n{"image": "none.png", "prompt": "?"}\n\nno json\n{"image": "chest.png"}\n')
    with pytest.raises(UserError) as caught:
        read_questions(file)
    assert [line.split(": ")[0].rpartition(":")[2] for line in str(caught.value).splitlines()] == ["2", "4", "5"]
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no question"):
        read_questions(file)


def test_an_edit_is_marked_and_keeps_its_settings_in_the_file(pipeline, chest, tmp_path):
    out = tmp_path / "out" / "edited.png"
    options = EditImage(
        model="m",
        image=str(chest),
        instruction="Darker.",
        out=str(out),
        mode="thinking",
        drawing=DrawingSettings(num_timesteps=3, cfg_img_scale=1.5),
        text=SHORT,
    )
    outcome = edit(pipeline, options)
    drawn = Image.open(out)
    settings = json.loads(drawn.text["raymed"])
    assert settings["synthetic"] and (settings["cfg_img_scale"], settings["seed"]) == (1.5, 42)
    assert (settings["asked"], settings["weights"]) == ("Darker.", "ema"), "with these the same can be asked again"
    assert settings["instruction"].startswith("Darker.\n\nBased on analysis: ")
    assert drawn.size[0] == 64 and drawn.size[1] > 48  # the strip lies below the picture
    beside = Image.open(outcome.data["sheet"])
    assert beside.size[0] == 2 * 256 + GAP and beside.size[1] > 4 * 48, "a small picture is shown four times as large"
    assert outcome.text.endswith(str(out))


def test_a_mark_leaves_the_picture_itself_as_it_is():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    whole = marked(picture)
    assert np.array_equal(np.asarray(whole)[:48], np.asarray(picture))


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (32, 32), (48, 64), (512, 512), (1024, 60)])
def test_the_mark_is_whole_and_can_be_read_below_a_picture_of_any_size(size):
    whole = marked(Image.new("L", size, 90))
    height = whole.height - size[1]
    letters = np.asarray(whole)[size[1] :, :, 0] > 100
    columns, rows = (np.flatnonzero(letters.any(axis)) for axis in (0, 1))
    assert columns[0] > 0 and columns[-1] < whole.width - 1 and rows[0] > 0 and rows[-1] < height - 1, "nothing is cut off"
    reference = ImageFont.load_default(height - 3).getlength(MARK)
    assert len(rows) >= 7 and np.ptp(columns) > 0.9 * reference, "nor made too small to read"


def test_a_sheet_shows_what_was_given_without_a_mark_and_what_was_drawn_with_one():
    given, drawn = Image.new("L", (32, 32), 0), Image.new("RGB", (32, 32), "blue")
    beside = np.asarray(sheet(given, given, drawn))
    assert beside.shape[1] == 3 * 256 + 2 * GAP and beside[0, -1].tolist() == [0, 0, 255]
    below = beside[256:]
    assert (below[:, : 2 * (256 + GAP)] == 255).all() and (below[:, 2 * (256 + GAP) :] == 0).any()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (lambda: EditImage(model="m", instruction="Darker."), "needs a picture and an instruction"),
        (lambda: EditImage(model="m", image="a.png", instruction="x", out="b.jpg"), "name it .png"),
        (lambda: VQA(model="m"), "nothing is asked"),
        (lambda: VQA(model="m", questions="q.jsonl"), "--questions goes with --out"),
    ],
)
def test_requests_that_lack_something_are_refused_before_a_model_is_read(options, named):
    with pytest.raises(UserError, match=named):
        options()
