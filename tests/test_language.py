"""Catalogues of messages: every sentence of a person's page and terminal is there, and none of what nobody says any more."""

from __future__ import annotations

import ast
import os
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from jinja2 import nodes
from search_report import morning

from raymed.data.labels import LabelTable
from raymed.evaluation.page import environment
from raymed.evaluation.report import render
from raymed.language import in_english

ROOT = Path(__file__).parent.parent
SYSTEMS, MACHINE = ROOT / "raymed" / "systems", ROOT / "raymed" / "language"
CATALOGUES = sorted(ROOT.joinpath("raymed").rglob("zh.yaml"))
PRINTF = re.compile(r"%(?:\(\w+\))?[-+ #0]*\d*(?:\.\d+)?[sdfrgx]")


def room_of(path: Path) -> Path:
    """The folder whose catalogue has a file's sentences: that of the one system it is of, or the machine's."""
    if path.is_relative_to(SYSTEMS) and path.parent != SYSTEMS:
        return SYSTEMS / path.relative_to(SYSTEMS).parts[0]
    systems = set(re.findall(r"raymed\.systems\.(\w+)", path.read_text("utf-8"))) if path.parent.name == "jobs" else set()
    entered = [SYSTEMS / name for name in systems if SYSTEMS.joinpath(name).is_dir()]
    return entered[0] if len(entered) == 1 else MACHINE


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def files(ending: str) -> list[Path]:
    return sorted([*ROOT.joinpath("raymed").rglob(f"*.{ending}"), *ROOT.joinpath("jobs").glob(f"*.{ending}")])


def said(path: Path) -> Iterator[str]:
    """Literals that a module hands to `say`; what else it hands over are variables."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("say", "label") and node.args:
            first = node.args[0].value if isinstance(node.args[0], ast.Subscript) else node.args[0]
            for each in first.values if isinstance(first, ast.Dict) else [first]:
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    yield each.value


@cache
def written(path: Path) -> frozenset[str]:
    """Sentences of a template."""
    calls = environment("raymed.evaluation").extract_translations(path.read_text("utf-8"))  # type: ignore[attr-defined]
    return frozenset(words if isinstance(words, str) else words[0] for _, _, words in calls if words and words[0])


@cache
def texts(path: Path) -> frozenset[str]:
    """Every text in a module."""
    return frozenset(
        node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def of_room(room: Path) -> tuple[set[str], set[str]]:
    """Sentences that a room's catalogue must have, and those that it may have: any text, and its plural."""
    must = {text for path in files("py") if room_of(path) == room for text in said(path)}
    must |= {text for path in files("html") if room_of(path) == room for text in written(path)}
    may = {text for path in files("py") if room_of(path) == room for text in texts(path)}
    return must, must | may | {f"{text}s" for text in may}


def placeholders(text: str) -> list[str]:
    """What is filled in: by name in any order, by place in its order."""
    named = sorted(f"{name}:{form}!{conversion}" for _, name, form, conversion in string.Formatter().parse(text) if name)
    by_place = PRINTF.findall(text.replace("%%", ""))
    return named + (sorted(by_place) if any("(" in each for each in by_place) else by_place)


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parent.name)
def test_a_catalogue_has_no_sentence_that_nobody_says(path: Path) -> None:
    _, may = of_room(path.parent)
    assert set(yaml.safe_load(path.read_text("utf-8"))) - may == set()


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parent.name)
def test_every_translation_has_the_placeholders_of_its_sentence(path: Path) -> None:
    for sentence, translation in yaml.safe_load(path.read_text("utf-8")).items():
        assert placeholders(sentence) == placeholders(translation), sentence


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parent.name)
def test_no_sentence_of_pages_results_and_errors_lacks_a_translation(path: Path) -> None:
    must, _ = of_room(path.parent)
    have = set().union(*(yaml.safe_load(each.read_text("utf-8")) for each in CATALOGUES))
    assert must - have == set()


def test_the_report_page_has_no_text_outside_its_catalogue() -> None:
    source = ROOT.joinpath("raymed", "evaluation", "report.html").read_text("utf-8")
    parts = (node.data for node in environment("raymed.evaluation").parse(source).find_all(nodes.TemplateData))
    page = re.sub(r"<style>.*?</style>", "", "".join(parts), flags=re.DOTALL)
    assert set(re.findall(r"[A-Za-z]{2,}", re.sub(r"<[^>]*>", " ", page))) == {"raymed", "AUC"}


def test_the_report_is_read_in_chinese_and_names_its_classes_so(monkeypatch: pytest.MonkeyPatch) -> None:
    report = morning()
    monkeypatch.setattr("raymed.language._asked_for", "zh")
    page = render(report)
    assert '<html lang="zh">' in page
    assert f"试验 {report.champion} 胜出：89 个测试患者中 86.5 % 判断正确" in page
    assert "防泄漏检查" in page and "Leak guard" not in page
    assert LabelTable.open("lung").titles[1] == "细菌性肺炎"
    with in_english():
        assert LabelTable.open("lung").titles[1] == "Bacterial pneumonia / 细菌性肺炎"


JOB = """
import logging
from raymed.errors import UserError
from raymed.job.job import JobOptions, Outcome, run
from raymed.language import say

def main(options: JobOptions) -> Outcome:
    logging.getLogger("raymed").info("judging %s", "trial 3")
    if options.dry_run:
        raise UserError(say("--until {until!r} is not a time of day such as 07:00", until="noon"))
    return Outcome(say("report: {report}", report="report.html"), {"report": "report.html"})

run(JobOptions, main)
"""


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["--language", "zh"], 0, "报告：report.html\n", "正在评判 trial 3\n"),
        (["--language=zh", "--json"], 0, '{"report": "report.html"}\n', "正在评判 trial 3\n"),
        (["--dry-run", "--language", "zh"], 2, "", "正在评判 trial 3\n错误：--until 'noon' 不是 07:00 这样的时刻\n"),
        (["--language", "xx"], 2, "", "error: --language xx: there are en, zh\n"),
        ([], 0, "report: report.html\n", "judging trial 3\n"),
    ],
    ids=["zh", "json", "error", "unknown", "english"],
)
def test_a_job_says_its_lines_results_and_errors_in_the_language_that_is_asked_for(
    words: list[str], code: int, out: str, err: str, tmp_path: Path
) -> None:
    """Whatever the terminal's own: LANG is not looked at."""
    job = tmp_path / "job.py"
    job.write_text(JOB)
    ended = subprocess.run(
        [sys.executable, str(job), *words], capture_output=True, encoding="utf-8", env=os.environ | {"LANG": "zh_CN.UTF-8"}
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, out, err)
