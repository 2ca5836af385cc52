"""A system is a room: the machine names none, no room needs another, and a deleted one is missed by nobody."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymed.recipes.exported import systems

ROOT = Path(__file__).parents[2]
MACHINE = sorted(
    path for path in ROOT.joinpath("raymed").rglob("*.py") if "systems" not in path.parts and "models" not in path.parts
)
JOBS = re.compile(r"jobs/(\w+)\.py")
OWN = re.compile(r"val_acc\b|choice_loss|token_loss|token_std|caption_loss|text_to_image|token_drop")  # of one system


def imported(path: Path) -> set[str]:
    """The modules of raymed that a file imports."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module for module in modules if module.startswith("raymed.")}


def rooms_of(path: Path) -> set[str]:
    """The systems whose rooms a file enters."""
    return {module.split(".")[2] for module in imported(path) if module.startswith("raymed.systems.")} & set(systems())


def code(path: Path) -> Iterator[tuple[int, str]]:
    """Every name and text in a file's code, with its line; docstrings, which give examples, are left out."""
    tree = ast.parse(path.read_text("utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr


def test_every_system_is_found_by_its_name() -> None:
    assert systems() == ["clip", "lung", "mamba_vlm", "unimedvl", "vitp"]


@pytest.mark.parametrize("path", MACHINE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_machine_knows_no_system(path: Path) -> None:
    assert rooms_of(path) == set(), "the machine enters no room"
    jobs = {job.stem: rooms_of(job) for job in ROOT.joinpath("jobs").glob("*.py")}
    for line, text in code(path):
        where = f"{path.relative_to(ROOT)}:{line}"
        assert not OWN.search(text), f"{where} names a metric or flag of one system: {text!r}"
        own = [job for job in JOBS.findall(text) if len(jobs.get(job, set())) == 1]
        assert not own, f"{where} sends every system's users to {own}"


@pytest.mark.parametrize("system", systems())
def test_no_room_enters_another(system: str) -> None:
    for path in ROOT.joinpath("raymed", "systems", system).rglob("*.py"):
        assert rooms_of(path) <= {system}, path


@pytest.mark.slow
@pytest.mark.parametrize("system", systems())
def test_a_deleted_room_is_missed_by_nobody(system: str, tmp_path: Path) -> None:
    """Without a room, its jobs and its tests, every other module and job is imported, and every other room is found."""
    for folder in ("raymed", "jobs", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(tmp_path / "raymed" / "systems" / system)
    for job in tmp_path.joinpath("jobs").glob("*.py"):
        if system in {module.split(".")[2] for module in imported(job) if module.startswith("raymed.systems.")}:
            job.unlink()
    script = f"""
import importlib, pkgutil, runpy, pathlib
import raymed
names = [module.name for module in pkgutil.walk_packages(raymed.__path__, "raymed.")]
for name in names:
    if not name.endswith(".serving"):  # MLflow runs such a file as a model
        importlib.import_module(name)
for job in pathlib.Path("jobs").glob("*.py"):
    runpy.run_path(str(job), run_name="imported")
from raymed.recipes.exported import systems
assert {system!r} not in systems() and len(systems()) == {len(systems()) - 1}, systems()
assert pathlib.Path(raymed.__file__).is_relative_to({str(tmp_path)!r}), raymed.__file__
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
