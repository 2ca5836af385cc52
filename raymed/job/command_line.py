"""From the words of a command line and ``--config`` files to a dataclass of options, and back to help and messages."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import re
import sys
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar, runtime_checkable

import yaml
from jsonargparse import DefaultHelpFormatter, Namespace, set_loader

from raymed.compat.jsonargparse import AdjustingParser, hide_default_files, hide_options
from raymed.errors import UserError
from raymed.job import mistakes
from raymed.job.yaml_once import OnceLoader, read_yaml
from raymed.language import say

log = logging.getLogger("raymed")

HELP_ALL, PRINT = "--help-all", "--print_config"

Options = TypeVar("Options")


@dataclass(frozen=True)
class Alias:
    """Another name of an option, as a guide or an earlier program writes it.

    Attributes:
        option: dotted name of the option; empty for one that means nothing here.
        values: what its values are called there, as JSON, and here; a name with a value for true is a switch.
        says: what whoever uses it is told.
        implies: other options that get the same value where nothing else is said of them.
    """

    option: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    says: str = ""
    implies: tuple[str, ...] = ()

    def here(self, value: str) -> str:
        """A value of theirs, as it is called here."""
        return self.values.get(value, value)


Aliases = Mapping[str, Alias]


@runtime_checkable
class Implying(Protocol):
    """Options some of which imply others' defaults."""

    def implied(self) -> Mapping[str, Any] | Path:
        """Values by dotted names, or a YAML file of them, that hold where neither a file nor a word says otherwise.

        ``--print_config`` shows them. They follow from the options as they are without them.
        """
        ...


def parse(
    options_type: type[Options],
    arguments: Sequence[str],
    positional: bool = False,
    defaults: Path | None = None,
    aliases: Aliases | None = None,
    script: ModuleType | None = None,
) -> Options:
    """Options from command-line words; ``--max-epochs`` and ``--max_epochs`` are the same, a bare switch means true.

    `aliases` come on top of the class's own `ALIASES`.

    ``--help`` shows the options that `shown` lists; ``--help-all`` shows all of them.

    Args:
        defaults: YAML file whose values hold where neither ``--config`` nor a word says otherwise.
        script: the job's module, whose docstring heads the help text.

    Raises:
        UserError: the words, or a configuration file, cannot be followed; says what to write instead.
    """
    script = script or sys.modules[options_type.__module__]
    set_loader("yaml", _read_yaml, (yaml.YAMLError,))
    aliases = {**getattr(options_type, "ALIASES", {}), **(aliases or {})}
    kinds, everything = mistakes.kinds(options_type), HELP_ALL in arguments
    parser = _Parser(
        prog=f"python jobs/{Path(script.__file__ or options_type.__name__).name}",
        usage=f"%(prog)s {_required(options_type, positional)}[options]",
        description=(script.__doc__ or "").strip(),
        formatter_class=_HelpFormatter,
        default_config_files=[str(defaults)] if defaults else [],
        epilog=_epilog(options_type, aliases, everything),
    )
    parser.add_argument("--config", action="config", help="YAML file with options; those on the command line win.")
    # Options inherited from another module's dataclass are written in that module's names: resolve them here.
    options_type.__init__.__annotations__ = {**typing.get_type_hints(options_type), "return": type(None)}
    parser.add_class_arguments(options_type, None, as_positional=positional)
    printed = [word for word in arguments if word.replace("-", "_").startswith(PRINT.replace("-", "_"))]
    if not (everything or printed):  # of options that the help hides, nothing is printed either
        hide_options(parser, {"help", "config", *shown(options_type)})
    arguments = ["--help" if word == HELP_ALL else word for word in arguments]
    arguments = _named(arguments, getattr(options_type, "BARE", ()))
    words = _words(_translated(arguments, aliases), {name for name, kind in kinds.items() if kind is bool})
    words = _gathered(_ranged(words, options_type), options_type)
    files = re.findall(r"(?<!\S)--config[= ](\S+)", " ".join(words)) or ([str(defaults)] if defaults else [])
    others = [name.replace("-", "_") for name in aliases]
    parser.mistake = mistakes.Mistake(kinds, others, words, files)
    options = _options(parser, options_type, [word for word in words if not word.startswith(PRINT)])
    implied = options.implied() if isinstance(options, Implying) else {}
    if isinstance(implied, Path):
        parser.default_config_files = [str(implied), *parser.default_config_files]
    else:
        parser.set_defaults(dict(implied))
    return _options(parser, options_type, words) if implied or printed else options


def _options(parser: _Parser, options_type: type[Options], words: Sequence[str]) -> Options:
    try:
        values = parser.parse_args(list(words))
    except UnicodeDecodeError as error:
        raise UserError(
            f"--config takes a YAML file of UTF-8 text, and this is none ({error.reason}): save it as UTF-8"
        ) from error
    for name, value in values.items():
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{mistakes.typed(name)} is {number}: give a finite number")
    ready = parser.instantiate(values)
    for name in _needed(options_type):
        if isinstance(ready[name], str) and not ready[name].strip():
            raise UserError(f"{mistakes.typed(name)} is empty: is a variable of the shell not set?")
    return options_type(**{each.name: ready[each.name] for each in dataclasses.fields(options_type)})  # type: ignore[arg-type]


def shown(options_type: type) -> set[str]:
    """The options that ``--help`` shows: what the class and each of its bases names as `MATTERS`, or else all plain ones."""
    listed: set[str] = set()
    for owner in options_type.__mro__:
        listed |= set(vars(owner).get("MATTERS", vars(owner).get("__annotations__", {})))
    return listed & mistakes.kinds(options_type).keys()


class _Loader(OnceLoader):
    """YAML whose times and dates, 23:30 and 2026-01-02, are text, and whose 1e-4 is a number, other than in YAML 1.1."""


_SIGNED = list("-+.0123456789")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":bool", ":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0b[01_]+|0[0-7_]+|(0|[1-9][0-9_]*)|0x[0-9a-fA-F_]+)$"), _SIGNED
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9_]+)([eE][-+]?[0-9]+)?$
            |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$
            |[-+]?\.(inf|Inf|INF)$
            |\.(nan|NaN|NAN)$""",
        re.VERBOSE,
    ),
    _SIGNED,
)


def _read_yaml(text: str) -> Any:
    """A configuration file, or a value on the command line, where ``left:`` and ``{left}`` are words, and no keys."""
    value = read_yaml(text, _Loader)
    return text if isinstance(value, dict) and value and all(each is None for each in value.values()) else value


def _required(options_type: type, positional: bool) -> str:
    """The options that have no default, as they are typed."""
    names = [(mistakes.typed(name), name.upper()) for name in _needed(options_type)]
    return "".join(f"{'' if positional else option + ' '}{value} " for option, value in names)


def _needed(options_type: type) -> list[str]:
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    return [each.name for each in dataclasses.fields(options_type) if (each.default, each.default_factory) == missing]


def _epilog(options_type: type, aliases: Aliases, everything: bool) -> str:
    """What stands below the options: other names, and where the rest is."""
    means = {
        name: f"--{each.option} {each.values.get('true', '')}".rstrip() if each.option else each.says
        for name, each in aliases.items()
    }
    lines = [f"  --{name:<26} {meaning}" for name, meaning in means.items()]
    lines = ["also understood:", *lines] if lines else []
    hidden = mistakes.kinds(options_type).keys() - shown(options_type)
    if hidden and not everything:
        groups = sorted({f"{name.partition('.')[0]}.*" if "." in name else mistakes.typed(name)[2:] for name in hidden})
        lines += [*([""] if lines else []), f"{HELP_ALL} explains {len(hidden)} more: {', '.join(groups)}"]
    return "\n".join(lines)


def _named(arguments: Sequence[str], bare: Sequence[str]) -> list[str]:
    """The words with those that begin a command line without names under the names of the options that a class calls `BARE`:
    all of these, as a guide's command has them, or none. A single option takes them all, as a list does."""
    count = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    if len(bare) == 1 and count:
        return [f"--{bare[0]}", *arguments]
    if not bare or count != len(bare):
        return list(arguments)
    return [part for name, word in zip(bare, arguments, strict=False) for part in (f"--{name}", word)] + [*arguments[count:]]


def _translated(arguments: Sequence[str], aliases: Aliases) -> list[str]:
    """The words with options under our names. What a name implies comes first, so that a file or a word wins over it."""
    implied: list[str] = []
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
        implied += [part for option in alias.implies if value.isdigit() for part in (f"--{option}", value)]
    return implied + words


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
    """``--workers 1:4`` written as ``--min_workers 1 --workers 4``, for options that have such a pair.

    Raises:
        UserError: an end is no whole number.
    """
    names = {each.name for each in dataclasses.fields(options_type)}
    ranged, waiting = [], list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word[2:].partition("=")
        if word.startswith("--") and f"min_{name}" in names:
            if not equals and waiting and not waiting[0].startswith("--"):
                equals, value = "=", waiting.pop(0)
            ends = _ends(mistakes.typed(name), name, value)
            ranged += [f"--{end}={limit}" for end, limit in ends.items()] or [f"--{name}{equals}{value}"]
        else:
            ranged.append(word)
    return ranged


def _ends(shown: str, name: str, value: str) -> dict[str, int]:
    """A range as its two options; nothing where it is none.

    Args:
        shown: the option as it was written.

    Raises:
        UserError: an end is no whole number.
    """
    if limits := re.fullmatch(r"(\d+):(\d+)", value):
        return {f"min_{name}": int(limits[1]), name: int(limits[2])}
    if ":" in value:
        raise UserError(f"{shown} takes a whole number, or a range such as 1:4; not {value!r}")
    return {}


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


class _Parser(AdjustingParser):
    """Shows top-level options with dashes, as people type them, and the file of defaults in the job's own words only."""

    mistake: mistakes.Mistake | None = None

    def adjust(self, values: Namespace | dict[str, Any], options: Collection[str]) -> None:
        """Ranges in a file are their two options, as on the command line."""
        for name, value in list(values.items()):
            if isinstance(value, str) and f"min_{name}" in options:
                values.update(_ends(name, name, value))

    def error(self, message: str, ex: Exception | None = None) -> typing.NoReturn:
        if self.mistake is None:  # a parser that jsonargparse makes of a nested type
            super().error(message, ex)
        told = say("{command} --help says more", command=self.prog)
        usage = self.format_usage().replace("usage:", say("usage:"), 1)
        raise UserError(f"{self.mistake.explain(message)}\n{usage}{told}") from ex

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        hide_default_files(self)
        text = super().format_help(formatter)
        return re.sub(r"--([a-z]+(?:_[a-z]+)+)(?![\w.])", lambda match: match[0].replace("_", "-"), text)
