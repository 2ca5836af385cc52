"""A configured lung model against a plain ResNet-18, on patients that neither was trained on: cross-validation.

    python jobs/prepare_lung.py --source labels.csv --out PREPARED --image.size 112 --split.weights 80/20/0
    python benchmarks/cross_validation.py PREPARED                           # a training of each kind for every fold
    python benchmarks/cross_validation.py PREPARED --folds 1 --epochs 1 --plain_epochs 1                # to try it

Each fold's patients are judged by the two networks that were trained on all others. Ours is `jobs/train_lung.py` with the
default trial of a search's configuration; its last epoch is judged, without calibration, so that the judged patients decide
nothing more. They decided the configuration, where it was tuned on the same data: then the figures flatter ours. The plain
one is what a script of forty lines does: AdamW, one cycle, shifted pictures, the last epoch. The folds' probabilities are
pooled and compared patient by patient, and fold by fold: how sure the difference is if both are trained anew. The same
command goes on with what an interrupted one has done.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import auto_cli
from machine import show
from torch.nn.functional import cross_entropy, pad
from transformers import ResNetConfig, ResNetForImageClassification

from raymed.data.prepared import Prepared
from raymed.evaluation import summary
from raymed.evaluation.intervals import over_folds
from raymed.evaluation.metrics import difference_interval, evaluate
from raymed.evaluation.patients import Patients, softmax, to_patients
from raymed.storage.folder import Folder
from raymed.training.checkpoint import PREDICTIONS, fetch_newest

ROOT = Path(__file__).parent.parent
SEARCH_ONLY = ("trials", "max_epochs", "search")  # what a single run does not know
BATCH = 32

Judged = tuple[np.ndarray, np.ndarray]  # rows, int64 [rows], and their logits, float32 [rows, classes]


def main(
    data: str,
    config: str = str(ROOT / "configs" / "lung_xray.yaml"),
    storage: str = "runs/benchmark-cross-validation",
    folds: int | None = None,
    epochs: int = 8,
    plain_epochs: int = 14,
) -> None:
    """Train both networks on every fold and compare them.

    Args:
        data: Prepared patients without a test split.
        config: Of a search; its defaults are trained.
        storage: Where runs and predictions are kept.
        folds: How many of the folds are judged (default: all).
        epochs: Of ours.
        plain_epochs: Of the plain network.
    """
    home = Path(storage).resolve()
    home.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in yaml.safe_load(Path(config).read_text()).items() if name not in SEARCH_ONLY}
    settings["train"]["epochs"] = epochs
    single = home / "single.yaml"
    single.write_text(yaml.safe_dump(settings))
    prepared = Prepared.open(data)
    data_name = prepared.digest[:8]
    pairs = [
        (
            kept(home / f"ours-{data_name}-{epochs}-{fold}.npz", train_ours, prepared, single, home, fold),
            kept(home / f"plain-{data_name}-{plain_epochs}-{fold}.npz", train_plain, prepared, fold, plain_epochs),
        )
        for fold in range(folds or prepared.manifest.settings["split"]["folds"])
    ]
    ours, plain = (pool(prepared, way) for way in zip(*pairs, strict=True))
    difference = difference_interval(ours, plain)
    evaluations = {"ours": evaluate(ours, prepared.labels.names), "plain": evaluate(plain, prepared.labels.names)}
    text = [line for way, evaluation in evaluations.items() for line in (way, *summary.lines(evaluation), "")]
    anew = over_folds([difference_interval(pool(prepared, [one]), pool(prepared, [other])).value for one, other in pairs])
    text.append(
        f"log loss, ours - plain, patient by patient: {summary.show(difference)}; trained anew: {summary.show(anew)}"
    )
    figures = {way: asdict(evaluation) for way, evaluation in evaluations.items()}
    figures |= {"difference": asdict(difference), "difference_trained_anew": asdict(anew)}
    show(f"{len(ours.ids)} patients, folds: {len(pairs)}", text, figures)


def kept(file: Path, train: Callable[..., Judged], *arguments: Any) -> Judged:
    """What a training gives, or gave before."""
    if not file.exists():
        rows, logits = train(*arguments)
        np.savez(file, rows=rows, logits=logits)
    with np.load(file) as found:
        return found["rows"], found["logits"]


def train_ours(prepared: Prepared, config: Path, home: Path, fold: int) -> Judged:
    """A run of the job, judged after its last epoch."""
    name = f"fold{fold}"
    command = [sys.executable, str(ROOT / "jobs" / "train_lung.py"), "--config", str(config), "--name", name, "--json"]
    command += ["--data", prepared.folder.uri, "--fold", str(fold), "--storage", str(home)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as folder:
        last = fetch_newest(Folder.at(str(home / name / "trials" / "trial-0000")), Path(folder))
        assert last is not None, "the run ended well and has no checkpoint"
        with np.load(last / PREDICTIONS) as found:
            return found["row"], found["logits"]


def train_plain(prepared: Prepared, fold: int, epochs: int) -> Judged:
    """ResNet-18 from random weights, in float32."""
    torch.manual_seed(fold)
    train, val = prepared.rows("train", fold), prepared.rows("val", fold)
    pixels, labels = tensors(prepared, train)
    shape = ResNetConfig(layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2])
    shape.num_labels = len(prepared.labels.names)
    network = ResNetForImageClassification(shape)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    steps = len(train) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=epochs * steps)
    for epoch in range(epochs):
        network.train()
        order = torch.randperm(len(train))
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            loss = cross_entropy(network(shifted(pixels[batch])).logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"plain, fold {fold}, epoch {epoch}: training loss of the last step {loss.item():.3f}", file=sys.stderr)
    network.eval()
    pixels, _ = tensors(prepared, val)
    with torch.inference_mode():
        return val, torch.cat([network(part).logits for part in pixels.split(BATCH)]).numpy()


def tensors(prepared: Prepared, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures from -1 to 1, float32 [rows, 3, size, size], and class indices, int64 [rows]."""
    pictures = np.stack([record.images[0].pixels for record in prepared.read(rows)])
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).expand(-1, 3, -1, -1) / 127.5 - 1
    return pixels, torch.tensor(prepared.columns(rows, ["label"])["label"])


def shifted(pixels: torch.Tensor) -> torch.Tensor:
    """Each picture of a batch moved by up to a sixteenth of its side, its edges repeated."""
    side = pixels.shape[-1]
    margin = side // 16
    places = torch.randint(2 * margin + 1, (len(pixels), 2)).tolist()
    wide = pad(pixels, (margin,) * 4, "replicate")
    moved = [each[:, down : down + side, right : right + side] for each, (down, right) in zip(wide, places, strict=True)]
    return torch.stack(moved)


def pool(prepared: Prepared, folds: Sequence[Judged]) -> Patients:
    """Patients of all folds, by the mean probability of their pictures."""
    rows = np.concatenate([rows for rows, _ in folds])
    columns = prepared.columns(rows, ["patient", "label", "source"])
    probabilities = softmax(np.concatenate([logits for _, logits in folds]))
    return to_patients(probabilities, columns["patient"], columns["label"], columns["source"])


if __name__ == "__main__":
    auto_cli(main)
