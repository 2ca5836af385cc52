"""Five folds as one run, against five ordinary runs one after the other.

    python benchmarks/folds.py                                                                # the figures of docs/log.md
    python benchmarks/folds.py --patients 16 --slices 2 --source_size 64 --size 32 --encoder tiny --epochs 1 --folds 2

Ours is `jobs/train_clip.py --use-cv` from an empty folder: preparing, Ray, folds side by side, checkpoints, MLflow and files
are all in its time. An ordinary run is one process that trains one fold on all cores: a DataLoader decodes and resizes each
JPEG in every epoch, training and validation. Pictures, augmentation, network, loss, optimizer and folds are the same.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from machine import show
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from raymed.data.image import ImageSettings, fit, read_picture
from raymed.data.phantom import PhantomSettings, phantom_patient
from raymed.data.prepared import Prepared
from raymed.data.record import Record
from raymed.evaluation.predict import to_record
from raymed.models.norm import batch_norms, settle_batch_norms, step_statistics
from raymed.models.precision import arithmetic
from raymed.models.settings import ClipModelSettings, Precision
from raymed.recipes.recipe import TrainingPass
from raymed.systems.clip.recipe import ClipRecipe
from raymed.training.engine import TrainSettings
from raymed.training.schedule import learning_rate

ROOT = Path(__file__).parent.parent
TRAIN = TrainSettings(warmup=0.0, final_lr=0.0, lr=1e-3, global_batch=32, micro_batch=32, norm_group=32)


def main(
    folder: str = "runs/benchmark-folds",
    folds: int = 5,
    epochs: int = 8,
    patients: int = 120,
    slices: int = 5,
    source_size: int = 1024,
    size: int = 112,
    encoder: str = "resnet18",
    precision: Precision = "amp",
    loader_workers: int = 2,
    timed_runs: int = 0,
) -> None:
    """Train all folds in both ways.

    Args:
        folder: Where the images are kept, and the storage of our run, which is emptied first.
        folds: Folds, and ordinary runs.
        epochs: Epochs of each.
        patients: Phantom patients.
        slices: Images of a patient.
        source_size: Side of the JPEGs, in pixels.
        size: Side of what the network sees.
        encoder: The image encoder.
        precision: Of both: amp or fp32.
        loader_workers: Processes of an ordinary run's DataLoader.
        timed_runs: Ordinary runs that are timed; the others are taken to last as long (0 = one for each fold).
    """
    home = Path(folder).resolve()
    images = write_images(home / f"images-{patients}-{slices}-{source_size}", patients, slices, source_size)
    storage = home / "storage"
    shutil.rmtree(storage, ignore_errors=True)
    options = {
        "--data-dir": images,
        "--patient-regex": r"/(p[0-9]+)_",
        "--storage": storage,
        "--output-dir": storage / "output",
        "--image-encoder": encoder,
        "--text-encoder": "characters",
        "--embed-dim": 64,
        "--img-size": size,
        "--augmentation": "minimal",
        "--epochs": epochs,
        "--n-splits": folds,
        "--train.precision": precision,
        "--train.lr": TRAIN.lr,
        "--train.clip": 0,
    }
    words = [str(word) for word in itertools.chain(*options.items())]
    ours, said = timed([sys.executable, str(ROOT / "jobs" / "train_clip.py"), "--use-cv", "--json", *words])
    accuracy = json.loads(said.splitlines()[-1])["average_results"]["avg_best_val_acc"]
    (prepared,) = (str(path.parent) for path in storage.glob("*/manifest.json"))
    ordinary, accuracies = [], []
    for fold in range(timed_runs or folds):
        described = [prepared, str(images), fold, epochs, size, encoder, precision, loader_workers]
        seconds, said = timed([sys.executable, __file__, "--ordinary", json.dumps(described)])
        ordinary.append(seconds)
        accuracies.append(float(said.splitlines()[-1]))
    theirs = folds * sum(ordinary) / len(ordinary)
    ratio = ours / theirs
    lines = [
        f"one run of {folds} folds: {ours:.0f} s; {folds} ordinary runs: {theirs:.0f} s "
        f"(timed: {', '.join(f'{seconds:.0f}' for seconds in ordinary)}); ratio {ratio:.3f}",
        f"best accuracy, mean of folds: {accuracy:.1f} % and {np.mean(accuracies):.1f} %",
    ]
    figures = {"ours": ours, "ordinary": ordinary, "ratio": ratio, "accuracy": accuracy, "ordinary_accuracies": accuracies}
    title = f"{encoder} at {size} pixels, {patients * slices} JPEGs of {source_size} pixels, {epochs} epochs, {precision}"
    show(title, lines, figures)


def write_images(folder: Path, patients: int, slices: int, size: int) -> Path:
    """``<class>/<patient>_<slice>.jpg``, unless they are there."""
    if folder.exists():
        return folder
    draft = folder.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    settings = PhantomSettings(patients=patients, size=size, slices=(slices, slices))
    for number in range(patients):
        label, pictures = phantom_patient(settings, number)
        (draft / label).mkdir(parents=True, exist_ok=True)
        for place, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(draft / label / f"p{number:04d}_{place}.jpg", quality=90)
    draft.rename(folder)
    return folder


def timed(command: Sequence[str]) -> tuple[float, str]:
    """Wall seconds of a command, and its standard output."""
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return time.perf_counter() - started, done.stdout


class Files(Dataset[Record]):
    """Decodes and resizes a picture whenever it is asked for it."""

    def __init__(self, folder: Path, prepared: Prepared, rows: np.ndarray) -> None:
        self.folder, self.image = folder, prepared.image
        columns = prepared.columns(rows, ["id", "patient", "label"])
        self.items = list(zip(*columns.values(), strict=True))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Record:
        name, patient, label = self.items[place]
        pixels = fit(read_picture(self.folder / name), ImageSettings(self.image.size))
        return replace(to_record(name, patient, patient, 0, pixels), label=int(label))


def train_fold(
    prepared_uri: str,
    images: str,
    fold: int,
    epochs: int,
    size: int,
    encoder: str,
    precision: Precision,
    loader_workers: int,
) -> float:
    """An ordinary run; its best validation accuracy in percent."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    prepared = Prepared.open(prepared_uri)
    texts = [[name] for name in prepared.labels.names]
    recipe = ClipRecipe.for_data(prepared.labels, size, texts, ClipModelSettings(encoder, None, "characters", 64))
    recipe = replace(recipe, augment=replace(recipe.augment, preset="minimal"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = recipe.build().to(device)
    groups = [
        {"params": group.parameters, "weight_decay": TRAIN.weight_decay if group.decay else 0.0}
        for group in recipe.groups(module)
    ]
    optimizer = torch.optim.AdamW(groups, lr=TRAIN.lr)
    norms = batch_norms(module)

    def loader(split: str) -> DataLoader[Record]:
        data = Files(Path(images), prepared, prepared.rows(split, fold))
        return DataLoader(data, TRAIN.global_batch, shuffle=split == "train", num_workers=loader_workers, collate_fn=list)

    train, val = loader("train"), loader("val")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, epochs * len(train), TRAIN))
    amp = arithmetic(precision, device) == "amp"
    best = 0.0
    for epoch in range(epochs):
        module.train()
        for records in train:
            batch = recipe.encode(records, TrainingPass(0, epoch)).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                loss = recipe.compute_loss(module, batch).mean(batch.units)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            settle_batch_norms(norms, step_statistics(norms))
            schedule.step()
        module.eval()
        right = 0
        for records in val:
            batch = recipe.encode(records, None).to(device)
            decided = recipe.predict(module, batch)["logits"].argmax(dim=1)
            right += int((decided == batch.tensors["labels"]).sum())
        best = max(best, 100 * right / len(val.dataset))  # type: ignore[arg-type]
    return best


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ordinary"]:
        print(train_fold(*json.loads(sys.argv[2])))
    else:
        auto_cli(main)
