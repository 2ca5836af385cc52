"""A system is a room: the machine names none, no room needs another, and a deleted one is missed by nobody."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from conftest import TESTED
from forks import run
from sentences import nodes_of

from raymed.recipes.exported import systems as found

ROOT = Path(__file__).parents[2]
SYSTEMS = sorted(path.parent.name for path in ROOT.glob("raymed/systems/*/__init__.py"))
MACHINE = sorted(
    path for path in ROOT.joinpath("raymed").rglob("*.py") if "systems" not in path.parts and "models" not in path.parts
)
JOBS = list(ROOT.joinpath("jobs").glob("*.py"))
JOB = re.compile(r"jobs/(\w+)\.py")
OWN = re.compile(r"val_acc\b|choice_loss|token_loss|token_std|caption_loss|text_to_image|token_drop")  # of one system


def imported(path: Path) -> set[str]:
    """The modules of raymed that a file imports."""
    modules: set[str] = set()
    for node in nodes_of(path):
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
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in nodes_of(path)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in nodes_of(path):
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
    jobs = {job.stem: rooms_of(job) for job in JOBS}
    for line, text in code(path):
        where = f"{path.relative_to(ROOT)}:{line}"
        assert not OWN.search(text), f"{where} names a metric or flag of one system: {text!r}"
        own = [job for job in JOB.findall(text) if len(jobs.get(job, set())) == 1]
        assert not own, f"{where} sends every system's users to {own}"


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_room_enters_another(system: str) -> None:
    for path in ROOT.joinpath("raymed", "systems", system).rglob("*.py"):
        assert rooms_of(path) <= {system}, path


def of_rooms(systems: Sequence[str]) -> set[Path]:
    """The jobs, benchmarks and modules of tests that enter the rooms of systems, or need one that does."""
    files = [path for part in ("jobs", "benchmarks", "tests") for path in ROOT.joinpath(part).rglob("*.py")]
    files = [path for path in files if path.name != "conftest.py"]
    theirs = {path for path in files if rooms_of(path) & set(systems)}
    theirs |= {path for path in files for system in systems if path.is_relative_to(ROOT / "tests/systems" / system)}
    while True:
        names = {path.stem for path in theirs}
        further = {path for path in files if names_of(path) & names} - theirs
        if not further:
            return theirs
        theirs |= further


@cache
def names_of(path: Path) -> set[str]:
    """The modules beside it, or in folders that tests share, that a file may import: those without a package."""
    imports = [node for node in nodes_of(path) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {
        name
        for node in imports
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if "." not in name
    }


def without(systems: Sequence[str], folder: Path) -> None:
    """A copy of the project in `folder` without rooms and what enters them."""
    for part in ("raymed", "jobs", "configs", "benchmarks", "tests", "docs"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.pyc.*"))  # those are being written
    for file in filter(Path.is_file, ROOT.iterdir()):
        shutil.copy(file, folder)
    for system in systems:
        shutil.rmtree(folder / "raymed" / "systems" / system)
    for path in of_rooms(systems):
        (folder / path.relative_to(ROOT)).unlink()


@pytest.mark.parametrize("folder", TESTED)
def test_the_machine_is_tested_without_any_room(folder: str) -> None:
    """But for the toy system, which is none. No other is there while these tests run, see `_other_rooms_are_gone`."""
    files = set(ROOT.joinpath("tests", folder).rglob("*.py"))
    assert not {path.name for path in of_rooms(SYSTEMS) & files}
    assert not {path.name for path in files if "commands" in names_of(path)}, "jobs are of rooms"


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_deleted_room_is_missed_by_nobody(system: str, tmp_path: Path) -> None:
    """Without a room and what enters it, every other module, job and test is imported, and every other room is found."""
    project = tmp_path / "project"
    without([system], project)
    script = tmp_path / "imports.py"
    script.write_text(f"""
import importlib, pkgutil, runpy, pathlib, sys
sys.path.insert(0, {str(project)!r})
import raymed
names = [module.name for module in pkgutil.walk_packages(raymed.__path__, "raymed.")]
for name in names:
    if name != "raymed.registry.serving":  # MLflow runs that file as a model
        importlib.import_module(name)
for job in pathlib.Path("jobs").glob("*.py"):
    runpy.run_path(str(job), run_name="imported")
from raymed.recipes.exported import systems
assert {system!r} not in systems() and len(systems()) == {len(SYSTEMS) - 1}, systems()
assert pathlib.Path(raymed.__file__).is_relative_to({str(project)!r}), raymed.__file__
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "--assert=plain"]))
""")
    ended = run([str(script)], project)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-3000:]
