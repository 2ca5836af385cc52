"""The lung jobs one after another, as a person types them, with a small InternVL."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from commands import done, job
from mlflow import MlflowClient
from PIL import Image

CLASSES = ["正常肺部", "细菌性肺炎", "病毒性肺炎", "孢子虫肺炎"]
SIZE, PATIENTS, SLICES = 28, 3, 3


def write_patients(folder: Path) -> None:
    """Class folders named as a Chinese hospital names them; classes differ by their brightness."""
    draw = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for patient in range(PATIENTS):
            place = folder / name / f"p{label}{patient}"
            place.mkdir(parents=True)
            for number in range(SLICES):
                pixels = draw.integers(0, 40, (SIZE, SIZE), dtype=np.uint8) + np.uint8(60 * label)
                Image.fromarray(pixels).save(place / f"{number}.png")


@pytest.mark.slow
def test_an_internvl_is_prepared_for_trained_gone_on_with_registered_judged_and_asked(tmp_path: Path) -> None:
    write_patients(tmp_path / "PATIENTS")
    done("prepare_lung", tmp_path, "--source", "PATIENTS", "--out", "DATA", "--image.size", SIZE, "--split.weights", "1/1/1")
    train = ["--data", "DATA", "--model.preset", "internvl-tiny", "--train.lr", "1e-3", "--slices.per_patient", "2"]
    train += ["--train.epochs", "1", "--name", "run", "--language", "zh"]
    trained = job("train_lung", tmp_path, *train)
    assert trained.returncode == 0, trained.stderr
    assert "第 1/1 轮" in trained.stderr
    run_id = trained.stdout.split()[-1]
    again = job("train_lung", tmp_path, *train, "--resume", "must")
    assert again.stdout == trained.stdout and "第 1/1 轮" not in again.stderr, "it was at its end"

    promoted = done("promote", tmp_path, run_id, "--bootstrap", "10", "--language", "zh")
    assert "models:/raymed-lung@champion" in promoted and "4 个测试患者" in promoted
    card = (
        MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
        .get_model_version_by_alias("raymed-lung", "champion")
        .description
    )
    assert "## Figures per patient" in card and "患者" not in card, "what stays with a model is in English"

    model = ["--model", "models:/raymed-lung@champion"]
    judge = [*model, "--data", "DATA", "--split", "all", "--method", "vote", "--per-patient", "1", "--bootstrap", "10"]
    judged = done("evaluate_lung", tmp_path, *judge, "--language", "zh")
    assert "单张切片（12）" in judged and "细菌性肺炎* (3)" in judged
    done(
        "predict_lung",
        tmp_path,
        *model,
        "--input",
        "PATIENTS",
        "--source.labelled",
        "true",
        "--out",
        "out.csv",
        "--language",
        "zh",
    )
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8-sig") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(CLASSES) * PATIENTS and {line["shown_as"] for line in lines} <= set(CLASSES)
    assert {line["decision"] for line in lines} <= {"normal", "bacterial", "viral", "pneumocystis"}
