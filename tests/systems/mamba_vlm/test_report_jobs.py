"""Stage 1, stage 2 and the check as a person types them, on phantom patients."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import ROOT, done, script

from raymed.data.phantom import PhantomSettings
from raymed.data.split import SplitSettings
from raymed.job.command_line import parse
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.phantoms import SETTINGS, prepare_phantom_reports

PHANTOMS = ("--phantom.patients", "20")


@pytest.mark.slow
@pytest.mark.timeout(1500)  # five jobs, each with a Ray of its own
def test_phantom_patients_go_through_both_stages_and_a_text_comes_out(tmp_path: Path) -> None:
    told = done("train_bridge", tmp_path, *PHANTOMS, "--epochs", "1")
    assert "val_loss" in told
    outputs = tmp_path / "outputs"
    first = torch.load(outputs / "vision_bridge_best_val.pt", weights_only=True)
    assert set(first) == {"step", "model_state_dict", "val_loss", "settings", "data"}

    words = (*PHANTOMS, "--epochs", "2", "--vision_checkpoint", "outputs/vision_bridge_best_val.pt")
    told = done("train_vlm", tmp_path, *words)
    assert "epoch 2 平均 caption_loss" in told and "最近 2 个 epoch 平均 caption_loss" in told
    with (outputs / "stage2_train_log.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 2
    assert json.loads((outputs / "stage2_config.json").read_text())["max_visual_tokens"] == 16
    second = torch.load(outputs / "vision_bridge_vlm_final.pt", weights_only=True)
    assert any(key.startswith("bridge.vim_fwd.mamba") for key in second["model_state_dict"])
    assert second["optimizer_state_dict"]["step"] == second["step"]

    told = done("check_image_to_text", tmp_path, *PHANTOMS, "--max_new_tokens", "20")
    for line in ("lm_head 已绑定到 input_embeddings", "输入图像: ", "问题: ", "生成文本: ", "参考: "):
        assert line in told
    [run] = outputs.glob("run_*")
    assert {path.name for path in run.iterdir()} == {"meta.json", "generated.txt", "slice.png"}

    volume = next((tmp_path / "runs").glob("phantom-reports-*/images/*.nii.gz"))
    told = done("check_image_to_text", tmp_path, "--image", str(volume), "--max_new_tokens", "5")
    assert f"输入图像: {volume}" in told and "参考" not in told

    told = done("train_vlm", tmp_path, *PHANTOMS, "--epochs", "1")  # goes on
    with (outputs / "stage2_train_log.csv").open() as file:
        epochs = [int(row["epoch"]) for row in csv.DictReader(file)]
    assert epochs[-1] == 3, "a run that goes on adds its epochs to the log"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_all_reports_can_be_trained_on_and_the_last_epoch_is_then_the_file_that_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Folder.at(tmp_path)
    everything = replace(SETTINGS, split=SplitSettings("100/0/0", folds=0))
    prepared = prepare_phantom_reports(folder, PhantomSettings(patients=6, size=64, slices=(4, 4)), everything)
    job = script("train_bridge")
    words = ["--data", prepared.folder.uri, "--storage", str(tmp_path / "runs"), "--output_dir", str(tmp_path / "out")]
    words += ["--config", str(ROOT / "configs" / "mamba_bridge_phantoms.yaml"), "--train.epochs", "1"]
    outcome = job.main(parse(job.TrainBridge, words, aliases=job.GUIDE, script=job))
    assert "no val patients: all are trained on. There is no val_loss" in caplog.text
    assert "no val_loss in epoch 1 of 1, the last; checkpoint " in outcome.text
    assert outcome.data["val_loss"] is None
    kept = torch.load(tmp_path / "out" / "vision_bridge_best_val.pt", weights_only=True)
    assert "val_loss" not in kept and kept["step"] >= 1
