"""How often the 95 % intervals of figures hold the truth: a perfectly calibrated model of four Gaussian classes.

python benchmarks/coverage.py --draws 150

The truth is that of 40,000 patients; a draw has a few. With the separation of the classes the figures come near 1, where
intervals are hardest: 1.0 gives a macro AUC of .80, 2.8 of .995.
"""

from __future__ import annotations

import numpy as np
from jsonargparse import auto_cli

from raymed.evaluation.estimate import Estimate
from raymed.evaluation.metrics import Evaluation, evaluate
from raymed.evaluation.patients import Patients, softmax

NAMES = ("normal", "bacterial", "viral", "pneumocystis")
SIZES = ((5, 5, 5, 5), (12, 12, 12, 12), (50, 50, 50, 50), (20, 15, 10, 3), (8, 7, 4, 1))
SEPARATIONS = (1.0, 2.8)


def main(draws: int = 150, bootstrap: int = 500, seed: int = 0) -> None:
    """Print a table of coverage by numbers of patients and separation.

    Args:
        draws: groups of patients per line.
        bootstrap: resamples behind each interval that needs them.
        seed: of the patients.
    """
    heads: list[str] = []
    for sizes in SIZES:
        for separation in SEPARATIONS:
            generator = np.random.default_rng(seed)
            many = tuple(size * (40_000 // sum(sizes)) for size in sizes)
            truth = estimates(evaluate(patients(many, separation, generator), NAMES, bootstrap=2))
            held: dict[str, list[bool]] = {}
            for number in range(draws):
                drawn = estimates(evaluate(patients(sizes, separation, generator), NAMES, bootstrap, number))
                for name, estimate in drawn.items():
                    if estimate.low is not None and estimate.high is not None:
                        held.setdefault(name, []).append(estimate.low <= truth[name].value <= estimate.high)
            if not heads:
                heads = list(held)
                print("".join(f"{head:>20}" for head in ("patients", "separation", *heads)))
            cells = [f"{np.mean(held[head]):.2f}" if head in held else "-" for head in heads]
            print("".join(f"{cell:>20}" for cell in (" ".join(map(str, sizes)), separation, *cells)), flush=True)


def patients(sizes: tuple[int, ...], separation: float, generator: np.random.Generator) -> Patients:
    """Patients whose features are normal around their class, seen by a model that knows the classes and their shares."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    features = generator.normal(size=(len(labels), len(sizes))) + separation * np.eye(len(sizes))[labels]
    probabilities = softmax(separation * features + np.log(np.array(sizes) / sum(sizes)))
    ids, one = np.arange(len(labels)).astype(str).astype(object), np.ones(len(labels), np.int64)
    return Patients(ids, labels, probabilities, one, np.full(len(labels), "", dtype=object))


def estimates(evaluation: Evaluation) -> dict[str, Estimate]:
    """The figures of the table: overall, and of the last class."""
    last = evaluation.classes[-1]
    assert last.auc is not None and last.f1 is not None
    overall = {name: one for name, one in evaluation.metrics.items() if not name.endswith("_without_rare")}
    return overall | {"auc_last_class": last.auc, "f1_last_class": last.f1}


if __name__ == "__main__":
    auto_cli(main)
