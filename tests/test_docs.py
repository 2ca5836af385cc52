"""The documents: commands that parse, options and tests that exist, links that lead somewhere, no machine's paths."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import script

from raymed.data.labels import LabelTable
from raymed.job.command_line import Aliases, parse
from raymed.job.mistakes import in_own_names
from raymed.tuning.space import get_setting

ROOT = Path(__file__).parent.parent
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCS]
PROGRAMS = {
    "apt-get",
    "aws",
    "hf",
    "umask",
    "export",
    "make",
    "mlflow",
    "python",
    "ray",
    "sbatch",
    "scancel",
    "source",
    ".venv/bin/pre-commit",
    ".venv/bin/pip",
}
# options of the programs above, where the text speaks of them
FOREIGN = {"--address"}


@dataclasses.dataclass(frozen=True)
class Job:
    """A job file: its options, and how its last line runs it."""

    options: type
    positional: bool
    defaults: Path | None
    aliases: Aliases

    def parse(self, words: list[str]) -> object:
        return parse(self.options, words, self.positional, self.defaults, self.aliases)

    def names(self, kind: type | None = None, prefix: str = "") -> set[str]:
        """Dotted names of all options."""
        kind = kind or self.options
        others = [*self.aliases, *getattr(self.options, "ALIASES", {})]
        found: set[str] = {"config", "help", "print_config", *(name.replace("-", "_") for name in others)}
        hints = typing.get_type_hints(kind)
        for each in dataclasses.fields(kind):
            found.add(prefix + each.name)
            if dataclasses.is_dataclass(hints[each.name]):
                found |= self.names(typing.cast(type, hints[each.name]), f"{prefix}{each.name}.")
        return found


@cache
def open_job(name: str) -> Job:
    path = ROOT / "jobs" / name
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    call = next(call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "run")
    keywords = {word.arg: word.value for word in call.keywords}
    module = script(path.stem)
    options = getattr(module, typing.cast(ast.Name, call.args[0]).id)
    defaults = ROOT / "configs" / f"{path.stem}.yaml"
    aliases = getattr(module, typing.cast(ast.Name, keywords["aliases"]).id) if "aliases" in keywords else {}
    return Job(options, "positional" in keywords, defaults if "defaults" in keywords else None, aliases)


def fenced(text: str, language: str) -> Iterator[str]:
    """Contents of the code blocks of a language."""
    return (match[1] for match in re.finditer(rf"^ *```{language}\n(.*?)^ *```$", text, re.M | re.S))


def commands(path: Path) -> list[str]:
    """The command lines of a document, without comments; those continued with a backslash are one."""
    lines = "\n".join(fenced(path.read_text("utf-8"), "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [shlex.join(each) for each in words if each]


# a command that stands in several documents, as in translations, is tried once
ALL = [
    pytest.param(command, id=f"{place}: {command[:60]}")
    for command, place in {command: path.name for path in reversed(DOCS) for command in commands(path)}.items()
]


def test_there_is_something_to_check() -> None:
    assert {"README.md", "README.zh-CN.md", "CONTRIBUTING.md", "docs/lung.md", "docs/scaling.md"} <= set(NAMES)
    assert len(ALL) > 30


@pytest.mark.slow
@pytest.mark.parametrize("command", ALL)
def test_a_documented_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    assert words[0] in PROGRAMS
    if words[0] == "make":
        assert re.search(rf"^{re.escape(words[1])}:", (ROOT / "Makefile").read_text(), re.M)
    for place, word in enumerate(words):
        if word.startswith("jobs/"):
            job = open_job(word.removeprefix("jobs/"))
            arguments = words[place + 1 :]
            if arguments != ["--help"]:
                begins_within_its_space(job.parse(arguments))


def begins_within_its_space(options: Any) -> None:
    """A search's first trial is the configuration as it stands, which its space must hold."""
    for name, dimension in options.search.space.items() if hasattr(options, "search") else ():
        assert dimension.holds(get_setting(options, name)), name


@pytest.mark.slow
@pytest.mark.parametrize("config", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_a_search_that_is_configured_begins_within_its_space(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    content = yaml.safe_load((ROOT / "configs" / config).read_text("utf-8"))
    if "search" in content:
        system = next(each for each in ("lung", "clip", "vitp", "unimedvl") if each in config)
        data = ["--data-dir", "IMAGES"] if system == "clip" else ["--data", "PREPARED"]
        begins_within_its_space(open_job(f"tune_{system}.py").parse([*data, "--config", f"configs/{config}"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_options_in_the_text_exist(name: str) -> None:
    known = {option for path in (ROOT / "jobs").glob("*.py") for option in open_job(path.name).names()}
    text = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text("utf-8"), flags=re.M | re.S)
    if name.replace(".zh-CN", "") in ("docs/lung.md", "docs/vitp.md", "docs/unimedvl.md"):
        text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.M)  # the first column names the guide's flags
    spoken = {span.split()[0] for span in re.findall(r"`(--[^`]+)`", text)} - FOREIGN
    assert {option for option in spoken if option[2:].replace("-", "_") not in known} == set()


PARTS = {"source": "source.labelled", "image": "image.size", "split": "split.weights"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "jobs").glob("*.py"))])
def test_what_is_said_of_data_names_options_as_the_job_has_them_that_says_it(name: str) -> None:
    """Those of a part that a job has, by its own names for them."""
    texts = [path.read_text("utf-8").replace("{key}", "image") for path in (ROOT / "raymed" / "data").rglob("*.py")]
    said = {option for text in texts for option in re.findall(r"--(?:source|image|split)\.[a-z_.-]*[a-z]", text)}
    job = open_job(name)
    names, own = job.names(), job.options.SAID_AS  # type: ignore[attr-defined]
    assert {ours for ours in own.values() if ours not in names} == set()
    parts = {part for part, one in PARTS.items() if one in names or one in own}
    shown = {in_own_names(option, own) for option in said if option[2:].partition(".")[0] in parts}
    assert {option for option in shown if option[2:].replace("-", "_") not in names} == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["docs/training.md", "docs/tuning.md"])
def test_documented_settings_files_are_read(name: str, tmp_path: Path) -> None:
    job = open_job("tune_lung.py")
    for number, content in enumerate(fenced((ROOT / name).read_text("utf-8"), "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(content, "utf-8")
        assert job.parse(["--config", str(path)])


def test_the_documented_label_table_is_read() -> None:
    tables = list(fenced((ROOT / "docs/data.md").read_text("utf-8"), "yaml"))
    assert tables
    for table in tables:
        assert LabelTable.from_dict(yaml.safe_load(table)).classes


@pytest.mark.parametrize("name", NAMES)
def test_documented_python_compiles(name: str) -> None:
    for code in fenced((ROOT / name).read_text("utf-8"), "python"):
        ast.parse(code)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            lost.append(link)
    assert lost == []


def anchors(text: str) -> set[str]:
    """What headings are called in links."""
    headings = re.findall(r"^#+ +(.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_named_files_and_tests_exist(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    files = set(re.findall(r"`((?:raymed|tests|jobs|configs|benchmarks|docs)/[\w./-]+\.\w+)(?:::\w+)?`", text))
    assert {file for file in files if not (ROOT / file).exists()} == set()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert [test for file, test in named if f"def {test}(" not in (ROOT / file).read_text("utf-8")] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_document_names_a_path_of_a_machine(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert re.findall(r"(?<![\w/.:)~*}>|…-])/(?!dev/shm|usr/bin|aws/service|tmp/ray/)[A-Za-z][\w.-]*/[\w./-]+", text) == []


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".zh-CN.md")])
def test_a_translation_gives_the_same_commands(name: str) -> None:
    assert commands(ROOT / name.replace(".zh-CN", "")) == commands(ROOT / name)
