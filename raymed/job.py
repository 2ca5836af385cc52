"""What every job shares: options from types, ``--config`` files, exit codes, and the last line.

A job file declares a frozen dataclass of options (a subclass of `JobOptions`) and a function from those options to an
`Outcome`, and hands both to `run`. Its command line, help and configuration file come from the dataclass. What does the
work, and takes seconds to import, is imported by the function: a typo is told at once.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import json
import logging
import os
import re
import shlex
import sys
import tempfile
import traceback
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from jsonargparse._loaders_dumpers import get_yaml_default_loader

from raymed.errors import RunError, UserError
from raymed.storage import Folder

log = logging.getLogger("raymed")

INTEGER = "tag:yaml.org,2002:int"
_CHATTY = ("ray", "mlflow", "alembic", "optuna", "deepspeed", "DeepSpeed", "faiss", "matplotlib", "transformers", "peft")


def default_storage() -> str:
    """``RAYMED_STORAGE``, else ``RAYMED_HOME``, else ``runs`` in the current folder.

    A submitted job works in a copy of the folder that Ray deletes some day: there it is ``raymed/runs`` at home.
    """
    given = os.environ.get("RAYMED_STORAGE") or os.environ.get("RAYMED_HOME")
    if given:
        return given
    return str(Path.home() / "raymed" / "runs") if "working_dir_files" in Path.cwd().parts else "runs"


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options that every job takes.

    Attributes:
        storage: Folder or URI under which everything is written (else RAYMED_STORAGE, RAYMED_HOME, or runs).
        tracking_uri: MLflow tracking address (default: MLFLOW_TRACKING_URI, or mlflow.db inside a local storage).
        seed: Seed of splits, order, augmentation, starting weights and search.
        dry_run: Check data, resources and memory, print the plan, and do nothing else.
        json: Print the summary as one JSON object on standard output; logs go to standard error.
        group_readable: Let this user's group read what is written; otherwise nobody else can.
    """

    storage: str = field(default_factory=default_storage)
    tracking_uri: str | None = None
    seed: int = 0
    dry_run: bool = False
    json: bool = False
    group_readable: bool = False

    @property
    def folder(self) -> Folder:
        """The storage folder."""
        return Folder.at(self.storage)

    @property
    def tracking(self) -> str:
        """The MLflow tracking URI in force.

        Raises:
            UserError: the storage is remote and no tracking address was given.
        """
        given = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if given:
            return given
        if "://" in self.storage:
            raise UserError(
                f"the storage {self.storage} is remote, so the tracking database cannot lie in it. "
                "Give --tracking-uri http://SERVER:5000 or set MLFLOW_TRACKING_URI."
            )
        return f"sqlite:///{self.folder.path}/mlflow.db"


@dataclass(frozen=True)
class Outcome:
    """What a job leaves: lines for a person, the last of which says where the result is, and the same for ``--json``.

    Attributes:
        code: exit code; 2 where the result is that the user has something to mend.
    """

    text: str
    data: dict[str, Any]
    code: int = 0


@dataclass(frozen=True)
class Alias:
    """Another name of an option, as a guide or an earlier program writes it.

    Attributes:
        option: dotted name of the option; empty for one that means nothing here.
        values: what its values are called there, as JSON, and here; a name with a value for true is a switch.
        says: what whoever uses it is told.
    """

    option: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    says: str = ""

    def here(self, value: str) -> str:
        """A value of theirs, as it is called here."""
        return self.values.get(value, value)


Aliases = Mapping[str, Alias]

Options = TypeVar("Options", bound=JobOptions)


def run(
    options_type: type[Options],
    main: Callable[[Options], Outcome],
    arguments: Sequence[str] | None = None,
    positional: bool = False,
    defaults: Path | None = None,
    aliases: Aliases | None = None,
) -> None:
    """Parse the command line into `options_type`, call `main`, print its outcome, and exit.

    Args:
        positional: required options are given by place instead of by name.
        defaults: YAML file whose values hold where neither ``--config`` nor the command line says otherwise.
        aliases: other names of options, with dashes.

    Exit codes: 0 done; 2 something the user can mend; 1 a failed run; 130 stopped by Ctrl-C.
    """
    _quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    script = sys.modules[main.__module__]
    words = sys.argv[1:] if arguments is None else arguments
    as_json, failed = "--json" in words, True
    try:
        options = parse(options_type, words, positional, defaults, aliases, script)
        as_json = options.json
        os.umask(0o027 if options.group_readable else 0o077)  # most of what is written is about patients
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the outcome: libraries print to it too
            outcome = main(options)
        code, text, data, failed = outcome.code, outcome.text, outcome.data, False
    except UserError as error:
        code, text, data = _failure(2, str(error))
    except RunError as error:
        code, text, data = _failure(1, str(error))
    except SystemExit as stopped:
        if not stopped.code:  # --help
            raise
        code, _, data = _failure(int(stopped.code), "the options cannot be read; standard error says why")
        text = ""  # the parser has said it
    except KeyboardInterrupt:
        code, text, data = _failure(130, f"stopped. To go on from the last checkpoint: {going_on(sys.argv)}")
    except Exception as error:
        kept = _keep_traceback()
        code, text, data = _failure(
            1, f"{type(error).__name__}: {error}\nThe traceback is in {kept}; send it with the command."
        )
    if text and (failed or not as_json):
        print(text, file=sys.stderr if failed else sys.stdout)
    if as_json:
        print(json.dumps(data, default=str))
    _leave(code)


def parse(
    options_type: type[Options],
    arguments: Sequence[str],
    positional: bool = False,
    defaults: Path | None = None,
    aliases: Aliases | None = None,
    script: ModuleType | None = None,
) -> Options:
    """Options from command-line words; ``--max-epochs`` and ``--max_epochs`` are the same, a bare switch means true.

    Args:
        script: the job's module, whose docstring heads the help text.
    """
    script = script or sys.modules[options_type.__module__]
    _read_times_as_text()
    parser = _Parser(
        prog=f"python jobs/{Path(script.__file__ or options_type.__name__).name}",
        usage=f"%(prog)s {_required(options_type, positional)}[options]",
        description=(script.__doc__ or "").strip(),
        formatter_class=_HelpFormatter,
        default_config_files=[str(defaults)] if defaults else [],
        epilog=_explain(aliases or {}),
    )
    parser.add_argument("--config", action="config", help="YAML file with options; those on the command line win.")
    # Options inherited from another module's dataclass are written in that module's names: resolve them here.
    options_type.__init__.__annotations__ = {**typing.get_type_hints(options_type), "return": type(None)}
    parser.add_class_arguments(options_type, None, as_positional=positional)
    words = _words(_translated(arguments, aliases or {}), switches(options_type))
    parsed = parser.parse_args(_gathered(_ranged(words, options_type), options_type))
    ready = parser.instantiate_classes(parsed)
    return options_type(**{each.name: ready[each.name] for each in dataclasses.fields(options_type)})


def _read_times_as_text() -> None:
    """Configuration files hold times such as 23:30, which YAML 1.1 takes for numbers of base 60."""
    loader = get_yaml_default_loader()
    number = re.compile(r"[-+]?(0b[01_]+|0[0-7_]+|(0|[1-9][0-9_]*)|0x[0-9a-fA-F_]+)$")
    for first, resolvers in loader.yaml_implicit_resolvers.items():
        found = [(tag, number if tag == INTEGER else pattern) for tag, pattern in resolvers]
        loader.yaml_implicit_resolvers[first] = found


def switches(options_type: type, prefix: str = "") -> set[str]:
    """Dotted names of all boolean options, nested dataclasses included."""
    hints = typing.get_type_hints(options_type)
    found: set[str] = set()
    for each in dataclasses.fields(options_type):
        kind = hints[each.name]
        if kind is bool:
            found.add(prefix + each.name)
        elif dataclasses.is_dataclass(kind):
            found |= switches(typing.cast(type, kind), f"{prefix}{each.name}.")
    return found


def _required(options_type: type, positional: bool) -> str:
    """The options that have no default, as they are typed."""
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    names = [each.name for each in dataclasses.fields(options_type) if (each.default, each.default_factory) == missing]
    return "".join(f"{'' if positional else '--' + name.replace('_', '-') + ' '}{name.upper()} " for name in names)


def _explain(aliases: Aliases) -> str:
    means = {
        name: f"--{each.option} {each.values.get('true', '')}".rstrip() if each.option else each.says
        for name, each in aliases.items()
    }
    lines = [f"  --{name:<26} {meaning}" for name, meaning in means.items()]
    return "\n".join(["also understood:", *lines]) if lines else ""


def _translated(arguments: Sequence[str], aliases: Aliases) -> list[str]:
    """The words with options under our names."""
    words, waiting = [], list(arguments)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word[2:].partition("=")
        alias = aliases.get(name.replace("_", "-")) if word.startswith("--") else None
        if alias is None:
            words.append(word)
            continue
        if not equals:
            switch = "true" in alias.values
            takes = waiting and (waiting[0].lower() in ("true", "false") if switch else not waiting[0].startswith("--"))
            value = waiting.pop(0) if takes else "true" if switch else ""
        if alias.says:
            log.info("--%s: %s", name, alias.says)
        if alias.option:
            words += [f"--{alias.option}", alias.here(value)] if value else [f"--{alias.option}"]
    return words


def _words(arguments: Sequence[str], boolean: set[str]) -> list[str]:
    words: list[str] = []
    for place, word in enumerate(arguments):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            following = arguments[place + 1].lower() if place + 1 < len(arguments) else ""
            if name in boolean and not equals and following not in ("true", "false"):
                equals, value = "=", "true"
            word = f"--{name}{equals}{value}"
        words.append(word)
    return words


def _ranged(words: Sequence[str], options_type: type) -> list[str]:
    """``--workers 1:4`` written as ``--min_workers 1 --workers 4``, for options that have such a pair."""
    names = {each.name for each in dataclasses.fields(options_type)}
    ranged, waiting = [], list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word[2:].partition("=")
        if word.startswith("--") and f"min_{name}" in names:
            value = value if equals or not waiting else waiting.pop(0)
            low, colon, high = value.partition(":")
            word = f"--{name}={high if colon else low}"
            ranged += [f"--min_{name}={low}"] if colon else []
        ranged.append(word)
    return ranged


def _gathered(words: Sequence[str], options_type: type) -> list[str]:
    """``--top_k 1 3 5`` written as ``--top_k=[1,3,5]``, for options that are lists."""
    lists = {name for name, kind in typing.get_type_hints(options_type).items() if typing.get_origin(kind) is list}
    gathered, waiting = [], list(words)
    while waiting:
        word = waiting.pop(0)
        if word[:2] == "--" and word[2:] in lists:
            values = []
            while waiting and not waiting[0].startswith("--"):
                values.append(waiting.pop(0))
            word += f"={values[0]}" if values and values[0].startswith("[") else f"=[{','.join(values)}]"
        gathered.append(word)
    return gathered


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of a job's docstring, where the commands to run stand; a search space is too long to read."""

    def _expand_help(self, action: argparse.Action) -> str:
        return re.sub(r"default: \{.*Namespace\(.*\}", "default: what the file says", super()._expand_help(action))


class _Parser(ArgumentParser):
    """Shows top-level options with dashes, as people type them, and the file of defaults in the job's own words only."""

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        text = re.sub(r"default config file locations:.*?\n\n", "", super().format_help(formatter), flags=re.DOTALL)
        return re.sub(r"--([a-z]+(?:_[a-z]+)+)(?![\w.])", lambda match: match[0].replace("_", "-"), text)


def going_on(words: Sequence[str]) -> str:
    """The command that goes on with what `words` began; it begins nothing anew."""
    command = shlex.join(["python", *words])
    return re.sub(r"--resume[ =]never\b", "--resume must", command)


def _failure(code: int, message: str) -> tuple[int, str, dict[str, Any]]:
    return code, f"error: {message}", {"error": message, "exit_code": code}


def _leave(code: int) -> typing.NoReturn:
    """Exit with `code` whatever the libraries' threads do: in a normal exit, Arrow's and DeepSpeed's now and then abort."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _keep_traceback() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="raymed-"))
    path = folder / f"traceback-{datetime.now():%Y%m%d-%H%M%S}.txt"
    path.write_text(traceback.format_exc(), encoding="utf-8")
    return path


def _quiet_libraries() -> None:
    """Keep third parties' start-up chatter off the terminal; their warnings and errors still show."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks for")  # a few shards are few tasks
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
