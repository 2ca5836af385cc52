"""Promises 3 and 4 where samples are packed: texts alone, one picture, several, and questions with declared choices."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from keep import Keep
from PIL import Image

from raymed.data.corpus import CorpusSettings, prepare_corpus
from raymed.data.image import ImageSettings
from raymed.data.packing import MixtureSettings
from raymed.data.prepared import Prepared
from raymed.data.split import SplitSettings
from raymed.data.stream import stage
from raymed.models.settings import ModelSettings
from raymed.systems.vitp.recipe import VitpRecipe
from raymed.systems.vitp.token_drop import TokenDropSettings
from raymed.training.checkpoint import Progress
from raymed.training.engine import TrainSettings
from raymed.training.fit import fit, resources
from raymed.training.spec import RunSpec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

SIZE, PATIENTS = 56, 16
TRAIN = TrainSettings(epochs=1, global_batch=4, micro_batch=1, lr=3e-3, checkpoint_steps=2)


def line(patient: int, images: object, question: str, answer: str) -> str:
    turns = [("system", "Look."), ("human", question), ("gpt", answer)]
    said = [{"from": role, "value": text} for role, text in turns]
    return json.dumps({"patient_id": f"P{patient}", "image": images, "conversations": said})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Of each patient a text, a question about a picture, and a comparison of two pictures, one of them of two tiles."""
    folder, draw = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    lines = []
    for number in range(PATIENTS):
        for name, width in (("a", SIZE), ("b", 2 * SIZE)):
            Image.fromarray(draw.integers(0, 256, (SIZE, width), dtype=np.uint8)).save(folder / f"{number}{name}.png")
        lines.append(line(number, None, "What is a lung?", f"Not number {number}."))
        lines.append(line(number, f"{number}a.png", "<cls>: 0|1|2.", str(number % 3)))
        lines.append(line(number, [f"{number}a.png", f"{number}b.png"], "<image>, <image>?", f"Both of {number}."))
    (folder / "lines.jsonl").write_text("\n".join(lines), "utf-8")
    settings = CorpusSettings(image=ImageSettings(SIZE), split=SplitSettings("3/1/0", folds=0))
    return prepare_corpus(folder / "lines.jsonl", str(folder / "out"), settings).prepared


def spec_of(corpus: Prepared, storage: Path, name: str, epochs: int = 1, workers: int = 1, drop_path: float = 0) -> RunSpec:
    recipe = VitpRecipe.for_data(
        corpus,
        model=ModelSettings(preset="internvl-tiny", drop_path=drop_path),
        token_drop=TokenDropSettings(0.5, "paper"),
    )
    train = dataclasses.replace(TRAIN, epochs=epochs)
    sampling = MixtureSettings(max_tokens=160)
    return RunSpec(name, str(storage), corpus.folder.uri, recipe, train, sampling=sampling, workers=workers)


def losses(spec: RunSpec, corpus: Prepared, *callbacks: Keep) -> dict[str, float]:
    metrics = fit(spec, stage(corpus, spec.all_rows(corpus)), resources(spec.workers, 1), callbacks=list(callbacks))
    return {name: value for name, value in metrics.items() if name.startswith(("train_", "val_"))}


def test_two_workers_compute_the_losses_of_one_on_a_mixture(corpus: Prepared, tmp_path: Path) -> None:
    alone = losses(spec_of(corpus, tmp_path, "alone"), corpus)
    assert {"train_token_loss", "train_choice_loss", "val_loss", "val_choice_loss"} <= set(alone) and alone[
        "train_dropped"
    ] > 0.4
    assert losses(spec_of(corpus, tmp_path, "two", workers=2), corpus) == pytest.approx(alone, rel=2e-5)


def test_an_interrupted_pretraining_computes_the_losses_of_an_uninterrupted_one(corpus: Prepared, tmp_path: Path) -> None:
    """It starts from a checkpoint within the second epoch, as a kill right after it would leave it."""
    whole, cut = (spec_of(corpus, tmp_path, name, epochs=2, drop_path=0.3) for name in ("whole", "cut"))
    steps = len(whole.plan(corpus, 0).batches)
    within = 2 if steps % 2 == 0 else 3  # checkpoints lie at every second step of the run
    expected = losses(whole, corpus, Keep(steps + within, Path(cut.folder.path)))
    (kept,) = Path(cut.folder.path).iterdir()
    progress = Progress.read(kept)
    assert (progress.epoch, progress.step) == (1, within)
    assert losses(cut, corpus) == expected, "bit-equal on a CPU in fp32, drop path and dropped tokens included"
