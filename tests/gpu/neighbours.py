"""Features of pictures on the device against the CPU's, and their nearest neighbours, by faiss against plain torch.

python tests/gpu/run.py --parts features
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import ray
import torch
from jsonargparse import auto_cli
from machine import CPU, open_device, show
from small_lung import open_data, small_lung

from raymed.models.features import FeatureExtractor, FeatureSettings
from raymed.models.vision_tower import VisionTower
from raymed.retrieval.extract import Work, compute, extract
from raymed.retrieval.features import Features
from raymed.retrieval.index import Index
from raymed.retrieval.parts import prepared_parts
from raymed.retrieval.settings import IndexSettings

ALIKE = 1e-3  # of features of length 1, each number
NEIGHBOURS, AGREED = 5, 0.99


def main(device: str = "cuda", gallery: int = 100_000) -> None:
    """Extract, and search.

    Args:
        device: cuda, or cpu to try it.
        gallery: Vectors that faiss is timed on.
    """
    computing = open_device(device)
    torch.backends.cudnn.allow_tf32 = False
    options = small_lung(device, "")
    prepared = open_data(options)
    recipe = options.recipe(prepared)
    torch.manual_seed(0)
    Path("model").mkdir(exist_ok=True)
    recipe.export(recipe.build(), Path("model"))
    tower = VisionTower.read(Path("model"))
    work, parts = Work(tower.resized(prepared.size), FeatureSettings(), prepared.image), prepared_parts(prepared, "train")
    started = time.monotonic()
    extract(work, parts, {"root": ""}, "features")
    seconds = time.monotonic() - started
    decoded = [picture for part in parts for picture in part.load(map)]
    expected = compute(FeatureExtractor(work.tower, work.settings), decoded, 32, CPU)[0]  # type: ignore[arg-type]
    ray.shutdown()
    (vectors,) = Features.open("features").vectors.values()
    furthest = float(np.abs(vectors - expected).max())
    wrong = not furthest <= ALIKE
    lines = [
        f"{len(vectors)} pictures in {seconds:.1f} s, furthest from the CPU's {furthest:.1e}{' NOT ALIKE' if wrong else ''}"
    ]
    figures = {"furthest": furthest, "seconds": seconds}
    if importlib.util.find_spec("faiss"):
        draw = np.random.default_rng(0)
        many = draw.standard_normal((gallery if device == "cuda" else 1000, 256), np.float32)
        index, queries = Index(many, IndexSettings()), many[:64]
        started = time.monotonic()
        rows, _ = index.search(queries, NEIGHBOURS)
        seconds = time.monotonic() - started
        there = torch.from_numpy(many).to(computing)
        near = torch.cdist(there[:64], there).topk(NEIGHBOURS, largest=False).indices.cpu().numpy()
        agreed = float((rows == near).mean())
        wrong |= agreed < AGREED
        lines.append(f"{index.path}: {agreed:.1%} of torch's neighbours, {seconds / 64 * 1e3:.2f} ms a query of {len(many)}")
        figures |= {"agreed": agreed, "query_seconds": seconds / 64}
    else:
        lines.append("left out: faiss is not installed")
    show("features and neighbours", lines, figures, computing)
    sys.exit(wrong)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
