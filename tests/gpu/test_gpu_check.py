"""The check of a GPU: no part stops another, each keeps to its time and says what it saw; and parts on a CPU, tiny."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from forks import quick_scripts
from jsonargparse import auto_cli, capture_parser

ROOT = Path(__file__).parents[2]
FEW = (
    "rate",
    "presets",
    "pictures",
    "packing",
    "waits",
)  # those that neither start Ray nor have tests of their own, as benchmarks have


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Any:
    """tests/gpu/run.py as a module: other scripts of that name are modules `run` too."""
    spec = importlib.util.spec_from_file_location("gpu_check", Path(__file__).with_name("run.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


def script(folder: Path, name: str, code: str) -> str:
    (folder / name).write_text(code)
    return str(folder / name)  # absolute, so no root is put before it


GOOD = """print("of no interest"); print("  six of six"); print('{"rate": 6}')"""
BAD = """import sys; print("  five of six"); print('{"rate": 5}'); sys.exit(1)"""
LOST = """raise ValueError("a kernel is missing")"""


@pytest.mark.slow
def test_a_part_that_fails_stops_no_other_and_each_says_what_it_saw(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = {"lost": LOST, "bad": BAD, "good": GOOD}
    parts = {name: check.Part(f"a {name} part", script(tmp_path, f"{name}.py", code), 60) for name, code in codes.items()}
    monkeypatch.setattr(check, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["run.py", "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    before = signal.getsignal(signal.SIGTERM)
    assert check.main() == 1
    assert signal.getsignal(signal.SIGTERM) is before, "it ends a part under way, and nothing afterwards"
    seen = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: each["outcome"] for name, each in seen.items()} == {"lost": "failed", "bad": "failed", "good": "ok"}
    assert "ValueError: a kernel is missing" in seen["lost"]["lines"][-1]
    assert (seen["bad"]["lines"], seen["bad"]["figures"]) == (["five of six"], {"rate": 5})
    assert (seen["good"]["lines"], seen["good"]["figures"]) == (["six of six"], {"rate": 6})
    *_, head, line, last = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["good", "ok"] and "a good part" in head and line.strip() == "six of six"
    assert last.startswith("1 of 3 parts are as they must be")


@pytest.mark.slow
def test_a_part_ends_with_its_time_and_with_all_that_it_started(check: Any, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    result = check.run(["sh", "-c", f"sleep 600 & echo $! > {pid}; echo begun; wait"], 5.0, tmp_path)
    assert result.outcome == "over its time"
    child, end = int(pid.read_text()), time.monotonic() + 60
    while is_there(child) and time.monotonic() < end:  # it was told to end; a busy machine takes its time
        time.sleep(0.05)
    assert not is_there(child)


def is_there(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_part_is_not_begun_without_time(
    check: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--device", "cpu", "--parts", "rate", "step", "--minutes", "0"])
    assert check.main() == 1
    assert capsys.readouterr().out.count("no time left") == 2


@pytest.mark.slow
def test_every_part_takes_the_words_that_it_is_given(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "tests" / "gpu"), str(ROOT / "benchmarks"), *sys.path])
    before = set(sys.modules)
    try:
        for part in check.PARTS.values():
            assert (ROOT / part.file).is_file()
            module = importlib.import_module(Path(part.file).stem)
            parser = capture_parser(lambda main=module.main: auto_cli(main, as_positional=False))
            for device in ("cuda", "cpu"):
                *_, file = check.command(part, device)[:2]
                assert parser.parse_args(check.command(part, device)[2:]).device == device, file
    finally:
        folders = (ROOT / "tests" / "gpu", ROOT / "benchmarks", ROOT / "jobs")
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent in folders:
                del sys.modules[name]


def test_all_parts_together_have_their_time_within_what_they_may_take_at_most(check: Any) -> None:
    assert 300 <= sum(part.seconds for part in check.PARTS.values()) <= 1700, "limits, of which few are reached"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told_so_and_loses_no_time(
    check: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert check.main() == 0
    assert "there is no NVIDIA GPU that PyTorch can use" in capsys.readouterr().out


@pytest.mark.slow
def test_parts_are_as_they_must_be_on_a_cpu(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["run.py", "--device", "cpu", "--parts", *FEW, "--out", str(out)])
    monkeypatch.setattr(sys, "executable", quick_scripts())
    assert check.main() == 0, capsys.readouterr().out
    seen = json.loads(out.read_text())
    assert list(seen) == list(FEW) and all(each["outcome"] == "ok" and each["figures"] for each in seen.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_all_parts_are_as_they_must_be_on_a_gpu(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path / "gpu.json")])
    assert check.main() == 0, capsys.readouterr().out
