"""A system is a room: the machine names none, no room needs another, and a deleted one is missed by nobody."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from raymed.recipes.exported import systems as found

ROOT = Path(__file__).parents[2]
SYSTEMS = sorted(path.parent.name for path in ROOT.glob("raymed/systems/*/__init__.py"))
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


@cache
def rooms_of(path: Path) -> set[str]:
    """The systems whose rooms a file enters."""
    return {module.split(".")[2] for module in imported(path) if module.startswith("raymed.systems.")} & set(SYSTEMS)


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
    assert set(found()) - {"toy"} == set(SYSTEMS) == {"clip", "lung", "mamba_vlm", "unimedvl", "vitp"}


@pytest.mark.parametrize("path", MACHINE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_machine_knows_no_system(path: Path) -> None:
    assert rooms_of(path) == set(), "the machine enters no room"
    jobs = {job.stem: rooms_of(job) for job in ROOT.joinpath("jobs").glob("*.py")}
    for line, text in code(path):
        where = f"{path.relative_to(ROOT)}:{line}"
        assert not OWN.search(text), f"{where} names a metric or flag of one system: {text!r}"
        own = [job for job in JOBS.findall(text) if len(jobs.get(job, set())) == 1]
        assert not own, f"{where} sends every system's users to {own}"


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_room_enters_another(system: str) -> None:
    for path in ROOT.joinpath("raymed", "systems", system).rglob("*.py"):
        assert rooms_of(path) <= {system}, path


def without(system: str, folder: Path) -> None:
    """A copy of the project in `folder` without a room, its jobs and its tests."""
    for part in ("raymed", "jobs", "configs", "benchmarks", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for room in ("raymed", "tests"):
        shutil.rmtree(folder / room / "systems" / system)
    for job in folder.joinpath("jobs").glob("*.py"):
        if system in rooms_of(job):
            job.unlink()


@pytest.mark.parametrize("folder", ["training", "tuning", "tracking", "evaluation", "data"])
def test_the_machine_is_tested_without_any_room(folder: str) -> None:
    """But for the toy system, which is none."""
    entered = {path.name: rooms_of(path) for path in ROOT.joinpath("tests", folder).rglob("*.py")}
    assert not {name: rooms for name, rooms in entered.items() if rooms}


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_deleted_room_is_missed_by_nobody(system: str, tmp_path: Path) -> None:
    """Without a room, its jobs and its tests, every other module and job is imported, and every other room is found."""
    without(system, tmp_path)
    script = f"""
import importlib, pkgutil, runpy, pathlib
import raymed
names = [module.name for module in pkgutil.walk_packages(raymed.__path__, "raymed.")]
for name in names:
    if name != "raymed.registry.serving":  # MLflow runs that file as a model
        importlib.import_module(name)
for job in pathlib.Path("jobs").glob("*.py"):
    runpy.run_path(str(job), run_name="imported")
from raymed.recipes.exported import systems
assert {system!r} not in systems() and len(systems()) == {len(SYSTEMS) - 1}, systems()
assert pathlib.Path(raymed.__file__).is_relative_to({str(tmp_path)!r}), raymed.__file__
"""
    in_copy(tmp_path, "-c", script)


@pytest.mark.slow
def test_the_machine_s_tests_pass_where_a_room_was_deleted(tmp_path: Path) -> None:
    """The lung's, whose network they once trained. Those that start nothing; that none enters a room is tested above."""
    without("lung", tmp_path)
    machine = [f"tests/{folder}" for folder in ("training", "tuning")]
    in_copy(tmp_path, "-m", "pytest", "-x", "-q", "-m", "not slow and not real", *machine)


def in_copy(folder: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
