"""A realistic report of a search that never was: what the tests of the page look at.

python tests/search_report.py report.html
"""

import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pytest import MonkeyPatch

from raymed.data.phantom import PhantomSettings, phantom_patient
from raymed.data.usage import Usage
from raymed.evaluation import report, search_figures
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.metrics import evaluate
from raymed.evaluation.patients import Patients, softmax
from raymed.evaluation.report import HardPatient, SearchReport, render
from raymed.evaluation.search_summary import DataSummary, TrialSummary

CLASSES = ("normal", "bacterial", "viral", "pneumocystis")
NAMES = (
    "Normal lung / 正常肺部",
    "Bacterial pneumonia / 细菌性肺炎",
    "Viral pneumonia / 病毒性肺炎",
    "Pneumocystis pneumonia / 孢子虫肺炎",
)


def patients(per_class: tuple[int, ...], signal: float, seed: int) -> Patients:
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), per_class)
    logits = generator.normal(size=(len(labels), 4)) * 1.2
    logits[np.arange(len(labels)), labels] += signal
    ids = np.array([f"P{i:03d}" for i in range(len(labels))], dtype=object)
    sources = np.array(["east", "west", "north"], dtype=object)[np.arange(len(labels)) % 3]
    return Patients(ids, labels, softmax(logits), np.full(len(labels), 16), sources)


def trial(number: int, generator: np.random.Generator) -> TrialSummary:
    params = {
        "train.learning_rate": 1e-3 if number == 0 else float(10 ** generator.uniform(-5, -2)),
        "train.weight_decay": 0.05 if number == 0 else float(10 ** generator.uniform(-4, -0.7)),
        "train.batch": int(generator.choice([16, 32, 64])),
        "model.preset": str(generator.choice(["resnet18", "convnext-tiny", "vit-small"])),
        "model.drop_path": float(generator.uniform(0, 0.3)),
        "augment.strength": float(generator.uniform(0, 1)),
        "augment.preset": "ct",
        "loss.label_smoothing": 0.01,
    }
    if number == 11:
        return TrialSummary(
            number, "FAILED", params, run_id="9e1b" * 8, reason="out of memory on worker 1: 64 slices of 448 px"
        )
    if number == 23:
        reason = "val_loss is NaN at epoch 2: the learning rate of 0.0098 is too high"
        return TrialSummary(number, "FAILED", params, run_id="77aa" * 8, reason=reason)
    fit = abs(np.log10(params["train.learning_rate"]) + 3.3) * 0.22 + generator.uniform(0, 0.12)
    pruned = fit > 0.25
    epochs = int(generator.choice([3, 6, 9])) if pruned else 30
    losses = 0.38 + fit + 0.95 * np.exp(-np.arange(1, epochs + 1) / 5) + generator.normal(0, 0.015, epochs)
    losses += 0.004 * np.maximum(0, np.arange(epochs) - 18)
    curve = [{"epoch": epoch + 1, "value": float(loss)} for epoch, loss in enumerate(losses)]
    state = "PRUNED" if pruned else "COMPLETE"
    best = int(losses.argmin())
    run = f"{number:02x}c4d1e8" * 4
    return TrialSummary(number, state, params, curve, best + 1, float(losses[best]), run_id=run, took="0.19 h, 0.09")


def compared(one: TrialSummary, lowest: float) -> TrialSummary:
    if one.value is None or one.value == lowest:
        return one
    gap = one.value - lowest
    return replace(one, difference=Estimate(gap, gap - 0.1, gap + 0.1), tie=gap < 0.1)


def morning() -> SearchReport:
    generator = np.random.default_rng(5)
    trials = [trial(number, generator) for number in range(40)]
    lowest = min(one.value for one in trials if one.value is not None)
    trials = [compared(one, lowest) for one in trials]
    validation, test = patients((28, 29, 27, 4), 3.4, 1), patients((28, 29, 28, 4), 3.0, 2)
    losses = -np.log(test.probabilities[np.arange(len(test.ids)), test.labels])
    hardest = [
        HardPatient(str(test.ids[row]), int(test.labels[row]), test.probabilities[row].tolist(), phantom(row))
        for row in np.argsort(-losses)[:4]
    ]
    counts = {name: {"train": 143, "val": 28, "test": 28} for name in CLASSES[:3]}
    counts["pneumocystis"] = {"train": 20, "val": 4, "test": 4}
    return SearchReport(
        name="lung-3fa9c1",
        system="lung",
        model="models:/raymed-lung@champion (version 3)",
        started=datetime(2026, 11, 20, 22, 4, tzinfo=UTC),
        seconds=7 * 3600 + 41 * 60,
        trials=trials,
        champion=next(one.number for one in trials if one.value == lowest),
        names=NAMES,
        validation=evaluate(validation, CLASSES),
        test=evaluate(test, CLASSES),
        temperature=1.184,
        data=DataSummary(
            source="phantom patients, difficulty 0.5",
            digest="5b2f0c1e9d7a4c63",
            usage=Usage(
                counts,
                {name: {split: 33 * count for split, count in row.items()} for name, row in counts.items()},
                counts,
            ),
            quarantined=17,
            left_out=2,
            near_duplicates="2 groups of patients who share near-duplicate pictures, each kept in one split",
            guard="no patient, study or picture is in two splits",
        ),
        hardest=hardest,
        hardest_split="test",
        command="python jobs/tune_lung.py --data runs/prepared/lung --hours 8 --trials 40 --max-epochs 30 --seed 0",
        cost={"CPU hours": "15.2", "GPU hours": "7.6 (1 × H200)", "Epochs": "612 in 40 trials; 588 saved by stopping early"},
        importance={
            "train.learning_rate": 0.61, "model.preset": 0.17, "train.weight_decay": 0.09, "augment.strength": 0.07,
            "model.drop_path": 0.04, "train.batch": 0.02,
        },
        versions={"raymed": "0.1.0", "ray": "2.60.0", "torch": "2.13.0", "Python": "3.11.9"},
        notes=["Pneumocystis has 4 test patients: its figures say little."],
    )  # fmt: skip


def phantom(number: int) -> list[np.ndarray]:
    slices = phantom_patient(PhantomSettings(size=128), number)[1]
    return [slices[round(place * (len(slices) - 1) / 15)] for place in range(16)]


def without_drawings(shown: SearchReport) -> str:
    """The page but for its figures, which take most of the time and say no sentence."""
    with MonkeyPatch.context() as patch:
        for module in (report, search_figures):
            patch.setattr(module, "as_svg", lambda figure, label: "")
        return render(shown)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(morning()), encoding="utf-8")
