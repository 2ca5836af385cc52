"""The guide's commands of retrieval as it types them, with the lines that it shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import script
from PIL import Image
from transformers import InternVLVisionConfig

from raymed.job.command_line import parse
from raymed.models.backbones import make_backbone
from raymed.models.vision_tower import VisionTower


def typed(name: str, options: str, *words: object) -> str:
    """What a job says in the end."""
    job = script(name)
    outcome = job.main(parse(getattr(job, options), [str(word) for word in words], aliases=job.GUIDE, script=job))
    return str(outcome.text)


def test_the_guides_three_commands_give_its_files_and_its_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    config = InternVLVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=28, attention_bias=True
    )
    VisionTower(config, make_backbone(config, 28).state_dict(), {}, "made").write(tmp_path / "vit", "native")
    draw, data, features = np.random.default_rng(0), tmp_path / "data", tmp_path / "features"
    for split, count in (("train", 6), ("test", 3)):
        for label in ("正常", "肺炎"):
            (data / split / label).mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(draw.integers(0, 256, (30, 30, 3), dtype=np.uint8))
                picture.save(data / split / label / f"{number}.{'JPG' if number % 2 else 'png'}")
    (data / "train" / "正常" / "bad.png").write_bytes(b"no picture")
    outputs = {"train": features / "gallery_features.npz", "test": features / "query_features.npz"}
    with caplog.at_level("INFO", "raymed"):
        said = {
            split: typed(
                "extract_features", "ExtractFeatures", "--image_dir", data / split, "--output", output, "--vit_checkpoint",
                tmp_path / "vit", "--storage", tmp_path / "runs",
            )
            for split, output in outputs.items()
        }  # fmt: skip
        judged = typed(
            "evaluate_retrieval", "EvaluateRetrieval", "--query_features", outputs["test"], "--gallery_features",
            outputs["train"], "--top_k", 1, 3, 5, "--storage", tmp_path / "runs", "--bootstrap", 20,
        )  # fmt: skip
    assert "找到 13 张图像" in caplog.text and "提取特征" in caplog.text
    assert re.search(r"处理 .*bad\.png 时出错: ", said["train"])
    assert "特征形状: (12, 32)" in said["train"] and f"特征已保存到 {outputs['train']}" in said["train"]
    with np.load(outputs["train"]) as stored:
        assert stored["features"].shape == (12, 32) and len(stored["image_paths"]) == 12
    for line in (
        "加载查询集特征...",
        "加载候选集特征...",
        "查询集: (6, 32), 候选集: (12, 32)",
        "构建 FAISS 索引...",
        "执行检索...",
    ):
        assert line in caplog.text
    for k in (1, 3, 5):
        assert re.search(rf"^Top-{k} 准确率: [01]\.\d{{4}} \(\d/6\)$", judged, re.MULTILINE)
