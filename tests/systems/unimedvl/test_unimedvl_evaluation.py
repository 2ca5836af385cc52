"""A network judged on prepared phantoms: one that sees, and one that guesses and gives pictures back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import script
from PIL import Image

from raymed.data.phantom import PhantomSettings
from raymed.data.prepared import Prepared
from raymed.data.record import Record
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.evaluation import evaluate_rows
from raymed.systems.unimedvl.evaluation_files import HEAD, write_evaluation
from raymed.systems.unimedvl.network import UniMedVL, start_weights
from raymed.systems.unimedvl.phantoms import prepare_phantoms
from raymed.systems.unimedvl.reader import Reader, Shown, pictures_of
from raymed.systems.unimedvl.recipe import UniMedVLRecipe
from raymed.systems.unimedvl.sequence import from_messages
from raymed.systems.unimedvl.settings import PRESETS, TINY
from raymed.systems.unimedvl.synthetic import GAP, SHOWN
from raymed.systems.unimedvl.tokens import TextTokens
from raymed.systems.unimedvl.tool_settings import DrawingSettings, TextSettings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def data(tmp_path_factory, cluster) -> Prepared:
    return prepare_phantoms(Folder.at(tmp_path_factory.mktemp("phantoms")), PhantomSettings(24, 64, difficulty=0.2))


@pytest.fixture(scope="module")
def network() -> UniMedVL:
    torch.manual_seed(0)
    made = UniMedVL(PRESETS[TINY])
    start_weights(made)
    return made.eval()


def reader(kind: type[Reader], network: UniMedVL) -> Reader:
    writing, drawing = TextSettings(max_new_tokens=4, do_sample=False), DrawingSettings(num_timesteps=3)
    return kind(network, TextTokens.bytes(), writing, drawing)


@dataclass(frozen=True, eq=False)
class Seeing(Reader):
    """Answers what a person wrote of the picture that is shown, and draws what was wanted."""

    def answer(self, record: Record, shown: Shown | None = None) -> str:
        own = shown is None or np.array_equal(shown["input", 0], pictures_of(record)["input", 0])
        return next(each.text for each in from_messages(record.messages) if each.kind == "gpt") if own else "Yes."

    def paint(self, record: Record) -> np.ndarray:
        last = [each for each in from_messages(record.messages) if each.kind == "target"][-1]
        return pictures_of(record)["output", last.place]


@dataclass(frozen=True, eq=False)
class Guessing(Seeing):
    """Says the same of every picture, and gives pictures back."""

    def answer(self, record: Record, shown: Shown | None = None) -> str:
        return "Yes."

    def paint(self, record: Record) -> np.ndarray:
        return pictures_of(record)["output", 0]


def test_one_who_sees_passes_every_guard(data, network) -> None:
    made = evaluate_rows(reader(Seeing, network), data, data.rows("train"), limit=0)
    assert made.answers is not None and made.drawings is not None
    assert made.answers.scores.metrics["exact"].value == 1.0
    assert [(guard.name, guard.passed) for guard in made.answers.guards] == [
        ("commonest answer", True), ("image shuffle", True),
    ]  # fmt: skip
    assert [source.rpartition("/")[2] for source in made.drawings.by_source] == ["phantom_lesions", "phantom_windows"]
    assert not made.drawings.scores.copies and made.drawings.distance == pytest.approx(0.0, abs=1e-6)


def test_one_who_guesses_and_copies_is_told(data, network) -> None:
    made = evaluate_rows(reader(Guessing, network), data, data.rows("train"), limit=30)
    assert made.answers is not None and made.drawings is not None
    assert not any(guard.passed for guard in made.answers.guards)
    assert made.drawings.scores.copies and "it gives its input back" in "\n".join(made.lines())
    assert len(made.answers.questions) == len(made.drawings.ids) == 30


def test_a_real_network_answers_and_draws_the_same_whatever_came_before(data, network, tmp_path: Path) -> None:
    one = reader(Reader, network)
    made = evaluate_rows(one, data, data.rows("val"), limit=3)
    assert made.answers is not None and made.drawings is not None
    records = data.read(data.rows("val"))
    record = next(each for each in records if each.id == made.drawings.ids[-1])
    assert np.array_equal(made.drawings.pictures.drawn[-1], one.paint(record))
    assert made.drawings.pictures.drawn[0].shape == (32, 32, 3)
    lines = write_evaluation(made, str(tmp_path))
    assert len(lines) == 2 and (tmp_path / "answers.csv").read_text("utf-8-sig").startswith(
        "patient,question,reference,answer"
    )
    height = SHOWN + SHOWN // 12  # with the mark
    assert Image.open(tmp_path / "pictures.png").size == (3 * SHOWN + 2 * GAP, HEAD + 3 * (height + GAP))


def test_rows_that_ask_for_nothing_about_a_picture_are_judged_by_nothing(data, network) -> None:
    texts = np.flatnonzero(np.array(["texts" in name for name in data.index["source"].to_pylist()]))
    made = evaluate_rows(reader(Reader, network), data, texts, limit=0)
    assert made.patients == made.lines() == made.verdicts() == [] and made.figures() == {}


def test_the_job_judges_an_exported_model(data, network, tmp_path: Path) -> None:
    recipe = UniMedVLRecipe(PRESETS[TINY])
    recipe.export(network, tmp_path / "model")
    job = script("evaluate_unimedvl")
    options = job.EvaluateUnimedvl(
        model=str(tmp_path / "model"),
        data=data.folder.uri,
        split="val",
        limit=2,
        text=TextSettings(max_new_tokens=4, do_sample=False),
        drawing=DrawingSettings(num_timesteps=3),
        out=str(tmp_path / "judged"),
        storage=str(tmp_path),
    )
    outcome = job.main(options)
    assert "answers: 2 of" in outcome.text and "pictures: 2 of" in outcome.text
    assert {"exact", "psnr", "psnr_gain"} <= outcome.data["figures"].keys()
    assert (tmp_path / "judged" / "pictures.png").exists()
