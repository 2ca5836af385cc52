"""What is wrong with an option, in words that say what to type instead."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from raymed.language import reworded, say

ALIKE = 0.6  # of difflib's ratio: below, a suggestion would be a guess


def kinds(options_type: type, prefix: str = "") -> dict[str, Any]:
    """The type of every option by its dotted name, those of nested dataclasses included."""
    hints = typing.get_type_hints(options_type)
    listed: dict[str, Any] = {}
    for each in dataclasses.fields(options_type):
        kind = hints[each.name]
        nested = dataclasses.is_dataclass(kind)
        listed |= kinds(typing.cast(type, kind), f"{prefix}{each.name}.") if nested else {prefix + each.name: kind}
    return listed


def typed(name: str) -> str:
    """An option as people type it: words of top-level ones are joined by dashes."""
    return f"--{name if '.' in name else name.replace('_', '-')}"


def in_own_names(text: str, own: Mapping[str, str]) -> str:
    """A text with the options that it names as a job has them that calls some otherwise.

    Args:
        own: a job's names of options, by those that the text may use; what lies below them is called the same.
    """
    for theirs, ours in own.items():
        text = re.sub(rf"--{re.escape(theirs)}(?![\w-])", typed(ours), text)
    return text


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant: one that ends in the same setting, or else is spelt alike."""
    names, last = list(names), word.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == last]
    alike = get_close_matches(word, names, 1, ALIKE) or [
        name for part in get_close_matches(last, {name.rpartition(".")[2] for name in names}, 1, ALIKE) for name in names
        if name.rpartition(".")[2] == part
    ]  # fmt: skip
    return next(iter(get_close_matches(word, same, 1, 0.0) or alike), None)


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of an error about a name that there is not; empty where none is spelt alike."""
    alike = get_close_matches(word, list(names), 1, ALIKE)
    return say(": did you mean {name}?", name=alike[0]) if alike else ""


def in_words(kind: Any) -> str:
    """What a value of a type looks like."""
    simple = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if kind in simple:
        return say(simple[kind])
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return say("one of {choices}", choices=", ".join(map(str, parts)))
    if origin in (typing.Union, types.UnionType):
        return say(" or ").join(in_words(part) for part in parts)
    if origin is tuple and Ellipsis not in parts:
        return f"[{', '.join(in_words(part) for part in parts)}]"
    if origin in (list, tuple):
        return say("a list, each {kind}", kind=in_words(parts[0]))
    if dataclasses.is_dataclass(kind):
        return f"{{{', '.join(each.name for each in dataclasses.fields(kind))}}}"
    return f"for each name {in_words(parts[1])}" if len(parts) == 2 else str(kind)


@dataclass(frozen=True)
class Mistake:
    """Words that the parser could not follow.

    Attributes:
        kinds: type of each option, by its dotted name.
        others: further names that are understood, with underscores.
        words: the command line, in the parser's spelling.
        files: configuration files that were read.
    """

    kinds: Mapping[str, Any]
    others: Sequence[str]
    words: Sequence[str]
    files: Sequence[str]

    def explain(self, message: str) -> str:
        """The parser's message in our words; the message itself where it is of no known kind."""
        if match := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
            return self._unknown(match[1].split())
        if match := re.match(r"Group '(.+)' does not accept option '(.+)'", message):
            return self._no_option(f"{match[1]}.{match[2]}")
        if match := re.match(r"(?:Key|Option) [\"'](.+)[\"'] is not (?:expected|accepted)", message):
            return self._no_option(match[1])
        if match := re.match(r"argument --(\S+): expected one argument", message):
            return say("{option} needs a value: {kind}", option=typed(match[1]), kind=self._kind(match[1]))
        if match := re.match(r"the following arguments are required: (.*)", message):
            return say("missing: {names}", names=match[1].upper())
        if match := re.match(r'Parser key "config": Path is not a file: (.*)|Unexpected config: ', message):
            return say(
                "{source}no file of options: a line of one is, for example, seed: 1",
                source=f"{match[1]}: " if match[1] else self._source,
            )
        if match := re.match(r'Parser key "(.+?)":\s*(.*)', message, re.DOTALL):
            return self._wrong_value(match[1], match[2])
        if match := re.match(r"Problems parsing config: (.*)", message, re.DOTALL):
            return say(
                "{source}cannot be read as YAML: {reason}", source=self._source, reason=reworded(" ".join(match[1].split()))
            )
        return message

    def _unknown(self, words: Sequence[str]) -> str:
        name = next((word[2:].partition("=")[0] for word in words if word.startswith("--")), None)
        if name is not None:
            return self._no_option(name)
        word = words[0]
        before = self.words[self.words.index(word) - 1] if word in self.words[1:] else ""
        switch = before[2:].partition("=")[0]
        if self.kinds.get(switch) is bool:
            return say(
                "{switch} takes true or false, or nothing, which is true; not {word!r}", switch=typed(switch), word=word
            )
        return say("{word!r} belongs to no option", word=word)

    def _no_option(self, name: str) -> str:
        meant = nearest(name, [*self.kinds, *self.others])
        hint = say(": did you mean {name}?", name=self._typed(name, meant)) if meant else ""
        return say(
            "{where}there is no option {option}{hint}", where=self._where(name), option=self._typed(name, name), hint=hint
        )

    def _wrong_value(self, name: str, reason: str) -> str:
        kind = self.kinds.get(name)
        if nested := re.search(r"NestedArg\(key='(.+?)'", reason):
            return self._no_option(f"{name}.{nested[1]}")
        if absent := re.match(r"File does not exist: (.*)", reason):
            return say("{option}: there is no file {file}", option=typed(name), file=absent[1])
        inside = re.search(r"Option '(.+?)' is not accepted", reason, re.DOTALL)
        value = re.search(r"(?:Got|Given) value: (.*)", reason)
        if kind is None:
            settings = sorted(each for each in self.kinds if each.startswith(f"{name}."))
            return say(
                "{where}{option} has settings of its own: {settings}",
                where=self._where(name),
                option=self._typed(name, name),
                settings=", ".join(settings),
            )
        if inside:
            return say(
                "{where}{option} takes {kind}; not the setting {inside!r}",
                where=self._where(name),
                option=self._typed(name, name),
                kind=in_words(kind),
                inside=inside[1],
            )
        wrong = repr(value[1].strip("'")) if value else " ".join(reason.split())
        choices = [each for each in typing.get_args(kind) if isinstance(each, str)]
        hint = did_you_mean(value[1].strip("'"), choices) if value else ""
        return say(
            "{where}{option} takes {kind}; not {wrong}{hint}",
            where=self._where(name),
            option=self._typed(name, name),
            kind=in_words(kind),
            wrong=wrong,
            hint=hint,
        )

    def _kind(self, name: str) -> str:
        return in_words(self.kinds[name]) if name in self.kinds else "see --help"

    def _in_file(self, name: str) -> bool:
        return bool(self.files) and not any(re.match(rf"--{re.escape(name)}([=.]|$)", word) for word in self.words)

    def _typed(self, name: str, shown: str) -> str:
        """An option as it is written where `name` was."""
        return shown if self._in_file(name) else typed(shown)

    def _where(self, name: str) -> str:
        return self._source if self._in_file(name) else ""

    @property
    def _source(self) -> str:
        return f"{' or '.join(self.files)}: "
