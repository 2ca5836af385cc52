"""Make small mistakes in modules that promises rest on, and print those that no test notices.

make mutants                                                 # all modules, twenty minutes
python tests/mutants/run.py data/plan.py --minutes 3         # one module

Each mistake is tried in a process of its own, forked from one that has the libraries: its tests take as long as they
take. Tests marked slow are left out, so what only they would notice is printed too.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

from mutations import mutants

ROOT = Path(__file__).parents[2]

LIBRARIES = (
    "torch numpy pandas pyarrow.parquet scipy.stats sklearn.metrics pytest hypothesis optuna ray.data ray.train transformers"
)
MODULES = {
    "data/plan.py": ["data/test_plan.py", "data/test_usage.py"],
    "data/packing.py": ["data/test_packing.py", "data/test_plan.py"],
    "data/micro_batches.py": ["data/test_micro_batches.py"],
    "data/stream.py": ["data/test_stream.py", "training/test_loop.py"],
    "data/split.py": ["data/test_split.py"],
    "data/leak.py": ["data/test_leak.py"],
    "training/means.py": ["training/test_loss_terms.py", "training/test_loop.py"],
    "training/engine.py": ["training/test_engine.py", "training/test_loss_terms.py"],
    "evaluation/patients.py": [
        "evaluation/test_patients.py",
        "evaluation/test_metrics.py",
        "evaluation/test_calibration.py",
    ],
    "evaluation/metrics.py": [
        "evaluation/test_metrics.py",
        "evaluation/test_intervals.py",
        "evaluation/test_baselines.py",
    ],
    "evaluation/scores.py": ["evaluation/test_metrics.py"],
    "tuning/study.py": ["tuning/test_study.py", "tuning/test_listed_runs.py"],
}
"""Modules of raymed, and the files below tests/ that are to notice mistakes in them."""


def run_tests(files: Sequence[str], module: Path, changed: CodeType | None, seconds: float) -> tuple[bool, float]:
    """Whether the tests pass in a process where `module` is what `changed` says; and how long they took.

    One that takes longer than `seconds` does not.
    """
    started = time.monotonic()
    if not (child := os.fork()):
        signal.alarm(int(seconds) + 1)
        sink = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(sink, stream)
        original = SourceFileLoader.get_code

        def get_code(loader: SourceFileLoader, name: str) -> CodeType | None:
            return changed if changed and Path(loader.path) == module else original(loader, name)

        SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
        import pytest

        words = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"]
        os._exit(int(pytest.main([*words, f"--rootdir={ROOT}", *(str(ROOT / "tests" / file) for file in files)])))
    _, status = os.waitpid(child, 0)
    return status == 0, time.monotonic() - started


def survivors(name: str, minutes: float, seed: int) -> tuple[int, int, int]:
    """How many mistakes there are in a module, how many were tried in the time, and how many nobody noticed, which are told.

    Raises:
        SystemExit: the tests fail without any mistake.
    """
    path = ROOT / "raymed" / name
    everything = list(mutants(path.read_text("utf-8")))
    passed, seconds = run_tests(MODULES[name], path, None, 300)
    if not passed:
        sys.exit(f"the tests of {name} fail as they are: {', '.join(MODULES[name])}")
    until, tried, unnoticed = time.monotonic() + 60 * minutes, 0, 0
    for mutant in random.Random(seed).sample(everything, len(everything)):
        if time.monotonic() > until:
            break
        tried += 1
        if run_tests(MODULES[name], path, compile(mutant.tree, str(path), "exec"), 3 * seconds + 10)[0]:
            unnoticed += 1
            told = f"raymed/{name}:{mutant.line}: {mutant.before}  ->  {mutant.after}"
            print(told.replace("\n", " ")[:240], flush=True)
    return len(everything), tried, unnoticed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", choices=[*MODULES, []], help="modules of raymed (all)")
    parser.add_argument("--minutes", type=float, default=20, help="for all of them together")
    parser.add_argument("--seed", type=int, default=0, help="of which mistakes are tried first")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    for library in LIBRARIES.split():
        importlib.import_module(library)
    chosen = options.modules or list(MODULES)
    counts = {name: survivors(name, options.minutes / len(chosen), options.seed) for name in chosen}
    print("\n| module | mistakes | tried | unnoticed |\n|---|---|---|---|")
    for name, (number, tried, unnoticed) in counts.items():
        print(f"| {name} | {number} | {tried} | {unnoticed} |")


if __name__ == "__main__":
    main()
