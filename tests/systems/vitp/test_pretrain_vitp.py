"""Pretraining as docs/vitp.md has it: from lines of questions to a ViT that transformers loads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from commands import done, job
from conftest import write_prepared
from PIL import Image
from transformers import AutoModel

SIZE, PATIENTS, EPOCHS = 56, 12, 3


def write_questions(folder: Path) -> None:
    """Pictures of as many patients, with a question about each."""
    draw, lines = np.random.default_rng(0), []
    for number in range(PATIENTS):
        Image.fromarray(draw.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).save(folder / f"{number}.png")
        turns = [("human", "<image>\n<cls>: 0|1."), ("gpt", str(number % 2))]
        said = [{"from": role, "value": text} for role, text in turns]
        lines.append(json.dumps({"image": f"{number}.png", "patient_id": f"P{number}", "conversations": said}))
    (folder / "questions.jsonl").write_text("\n".join(lines), "utf-8")


@pytest.mark.slow
def test_the_epoch_that_answers_questions_best_becomes_a_vit(tmp_path: Path) -> None:
    write_questions(tmp_path)
    prepare = ["--source", "questions.jsonl", "--out", "CORPUS", "--image.size", str(SIZE), "--split.weights", "3/1/0"]
    done("prepare_vitp", tmp_path, *prepare)

    train = ["--train.epochs", str(EPOCHS), "--train.monitor", "val_choice_loss", "--mixture.max_tokens", "512"]
    told = done("pretrain_vitp", tmp_path, "--data", "CORPUS", "--name", "questions", *train)
    said = re.search(r"val_loss (\S+) in epoch (\d) of 3, chosen by val_choice_loss; checkpoint (\S+)", told)
    assert said, told
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("raymed-vitp")
    (run,) = (each for each in client.search_runs([experiment.experiment_id]) if "val_choice_loss" in each.data.metrics)
    history = {each.step: each.value for each in client.get_metric_history(run.info.run_id, "val_choice_loss")}
    assert len(history) == EPOCHS and min(history, key=lambda epoch: history[epoch]) == int(said[2])

    val_losses = {each.step: each.value for each in client.get_metric_history(run.info.run_id, "val_loss")}
    kept = f"val_loss {val_losses[int(said[2])]:.4f}"
    assert said[0].startswith(kept)
    assert kept in done("promote", tmp_path, run.info.run_id), "the registered checkpoint's own"

    command = told[told.index("jobs/extract_vit.py") :].split()[1:]
    assert "language model" in done("extract_vit", tmp_path, *command)
    vit = AutoModel.from_pretrained(tmp_path / "VIT")
    with torch.no_grad():
        assert torch.isfinite(vit(torch.zeros(1, 3, SIZE, SIZE)).last_hidden_state).all()


@pytest.mark.slow
def test_all_patients_can_be_trained_on_and_what_nobody_knows_then_is_told(tmp_path: Path) -> None:
    write_questions(tmp_path)
    prepare = ["--source", "questions.jsonl", "--out", "CORPUS", "--image.size", str(SIZE), "--split.weights", "100/0/0"]
    done("prepare_vitp", tmp_path, *prepare)
    train = ["--data", "CORPUS", "--train.steps", "3", "--train.global_batch", "4", "--mixture.max_tokens", "512"]
    write_prepared(tmp_path / "PROBE", size=SIZE)
    ended = job("pretrain_vitp", tmp_path, *train, "--probe", "PROBE", "--name", "all", "--json")
    assert ended.returncode == 0, ended.stderr
    assert "no val patients: all are trained on. There is no val_loss" in ended.stderr
    left = json.loads(ended.stdout)
    assert re.search(r"step 3/3 .* probe_top1 \d+\.\d%  probe_map5 0\.\d", ended.stderr), ended.stderr
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert 0 <= client.get_run(left["run_id"]).data.metrics["probe_top1"] <= 1
    assert left["val_loss"] is None and left["best_epoch"] == left["epochs"], "the last is kept"
    assert "language model" in done("extract_vit", tmp_path, "--model", left["checkpoint"], "--out", "VIT")
    promoted = job("promote", tmp_path, left["run_id"])
    assert promoted.returncode == 2 and "nobody is left to judge it" in promoted.stderr


@pytest.mark.slow
def test_a_search_is_decided_by_what_a_labelled_probe_says_of_the_backbone(tmp_path: Path) -> None:
    write_questions(tmp_path)
    prepare = ["--source", "questions.jsonl", "--out", "CORPUS", "--image.size", str(SIZE), "--split.weights", "3/1/0"]
    done("prepare_vitp", tmp_path, *prepare)
    write_prepared(tmp_path / "PROBE", size=SIZE)
    words = [
        "--data",
        "CORPUS",
        "--probe",
        "PROBE",
        "--search.objective",
        "probe_top1",
        "--trials",
        "2",
        "--max-epochs",
        "1",
    ]
    left = json.loads(done("tune_vitp", tmp_path, *words, "--mixture.max_tokens", "512", "--name", "probed", "--json"))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("raymed-vitp")
    runs = client.search_runs([experiment.experiment_id], "tags.mlflow.parentRunId != ''")
    reached = [max(each.value for each in client.get_metric_history(run.info.run_id, "probe_top1")) for run in runs]
    assert len(reached) == 2 and left["probe_top1"] == max(reached)
