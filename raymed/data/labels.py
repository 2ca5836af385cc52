"""The label table: which classes there are, what they are called, and which labels are left out on purpose.

A label in the data may be written as a class's code, its name, its name in any language, or an alias; letter case and
surrounding blanks do not matter. Any other label is an error before work starts, unless the table's ignore list has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from raymed.errors import UserError
from raymed.job.yaml_once import read_yaml
from raymed.language import spoken

Value = TypeVar("Value")


@dataclass(frozen=True)
class LabelClass:
    """One class.

    Attributes:
        code: what the model answers with, e.g. "0".
        name: the short English name used in columns and figures.
        names: language code to the name shown to readers of that language.
        aliases: other ways in which data write this class.
    """

    code: str
    name: str
    names: dict[str, str]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelTable:
    """The classes in index order, and the labels that are left out on purpose."""

    classes: tuple[LabelClass, ...]
    ignore: tuple[str, ...] = ()

    @classmethod
    def open(cls, path_or_name: str) -> LabelTable:
        """A table from a YAML file, or a packaged one by its name ("lung").

        Raises:
            UserError: no such table, or the file is not a valid one; names the file and the key.
        """
        packaged = resources.files("raymed.data") / "label_tables"
        names = sorted(item.name.removesuffix(".yaml") for item in packaged.iterdir() if item.name.endswith(".yaml"))
        if path_or_name in names:
            return cls._parse((packaged / f"{path_or_name}.yaml").read_text("utf-8"), path_or_name)
        path = Path(path_or_name).expanduser()
        if not path.is_file():
            raise UserError(f"no label table {path_or_name!r}: give a YAML file or one of: {', '.join(names)}")
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text ({error.reason}); save the label table as UTF-8") from error
        return cls._parse(text, str(path))

    @classmethod
    def of(cls, names: Iterable[str]) -> LabelTable:
        """Classes that are called, and coded, as data write them, in this order.

        Raises:
            UserError: fewer than two, or two that differ only by case.
        """
        return cls.from_dict({"classes": [{"code": name, "name": name} for name in names]}, "the labels of the source")

    @classmethod
    def _parse(cls, text: str, where: str) -> LabelTable:
        try:
            content = read_yaml(text)
        except yaml.YAMLError as error:
            raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
        return cls.from_dict(content, where)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str = "label table") -> LabelTable:
        """The table that `to_dict` wrote; `where` names it in errors.

        Raises:
            UserError: an unknown or missing key, a value of the wrong kind, or a label that stands for two classes.
        """
        if not isinstance(content, Mapping) or not content:
            raise UserError(f"{where}: a label table has the keys classes (a list) and ignore (a list), see labels 'lung'")
        _known_keys(content, {"classes", "ignore"}, where)
        rows = content.get("classes")
        if not isinstance(rows, list) or len(rows) < 2:
            raise UserError(f"{where}: classes must be a list of at least two classes")
        classes = tuple(_class(row, f"{where}: classes[{index}]") for index, row in enumerate(rows))
        table = cls(classes, _words(content.get("ignore"), f"{where}: ignore"))
        table._check_unique(where)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML or JSON."""
        return {
            "classes": [
                {"code": row.code, "name": row.name, "names": dict(row.names), "aliases": list(row.aliases)}
                for row in self.classes
            ],
            "ignore": list(self.ignore),
        }

    @property
    def names(self) -> list[str]:
        """Class names, in index order."""
        return [row.name for row in self.classes]

    @property
    def titles(self) -> list[str]:
        """What readers are shown of each class, in index order: its name in the language that is spoken, or, where nobody
        chose one, its names in all languages given."""
        return [row.names.get(spoken()) or " / ".join(row.names.values()) or row.name for row in self.classes]

    @property
    def called(self) -> list[str]:
        """What a reader is told of each class, in index order: its name in the language that is spoken, or else its own."""
        return [row.names.get(spoken(), row.name) for row in self.classes]

    def told(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Values by class names, and by others, under the names that a reader is told of classes."""
        called = dict(zip(self.names, self.called, strict=True))
        return {called.get(name, name): value for name, value in values.items()}

    @property
    def codes(self) -> list[str]:
        """Class codes, in index order."""
        return [row.code for row in self.classes]

    def index_of(self, label: str) -> int | None:
        """The class index of a label as data write it; None if it is on the ignore list.

        Raises:
            KeyError: neither known nor ignored.
        """
        return self._indices[_key(label)]

    def knows(self, label: str) -> bool:
        """Whether a label is one of a class, or on the ignore list."""
        return _key(label) in self._indices

    def check(self, counts: Mapping[str, int]) -> None:
        """Make sure that every label is known or ignored.

        Args:
            counts: label as written in the data -> how often.

        Raises:
            UserError: names every unknown label with its count.
        """
        unknown = {label: count for label, count in counts.items() if not self.knows(label)}
        if unknown:
            listed = ", ".join(f"{label!r} ({count})" for label, count in sorted(unknown.items()))
            raise UserError(
                f"labels that the label table does not know: {listed}. Known: {', '.join(self.names)}. Copy "
                "the label table to a YAML file, add each of them to a class's `aliases` or to the `ignore` "
                "list, and pass it with --labels TABLE.yaml"
            )

    @cached_property
    def _indices(self) -> dict[str, int | None]:
        indices: dict[str, int | None] = {_key(word): None for word in self.ignore}
        for index, row in enumerate(self.classes):
            indices.update({_key(word): index for word in _all_words(row)})
        return indices

    def _check_unique(self, where: str) -> None:
        owner: dict[str, str] = {_key(word): "ignore" for word in self.ignore}
        for index, row in enumerate(self.classes):
            place = f"classes[{index}] ({row.name})"
            for word in _all_words(row):
                other = owner.setdefault(_key(word), place)
                if other != place:
                    raise UserError(f"{where}: {word!r} stands in both {other} and {place}; keep it in one")


def _key(label: str) -> str:
    return label.strip().casefold()


def _all_words(row: LabelClass) -> tuple[str, ...]:
    return (row.code, row.name, *row.names.values(), *row.aliases)


def _class(row: Any, where: str) -> LabelClass:
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: must have the keys code, name, names, aliases")
    _known_keys(row, {"code", "name", "names", "aliases"}, where)
    names = row.get("names") or {}
    if not isinstance(names, Mapping):
        raise UserError(f"{where}.names: must map a language to a name, e.g. {{en: Normal lung}}")
    return LabelClass(
        code=_word(row.get("code"), f"{where}.code"),
        name=_word(row.get("name"), f"{where}.name"),
        names={str(language): _word(name, f"{where}.names.{language}") for language, name in names.items()},
        aliases=_words(row.get("aliases"), f"{where}.aliases"),
    )


def _known_keys(content: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        raise UserError(f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(known))}")


def _words(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: must be a list")
    return tuple(_word(item, f"{where}[{index}]") for index, item in enumerate(value))


def _word(value: Any, where: str) -> str:
    # YAML reads unquoted 0 as a number, which is harmless, and unquoted no as False, which is not
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"{where}: must be a text that is not empty (put it in quotes), got {value!r}")
    return str(value).strip()
