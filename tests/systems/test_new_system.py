"""The page that says how to add a system: its files, put into a copy of the project, search and register."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from forks import run

ROOT = Path(__file__).parents[2]
FILE = re.compile(r"^```python file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_page_s_system_searches_and_registers_without_a_change_to_the_machine(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for folder in ("raymed", "jobs"):
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    files = FILE.findall(ROOT.joinpath("docs", "new_system.md").read_text("utf-8"))
    assert len(files) == 4
    for name, content in files:
        assert not project.joinpath(name).exists(), "a new system changes no file"
        project.joinpath(name).parent.mkdir(exist_ok=True)
        project.joinpath(name).write_text(content, "utf-8")
    words = ["--trials", "2", "--max-epochs", "1", "--train.lr", "0.05", "--phantom.patients", "24", "--json"]
    space = '{"train.lr": {"low": 0.01, "high": 0.1, "log": true}}'
    command = [str(project / "jobs" / "tune_brightness.py"), *words, "--search.space", space]
    done = run(command, project, os.environ | {"RAYMED_STORAGE": str(tmp_path / "runs")}, project)
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["model"] == "models:/raymed-brightness@champion" and outcome["figures"]["test_accuracy"] > 0
    assert Path(outcome["report"]).is_file()
