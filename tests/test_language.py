"""Catalogues of messages: every sentence of a person's page and terminal is there, and none of what nobody says any more.

What is asked for, wherever it is said: every error that a person can act on (`UserError`, `RunError` and what derives from
them), every line of the log and of a job's result, what is handed to `say`, and the sentences of pages. Not asked for:
errors of programming (`ValueError`, `TypeError`, ...), which are for developers and end with a traceback; what a library
says, which stays a value in a sentence of ours; model cards and MLflow, which are in English for everybody.
"""

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
from sentences import ROOT, Module, modules, nodes_of, placed, tells, tree

from raymed.data.labels import LabelTable
from raymed.evaluation.page import environment
from raymed.evaluation.report import render
from raymed.language import in_english, reworded

SYSTEMS, MACHINE = ROOT / "raymed" / "systems", ROOT / "raymed" / "language"
CATALOGUES = sorted(ROOT.joinpath("raymed").rglob("zh.yaml"))
ELSEWHERE = ("model_card.py", "style.py")  # a card stays with a model, whoever reads it; names of fonts
PASSED_ON = {  # errors made of what others have said, which is asked of those
    "'\\n'.join(wrong)", "failed", "failures[0].as_py()", "problem", "spec.folder.read(STALLED).decode()", "storage.gave_up",
    "self.gave_up", "machines.gave_up", "gave_up", "absence", "str(error)", "str(listener.last[FAILED])", "study.mistake",
    "f'{self.mistake.explain(message)}\\n{usage}{told}'",
}  # fmt: skip
PRINTF = re.compile(r"%(?:\(\w+\))?[-+ #0]*\d*(?:\.\d+)?[sdfrgx]")


def room_of(path: Path) -> Path:
    """The folder whose catalogue has a file's sentences: that of the one system it is of, or the machine's."""
    if path.is_relative_to(SYSTEMS) and path.parent != SYSTEMS:
        return SYSTEMS / path.relative_to(SYSTEMS).parts[0]
    systems = set(re.findall(r"raymed\.systems\.(\w+)", path.read_text("utf-8"))) if path.parent.name == "jobs" else set()
    entered = [SYSTEMS / name for name in systems if SYSTEMS.joinpath(name).is_dir()]
    return entered[0] if len(entered) == 1 else MACHINE


def files(ending: str) -> list[Path]:
    return sorted([*ROOT.joinpath("raymed").rglob(f"*.{ending}"), *ROOT.joinpath("jobs").glob(f"*.{ending}")])


def said(path: Path) -> Iterator[str]:
    """Literals that a module hands to `say`; what else it hands over are variables."""
    for node in nodes_of(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("say", "label") and node.args:
            first = node.args[0].value if isinstance(node.args[0], ast.Subscript) else node.args[0]
            for each in first.values if isinstance(first, ast.Dict) else [first]:
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    yield each.value


@cache
def catalogued(path: Path) -> dict[str, str]:
    return dict(yaml.safe_load(path.read_text("utf-8")))


@cache
def known() -> frozenset[str]:
    """Sentences that some catalogue has, whatever their values are called."""
    return frozenset(placed(key) for each in CATALOGUES for key in catalogued(each))


@cache
def written(path: Path) -> frozenset[str]:
    """Sentences of a template."""
    calls = environment("raymed.evaluation").extract_translations(path.read_text("utf-8"))  # type: ignore[attr-defined]
    return frozenset(words if isinstance(words, str) else words[0] for _, _, words in calls if words and words[0])


@cache
def texts(path: Path) -> frozenset[str]:
    """Every text in a module."""
    return frozenset(node.value for node in nodes_of(path) if isinstance(node, ast.Constant) and isinstance(node.value, str))


@cache
def told(path: Path) -> frozenset[str]:
    """What a module's errors, log and results say: sentences whose values have no names."""
    module = Module(path)
    lines = {sentence for sentence in module.of_log() if tells(sentence)}
    lines |= {sentence.replace("{{", "{").replace("}}", "}") for sentence in module.of_results()}  # some are templates
    found = {placed(line) for line in lines if path.name not in ELSEWHERE}
    return frozenset(found.union(*(sentences for _, sentences in module.of_errors())))


@cache
def put_together(path: Path) -> frozenset[str]:
    """Every text of a module that is filled with values, or stands as it is."""
    module = Module(path)
    strings = (node for node in nodes_of(path) if isinstance(node, ast.JoinedStr | ast.Constant))
    return frozenset(text for node in strings for text in module.texts(node, tree(path)))


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
    may |= set().union(*(told(each) | put_together(each) for each in files("py") if room_of(each) == path.parent))
    assert {key for key in catalogued(path) if key not in may and placed(key) not in may} == set()


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parent.name)
def test_every_translation_has_the_placeholders_of_its_sentence(path: Path) -> None:
    for sentence, translation in catalogued(path).items():
        assert placeholders(sentence) == placeholders(translation), sentence


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parent.name)
def test_no_sentence_of_pages_results_and_errors_lacks_a_translation(path: Path) -> None:
    must, _ = of_room(path.parent)
    have = set().union(*map(catalogued, CATALOGUES))
    assert must - have == set()


@pytest.mark.parametrize("room", sorted({room_of(path) for path in modules()}), ids=lambda room: room.name)
def test_no_error_line_or_result_lacks_a_translation(room: Path) -> None:
    assert {sentence for path in modules() if room_of(path) == room for sentence in told(path) - known()} == set()


def test_an_error_whose_sentence_nobody_knows_is_one_that_is_passed_on() -> None:
    """So that what is asked for above is not escaped by putting it together elsewhere."""
    unknown = {source for path in modules() for source, sentences in Module(path).of_errors() if not sentences}
    assert unknown == PASSED_ON


@pytest.mark.parametrize("page", files("html"), ids=lambda page: f"{page.parent.name}/{page.name}")
def test_no_page_has_text_outside_its_catalogue(page: Path) -> None:
    parts = (
        node.data for node in environment("raymed.evaluation").parse(page.read_text("utf-8")).find_all(nodes.TemplateData)
    )
    text = re.sub(r"<style>.*?</style>", "", "".join(parts), flags=re.DOTALL)
    told = re.sub(r'<[^>]*?(?:alt|aria-label)="([^"]*)"[^>]*>', r" \1 ", text)
    assert (
        set(re.findall(r"[A-Za-z]{2,}", re.sub(r"<[^>]*>", " ", told))) - {"raymed", "AUC", "Top", "mAP", "CT", "dB"}
        == set()
    )


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


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        (
            "the checkpoint s3://b/run 1 is of another run: train.lr was 0.1, and is 0.2 now; seed was 0, and is 1 now. "
            "Move its run's folder away, give another --name, or start again with --resume never",
            "检查点 s3://b/run 1 属于另一个运行：train.lr 原为 0.1，现在为 0.2；seed 原为 0，现在为 1。"
            "请移走其运行的文件夹，换一个 --name，或用 --resume never 重新开始",
        ),
        (
            "12 lines cannot be used; mend or remove them:\na.csv:2: image is empty\nb.csv: strange\nand 2 more",
            "12 行无法使用；请修正或删除：\na.csv:2：image 是空的\nb.csv: strange\n另有 2 行",
        ),
        (
            "class bacterial: 2, class normal: 1",
            "类别 bacterial：2，类别 normal：1",
        ),
        ("all", "all"),
        ("no sentence of ours", "no sentence of ours"),
        ("the class {x} has an empty text: write what its pictures show", "类别 {x} 的文本为空：请写出其图片所显示的内容"),
    ],
    ids=["quotes others", "lines", "a list", "a name", "unknown", "a name with braces"],
)
def test_an_error_of_any_process_is_found_again_by_its_words_with_what_it_quotes(
    english: str, chinese: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers are not asked for a language, and what is kept of a run that failed is in English."""
    assert reworded(english) == english
    monkeypatch.setattr("raymed.language._asked_for", "zh")
    assert reworded(english) == chinese


JOB = """
import logging
from raymed.errors import UserError
from raymed.job.job import JobOptions, Outcome, run
from raymed.language import say

def main(options: JobOptions) -> Outcome:
    logging.getLogger("raymed").info("judging %s", "trial 3")
    if options.dry_run:
        raise UserError(f"--until {'noon'!r} is not a time of day such as 07:00")
    return Outcome(say("report: {report}", report="report.html"), {"report": "report.html"})

run(JobOptions, main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["--language", "zh"], 0, "报告：report.html\n", "正在评判 trial 3\n"),
        (["--language=zh", "--json"], 0, '{"report": "report.html"}\n', "正在评判 trial 3\n"),
        (["--dry-run", "--language", "zh"], 2, "", "正在评判 trial 3\n错误：--until 'noon' 不是 07:00 这样的时刻\n"),
        (
            ["--dry-run", "--json", "--language", "zh"],
            2,
            '{"error": "--until \'noon\' is not a time of day such as 07:00", "exit_code": 2}\n',
            "正在评判 trial 3\n错误：--until 'noon' 不是 07:00 这样的时刻\n",
        ),
        (["--language", "xx"], 2, "", "error: --language xx: there are en, zh\n"),
        ([], 0, "report: report.html\n", "judging trial 3\n"),
    ],
    ids=["zh", "json", "error", "json-error", "unknown", "english"],
)
def test_a_job_says_its_lines_results_and_errors_in_the_language_that_is_asked_for(
    words: list[str], code: int, out: str, err: str, tmp_path: Path
) -> None:
    """Whatever the terminal's own: LANG is not looked at. Programs read the same sentences in every language."""
    job = tmp_path / "job.py"
    job.write_text(JOB)
    ended = subprocess.run(
        [sys.executable, str(job), *words], capture_output=True, encoding="utf-8", env=os.environ | {"LANG": "zh_CN.UTF-8"}
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, out, err)
