"""What a GPU has to show of this project: one command, at most ten minutes on one card, a table, and figures as JSON.

    make gpu-check                                             # on a machine with an NVIDIA GPU
    python tests/gpu/run.py --out gpu.json --parts rate presets
    python tests/gpu/run.py --device cpu                       # every part, tiny, on a CPU: it proves this script, no card

Each part is a process with a time limit of its own, and none stops the next. A part prints what it saw, its figures last, as
one line of JSON, and exits with another code than 0 where something is not as it must be. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
HERE, BENCHMARKS = "tests/gpu", "benchmarks"
SLOWER = 6  # times as long may a CPU take, beside other work
ENDING = 5.0  # seconds for what a part started to end


@dataclass(frozen=True)
class Part:
    """One question to the card.

    Attributes:
        shows: what it shows, in words.
        file: that is run.
        seconds: it may take on a card.
        card: options on a card.
        cpu: on a CPU.
    """

    shows: str
    file: str
    seconds: int
    card: Sequence[str] = ()
    cpu: Sequence[str] = ()


SHAPE = ["--shape.vocabulary", "2000", "--shape.hidden", "64", "--shape.layers", "1", "--shape.size", "56"]
COMPILED = ["--compile", "true", "--leave_out", "[upstream,ordinary]"]
PARTS = {
    "rate": Part("the card's own rates", f"{HERE}/rates.py", 40),
    "presets": Part("networks in bf16 and float32, against the CPU's float32", f"{HERE}/bf16_presets.py", 120),
    "pictures": Part("pictures varied by the device, against the CPU's", f"{HERE}/varied_pictures.py", 20),
    "packing": Part("attention kernels for packed samples", f"{HERE}/packed_kernels.py", 60),
    "resume": Part("a run that goes on in mid-epoch, bit for bit", f"{HERE}/resumption.py", 60),
    "zero": Part("training under Ray with ZeRO 1, 2, 3", f"{HERE}/zero_stages.py", 120),
    "shared": Part("several trials on one card", f"{HERE}/shared_card.py", 90),
    "search": Part("a search whose trials share one card", f"{HERE}/card_search.py", 120),
    "waits": Part("what holds a step up, and a checkpoint", f"{HERE}/step_waits.py", 60),
    "features": Part("features, and their neighbours", f"{HERE}/neighbours.py", 60),
    "step": Part(
        "training step of the lung recipe",
        f"{BENCHMARKS}/step.py",
        200,
        ["--shape.preset", "internvl2_5-1b", "--samples", "32", "--micro_batch", "32"],
        [*SHAPE, "--samples", "2", "--padded", "128", "--steps", "1"],
    ),
    "compiled": Part(
        "the same compiled, beside transformers' Trainer at its fastest",
        f"{BENCHMARKS}/step.py",
        240,
        ["--shape.preset", "internvl2_5-1b", "--samples", "32", "--micro_batch", "32", *COMPILED],
        [*SHAPE, "--samples", "2", "--padded", "128", "--steps", "1", *COMPILED],
    ),
    "pretrain": Part(
        "pretraining step with packing",
        f"{BENCHMARKS}/pretrain.py",
        200,
        ["--shape.preset", "internvl2_5-1b", "--samples", "32", "--rates", "0.5", "--packed", "16384"],
        [*SHAPE, "--samples", "4", "--padded", "1024", "--steps", "1", "--rates", "0.5", "--packed", "2048"],
    ),
    "ingest": Part(
        "slices into the device's memory",
        f"{BENCHMARKS}/ingest.py",
        90,
        ["--patients", "24", "--epochs", "2"],
        ["--patients", "12", "--source_size", "32", "--size", "28", "--epochs", "2"],
    ),
    "at_once": Part(
        "a search of small networks, one trial at a time and eight at once",
        f"{BENCHMARKS}/at_once.py",
        120,
        [],
        ["--trials", "2", "--rounds", "1", "--patients", "12", "--size", "56", "--preset", "tiny", "--epochs", "1"],
    ),
    "scan": Part(
        "the selective scan",
        f"{BENCHMARKS}/scan.py",
        40,
        ["--seconds", "2"],
        ["--length", "64", "--channels", "[32]", "--steps", "1"],
    ),
}


@dataclass(frozen=True)
class Result:
    """What became of a part.

    Attributes:
        outcome: ok; failed; over its time; or no time was left for it.
        seconds: it took.
        lines: what it says.
        figures: and its figures.
    """

    outcome: Literal["ok", "failed", "over its time", "no time left"]
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: every part, tiny")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together, on a card")
    options = parser.parse_args()
    if options.device == "cuda" and (reason := no_card()):
        print(f"left out: {reason}. With --device cpu every part runs on the CPU, tiny")
        return 0
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a part under way ends, too
    try:
        return check(options)
    finally:
        signal.signal(signal.SIGTERM, before)


def check(options: argparse.Namespace) -> int:
    """Run the parts, one after the other."""
    slower = 1 if options.device == "cuda" else SLOWER
    end = time.monotonic() + options.minutes * 60 * slower
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        for name in options.parts:
            part = PARTS[name]
            left = min(part.seconds * slower, end - time.monotonic())
            result = run(command(part, options.device), left, Path(folder)) if left > 1 else Result("no time left")
            results[name] = result
            print(*table(name, part, result), sep="\n", flush=True)
            if options.out:
                options.out.write_text(json.dumps({each: asdict(result) for each, result in results.items()}, indent=1))
    good = sum(result.outcome == "ok" for result in results.values())
    print(f"{good} of {len(results)} parts are as they must be" + (f"; figures: {options.out}" if options.out else ""))
    return 0 if good == len(results) else 1


def no_card() -> str:
    """Why no GPU can be computed on; empty where one can."""
    import torch

    if torch.cuda.is_available():
        return ""
    return "there is no NVIDIA GPU that PyTorch can use (python jobs/doctor.py says why)"


def command(part: Part, device: str) -> list[str]:
    words = part.card if device == "cuda" else part.cpu
    return [sys.executable, str(ROOT / part.file), "--device", device, *words]


def run(words: Sequence[str], seconds: float, folder: Path) -> Result:
    """Run a part to its end, or to the end of its time, with whatever it started.

    Args:
        folder: where it runs, and what it keeps.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / BENCHMARKS)]),
        "HF_HUB_OFFLINE": "1",
        "RAYMED_HOME": str(folder / "home"),
    }
    if "cpu" in words:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray would hand it out
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)
        output.seek(0)
        lines = output.read().splitlines()
    took = time.monotonic() - started
    figures, said = figures_of(lines)
    if code is None:
        return Result("over its time", took, lines[-3:])
    if code or not figures:
        return Result("failed", took, said or lines[-15:], figures)
    return Result("ok", took, said, figures)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a part and what it started that is still there."""
    for number, wait in ((signal.SIGTERM, ENDING), (signal.SIGKILL, 0.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        end = time.monotonic() + wait
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.05)
    process.wait()


def figures_of(lines: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The figures of a part's last line, and the indented lines before it, which `machine.show` prints."""
    try:
        figures = json.loads(lines[-1])
    except (IndexError, ValueError):
        return {}, []
    said: list[str] = []
    for line in reversed(lines[:-1]):
        if not line.startswith("  "):
            break
        said.insert(0, line.strip())
    return (figures, said) if isinstance(figures, dict) else ({}, [])


def table(name: str, part: Part, result: Result) -> list[str]:
    width = shutil.get_terminal_size((125, 40)).columns
    head = f"{name:9} {result.outcome:13} {result.seconds:4.0f} s  {part.shows}"
    return [head[:width], *(f"          {line}" for line in result.lines)]


if __name__ == "__main__":
    sys.exit(main())
