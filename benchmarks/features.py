"""Pictures per second from files to features, against one picture at a time as users' scripts do it.

    python benchmarks/features.py                                          # minutes on two CPU cores
    python benchmarks/features.py --patients 4 --source_size 64 --size 56 --hidden 64 --layers 2     # seconds, to try it

- script: open, resize, normalise, the ViT with all hidden states, the mean of the tokens; one picture at a time, float32.
- batched: `raymed.retrieval.extract` in one process, which decodes ahead and writes shards; likewise in bf16.
- workers: the same by so many Ray actors; once with their start, and the rate of a second run without it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from machine import flops, matrix_rate, show
from PIL import Image
from torch import nn
from transformers import AutoModel, InternVLVisionConfig

from raymed.cluster.connection import connect
from raymed.data.image import ImageSettings
from raymed.data.phantom import PhantomSettings, write_phantoms
from raymed.data.sources import SourceSettings, list_source
from raymed.data.survey import OWN_LABELS
from raymed.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from raymed.models.features import FeatureSettings
from raymed.models.vision_tower import VisionTower
from raymed.retrieval.extract import Work, extract
from raymed.retrieval.features import Features
from raymed.retrieval.parts import source_parts


def main(
    folder: str = "runs/benchmark-features",
    patients: int = 8,
    source_size: int = 512,
    size: int = 224,
    hidden: int = 384,
    layers: int = 12,
    workers: int = 2,
) -> None:
    """Make phantom patients and a ViT of random weights, unless they are there, and compute features in each way.

    Args:
        folder: Where they are made and kept.
        patients: How many, of 30 to 35 slices.
        source_size: Side of the PNGs, in pixels.
        size: Side of what the ViT sees.
        hidden: Width of the ViT.
        layers: Its blocks.
        workers: Ray actors; 1 leaves that way out.
    """
    root = Path(folder).resolve()
    write_phantoms(root / "patients", PhantomSettings(patients=patients, size=source_size))
    tower = make_tower(root / f"vit-{size}-{hidden}-{layers}", size, hidden, layers)
    listing = list_source(root / "patients", SourceSettings())
    image = ImageSettings(size=size)
    parts, _ = source_parts(listing, OWN_LABELS, image)
    paths = [listing.root / row["path"] for part in parts for row in part.rows]

    def ours(name: str, precision: str, count: int) -> float:
        work = Work(tower, FeatureSettings(precision=precision), image)  # type: ignore[arg-type]
        started = time.perf_counter()
        extract(work, parts, {"kind": "folders", "root": ""}, f"{root}/{name}-{time.time_ns()}", count)
        return said(name, time.perf_counter() - started)

    network = tower.build()
    one_at_a_time(network, paths[:2], size)  # the first pictures pay for what is loaded on first use
    seconds = {"script": said("script", one_at_a_time(network, paths, size))}
    seconds["batched"] = ours("batched", "fp32", 1)
    seconds["batched bf16"] = ours("batched bf16", "bf16", 1)
    if workers > 1:
        connect()
        ours(f"{workers} workers, with their start", "fp32", workers)
        seconds[f"{workers} workers"] = ours(f"{workers} workers", "fp32", workers)
        seconds[f"{workers} workers bf16"] = ours(f"{workers} workers bf16", "bf16", workers)
    rates = {name: len(paths) / each for name, each in seconds.items()}
    lines = [f"{name:16} {rate:8.1f} pictures/s  {rate / rates['script']:5.2f}x the script" for name, rate in rates.items()]
    alike = cosine(root, paths[:8], network, size)
    needed = flops(lambda: script_feature(network, paths[0], size))
    fastest = matrix_rate() / needed
    lines += [f"{needed / 1e9:.1f} GFLOP a picture: {fastest:.1f} pictures/s at the rate of fp32 matrix products"]
    lines += [f"features of the first pictures: cosine with the script's at least {alike:.6f}"]
    title = f"{len(paths)} pictures of {size} pixels, a ViT {hidden} wide with {layers} blocks"
    show(title, lines, rates | {"matrix rate": fastest, "cosine": alike})


def make_tower(folder: Path, size: int, hidden: int, layers: int) -> VisionTower:
    """A ViT of random weights."""
    if not folder.exists():
        torch.manual_seed(0)
        config = InternVLVisionConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64 or 1,
            intermediate_size=4 * hidden,
            image_size=size,
            attention_bias=True,
        )
        AutoModel.from_config(config).save_pretrained(folder)
    return VisionTower.read(folder)


@torch.no_grad()
def script_feature(network: nn.Module, path: Path, size: int) -> np.ndarray:
    """What users' scripts do with a picture, but for the class token, which they average in."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    picture = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    pixels = (torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255 - mean) / std
    hidden = network(pixels[None], output_hidden_states=True).hidden_states[-1]
    return torch.nn.functional.normalize(hidden[:, 1:].mean(1), dim=1)[0].numpy()


def one_at_a_time(network: nn.Module, paths: list[Path], size: int) -> float:
    """Seconds."""
    started = time.perf_counter()
    features = [script_feature(network, path, size) for path in paths]
    np.savez(paths[0].parents[3] / "script.npz", features=np.stack(features), image_paths=np.array([str(p) for p in paths]))
    return time.perf_counter() - started


def cosine(root: Path, paths: list[Path], network: nn.Module, size: int) -> float:
    """The smallest cosine between the script's features of some pictures and those that were written."""
    newest = max(root.glob("batched-*"), key=lambda each: each.stat().st_mtime)
    features = Features.open(str(newest))
    vectors = dict(zip(features.paths, features.vectors[features.layers[-1]], strict=True))
    pairs = [(script_feature(network, path, size), vectors[str(path.relative_to(root / "patients"))]) for path in paths]
    return float(min(a @ b for a, b in pairs))


def said(name: str, seconds: float) -> float:
    """Progress, for the minutes until the end."""
    print(f"{name}: {seconds:.2f} s", file=sys.stderr, flush=True)
    return seconds


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
