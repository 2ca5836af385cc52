"""What every job promises at the command line: options from types, helpful errors, exit codes, one JSON object."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import yaml

from raymed.errors import UserError
from raymed.job.command_line import Alias, parse
from raymed.job.job import JobOptions

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*.py"))

SCRIPT = '''
"""Divide.

    python jobs/divide.py --by 2
"""
from dataclasses import dataclass
from raymed.errors import RunError, UserError
from raymed.job.job import JobOptions, Outcome, run

@dataclass(frozen=True)
class Slices:
    """Slices.

    Attributes:
        limit: How many.
    """
    limit: int = 0

    def __post_init__(self):
        if self.limit < 0:
            raise UserError("a limit below 0: give 0 for none")

@dataclass(frozen=True, kw_only=True)
class Divide(JobOptions):
    """Options.

    Attributes:
        by: What to divide by.
        slices: Checked where it is built.
    """
    by: int
    slices: Slices = Slices()

def main(options: Divide) -> Outcome:
    if options.by < 0:
        raise UserError("--by is negative: give a number from 0 up")
    if options.by > 100:
        raise RunError("too much")
    print("a library's chatter")
    return Outcome(f"result: {10 / options.by}", {"result": 10 / options.by}, 2 if options.by == 3 else 0)

run(Divide, main)
'''


@dataclass(frozen=True)
class Inner:
    """Inner.

    Attributes:
        deep_value: A number.
        kind: One of two.
        on: A switch.
    """

    deep_value: int = 1
    kind: Literal["soft", "hard"] = "soft"
    on: bool = False


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Options.

    Attributes:
        data: Where the data are.
        max_epochs: Most epochs.
        inner: Nested settings.
    """

    data: str
    max_epochs: int = 3
    inner: Inner = field(default_factory=Inner)


def test_dashes_and_underscores_are_the_same_and_a_bare_switch_means_true():
    options = parse(Options, ["--data", "X", "--max-epochs", "4", "--inner.deep-value=7", "--inner.on", "--dry-run"])
    assert (options.max_epochs, options.inner, options.dry_run, options.json) == (4, Inner(7, on=True), True, False)
    assert parse(Options, ["--data", "X", "--max_epochs", "4", "--inner.on", "false"]).inner.on is False


def test_the_command_line_wins_over_config_and_config_over_the_job_s_defaults(tmp_path):
    (tmp_path / "job.yaml").write_text("max_epochs: 5\ninner: {deep_value: 5}\ndata: job\n")
    (tmp_path / "mine.yaml").write_text("max_epochs: 6\ndata: mine\n")
    words = ["--config", str(tmp_path / "mine.yaml"), "--data", "typed"]
    options = parse(Options, words, defaults=tmp_path / "job.yaml")
    assert (options.data, options.max_epochs, options.inner.deep_value) == ("typed", 6, 5)


@dataclass(frozen=True, kw_only=True)
class Implying(Options):
    """Options that imply others.

    Attributes:
        preset: What the nested settings begin with.
    """

    MATTERS: ClassVar[tuple[str, ...]] = ("data",)

    preset: Literal["small", "large", "file"] = "large"

    def implied(self):
        if self.preset == "file":
            return Path(self.data)
        return {"inner.deep_value": 5, "max_epochs": 1} if self.preset == "small" else {}


@pytest.mark.parametrize("preset", ["small", "file"])
def test_what_an_option_implies_holds_where_neither_a_file_nor_a_word_says_otherwise(preset, tmp_path):
    (tmp_path / "implied.yaml").write_text("inner: {deep_value: 5}\nmax_epochs: 1\n")
    (tmp_path / "job.yaml").write_text("inner: {kind: hard}\n")
    (tmp_path / "mine.yaml").write_text(f"preset: {preset}\n")
    words = ["--data", str(tmp_path / "implied.yaml"), "--config", str(tmp_path / "mine.yaml")]
    options = parse(Implying, words, defaults=tmp_path / "job.yaml")
    assert (options.max_epochs, options.inner) == (1, Inner(5, kind="hard")), "a file may name the preset, too"
    options = parse(Implying, [*words, "--max-epochs", str(Options(data="").max_epochs)])
    assert options.max_epochs == Options(data="").max_epochs, "also where the word is the class's default"
    (tmp_path / "mine.yaml").write_text(f"preset: {preset}\ninner: {{deep_value: 7}}\n")
    assert parse(Implying, words).inner.deep_value == 7
    assert parse(Implying, ["--data", "X"]).inner == Inner()


def test_print_config_shows_what_is_implied_and_what_the_help_hides(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Implying, ["--data", "X", "--preset", "small", "--print-config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert stopped.value.code in (0, None)
    assert (printed["preset"], printed["max_epochs"], printed["inner"]["deep_value"]) == ("small", 1, 5)


def test_one_module_reads_the_words_of_the_command_line():
    root = Path(__file__).parents[2]
    files = [path for room in ("raymed", "jobs") for path in (root / room).rglob("*.py")]
    assert [str(path.relative_to(root)) for path in files if "sys.argv" in path.read_text("utf-8")] == ["raymed/job/job.py"]


def test_times_in_a_config_file_stay_times(tmp_path):
    file = tmp_path / "late.yaml"
    file.write_text("data: 23:30\nmax_epochs: 12\n")
    options = parse(Options, ["--config", str(file)])
    assert (options.data, options.max_epochs) == ("23:30", 12)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max-epoch", "3x"], "--max-epochs takes a whole number; not '3x'"),
        (["--maxepochs", "3"], "there is no option --maxepochs: did you mean --max-epochs?"),
        (["--inner.deep_valeu", "3"], "there is no option --inner.deep_valeu: did you mean --inner.deep_value?"),
        (["--data.deep_value", "3"], "there is no option --data.deep_value: did you mean --inner.deep_value?"),
        (["--inner.kind", "sofd"], "--inner.kind takes one of soft, hard; not 'sofd': did you mean soft?"),
        (["--inner.on", "yes"], "--inner.on takes true or false, or nothing, which is true; not 'yes'"),
        (["--inner", "3"], "--inner has settings of its own: inner.deep_value, inner.kind, inner.on"),
        (["--max-epochs"], "--max-epochs needs a value: a whole number"),
        (["--lerning-rate", "3"], "there is no option --lerning-rate: did you mean --learning-rate?"),
        (["elsewhere"], "'elsewhere' belongs to no option"),
        (["--config", "none.yaml"], "--config: there is no file '"),
        (["--config", "/"], "'/': no file of options"),
        (["--data", " "], "--data is empty: is a variable of the shell not set?"),
    ],
)
def test_a_typo_is_told_with_what_to_type_instead(words, says):
    with pytest.raises(UserError, match=re.escape(says)):
        parse(Options, ["--data", "X", *words], aliases={"learning-rate": Alias("inner.deep_value")})


def test_what_is_missing_is_named_as_it_is_typed():
    with pytest.raises(UserError, match=r"missing: DATA\nusage: python jobs/test_job.py --data DATA"):
        parse(Options, [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("iner: {deep_value: 1}", "there is no option iner.deep_value: did you mean inner.deep_value?"),
        ("inner: {onn: true}", "there is no option inner.onn: did you mean inner.on?"),
        ("max_epochs: many", "max_epochs takes a whole number; not 'many'"),
        ("inner: [", "cannot be read as YAML"),
        ("inner: {on: true}\ninner: {deep_value: 1}", "cannot be read as YAML: line 2: the key 'inner' stands twice"),
        ("hello", "no file of options: a line of one is, for example, seed: 1"),
        ("", "no file of options"),
        ("a: &a {deep_value: 1}\ninner: {<<: *a}", "there is no option a"),  # what stands elsewhere may be brought in
    ],
)
def test_a_typo_in_a_file_is_told_with_the_file(tmp_path, text, says):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{file}: {says}")):
        parse(Options, ["--data", "X", "--config", str(file)])


def test_a_number_is_finite_and_a_file_is_utf_8(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Rate(JobOptions):
        """Options.

        Attributes:
            rate: A rate.
            range: Least and most.
        """

        rate: float = 1.0
        range: tuple[float, float] = (0.0, 1.0)

    for words in (["--rate", "1e999"], ["--range", "[0.1, .inf]"]):
        with pytest.raises(UserError, match="is inf: give a finite number"):
            parse(Rate, words)
    (tmp_path / "gbk.yaml").write_bytes("name: 张三".encode("gbk"))
    with pytest.raises(UserError, match="takes a YAML file of UTF-8 text"):
        parse(Rate, ["--config", str(tmp_path / "gbk.yaml")])


def test_help_shows_what_matters_and_help_all_the_rest(capsys):
    shown = []
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            parse(Options, ["--data", "X", word])
        shown.append(capsys.readouterr().out)
    assert "--max-epochs" in shown[0] and "--inner.on" not in shown[0]
    assert "--help-all explains 4 more: group-readable, inner.*" in shown[0]
    assert "--inner.on" in shown[1] and "explains" not in shown[1]


def test_tracking_beside_a_remote_storage_must_be_named(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="--tracking-uri"):
        parse(Options, ["--data", "X", "--storage", "s3://bucket/runs"]).tracking  # noqa: B018


@pytest.fixture(scope="module")
def divide(tmp_path_factory):
    script = tmp_path_factory.mktemp("job") / "divide.py"
    script.write_text(SCRIPT)
    return lambda *words: subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "code", "says"),
    [
        ("2", 0, "5.0"),
        ("3", 2, "3.33"),
        ("-1", 2, "give a number from 0 up"),
        ("101", 1, "too much"),
        ("0", 1, "ZeroDivisionError"),
    ],
)
def test_exit_codes_tell_apart_what_the_user_can_mend_and_what_failed(divide, by, code, says):
    done = divide("--by", by, "--json")
    assert done.returncode == code
    assert says in done.stdout
    assert len(json.loads(done.stdout)) >= 1, "standard output must be one JSON object"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--bye", "1"), "bye"),
        (("--by", "1", "--slices.limit", "-1"), "limit"),
        ((), "by"),
        (("--by", "1", "--seed", "-1"), "--seed is -1: give a whole number from 0"),
    ],
)
def test_options_that_cannot_be_read_end_with_code_2_and_one_json_object(divide, words, says):
    done = divide(*words, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["exit_code"] == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


ALL_HELP = """
import contextlib, io, json, runpy, sys

said = {}
heavy = ("torch", "ray", "mlflow", "transformers", "deepspeed", "sklearn", "pandas", "matplotlib")
for job in sys.argv[1:]:
    sys.argv = [job, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_path(job, run_name="__main__")
    said[job] = [out.getvalue(), [name for name in heavy if name in sys.modules]]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def helps():
    """What each job says to --help, and the heavy libraries that were imported by then; one process asks all."""
    command = [sys.executable, "-c", ALL_HELP, *map(str, JOBS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_every_job_explains_all_its_options_and_shows_how_to_run_it(helps, job):
    text, _ = helps[str(job)]
    assert f"python jobs/{job.name}" in text
    assert "Namespace" not in text, "a person cannot read that"
    for option in ("--config", "--storage", "--tracking-uri", "--seed", "--dry-run", "--json"):
        assert option in text


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_help_does_not_wait_for_libraries_that_only_the_work_needs(helps, job):
    assert helps[str(job)][1] == []


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_help_is_short_enough_to_be_read(helps, job):
    own = helps[str(job)][0].partition("also understood")[0]
    assert len(re.findall(r"^  --", own, re.MULTILINE)) <= 28


@dataclass(frozen=True, kw_only=True)
class Ranged(JobOptions):
    """Options.

    Attributes:
        workers: A number, or a range.
        min_workers: Its lower end.
    """

    workers: int = 1
    min_workers: int = 0


@pytest.mark.parametrize("words", [["--workers", "1:4"], ["--workers=1:4"], ["--min-workers", "1", "--workers", "4"]])
def test_a_range_of_workers_is_its_two_ends(words):
    assert (parse(Ranged, words).min_workers, parse(Ranged, words).workers) == (1, 4)
    assert parse(Ranged, ["--workers", "3"]).min_workers == 0


def test_a_range_of_workers_in_a_file_is_its_two_ends_and_a_word_wins(tmp_path):
    """A file refused what the command line takes."""
    file = tmp_path / "some.yaml"
    file.write_text("workers: 1:4\n", encoding="utf-8")
    for options in (parse(Ranged, ["--config", str(file)]), parse(Ranged, [], defaults=file)):
        assert (options.min_workers, options.workers) == (1, 4)
    assert parse(Ranged, ["--config", str(file), "--workers", "3"]).workers == 3
    file.write_text("workers: '1:x'\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^workers takes a whole number, or a range such as 1:4; not '1:x'"):
        parse(Ranged, ["--config", str(file)])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workers", "--dry-run"], "--workers needs a value: a whole number"),
        (["--workers", "1:"], "--workers takes a whole number, or a range such as 1:4; not '1:'"),
        (["--workers=:4"], "--workers takes a whole number, or a range such as 1:4; not ':4'"),
    ],
)
def test_a_range_that_lacks_an_end_is_told_as_it_was_typed(words, told):
    """And an option that follows is not taken for its value."""
    with pytest.raises(UserError, match=f"^{re.escape(told)}"):
        parse(Ranged, words)


@pytest.mark.parametrize("word", ["--help", "--help-all"])
def test_help_names_no_path_of_the_file_of_defaults(word, tmp_path, capsys):
    defaults = tmp_path / "defaults.yaml"
    defaults.write_text("workers: 3\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        parse(Ranged, [word], defaults=defaults)
    help_text = capsys.readouterr().out
    assert "default: 3" in help_text
    assert str(tmp_path) not in help_text and "default values below" not in help_text


PLAN = """
import runpy, sys
import ray, raymed.job.job

raymed.job.job._leave = lambda code: None
runpy.run_path(sys.argv[0], run_name="__main__")
print("Ray was started:", ray.is_initialized())
"""


@pytest.mark.slow
def test_a_dry_run_on_prepared_data_plans_without_starting_ray(prepared, tmp_path):
    """A person who asks what would happen does not wait for processes that nothing runs in."""
    words = [str(JOBS[0].parent / "tune_lung.py"), "--data", prepared.folder.uri, "--storage", str(tmp_path), "--dry-run"]
    code = f"import sys; sys.argv = {words!r}\n{PLAN}"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert "nothing was started" in done.stdout, done.stderr
    assert "Ray was started: False" in done.stdout
    for chatter in ("INFO mlflow", "Writing model shards", "Setting accelerator"):
        assert chatter not in done.stderr
