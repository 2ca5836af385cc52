"""Stage 1, stage 2 and the check as a person types them, on phantom patients."""

import csv
import json
from pathlib import Path

import pytest
import torch
from commands import done

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
