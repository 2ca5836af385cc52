"""The texts that classes are recognised by: a file's, else a template's, else the class name."""

from __future__ import annotations

import json
import logging
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raymed.data.sources.listing import some
from raymed.data.sources.paths import read_text
from raymed.errors import UserError
from raymed.storage.folder import Folder

log = logging.getLogger("raymed")

ClassTexts = dict[str, str | list[str]]
"""Class name -> its text, or several."""

PLACEHOLDER = "class_name"


def class_texts(
    names: Sequence[str], template: str | None = None, given: Mapping[str, str | Sequence[str]] | None = None
) -> tuple[tuple[str, ...], ...]:
    """One or several texts for each class, in the order of `names`.

    Args:
        template: text with ``{class_name}`` in it; without one, the name itself is the text.
        given: texts of some classes, which go before the template.

    Raises:
        UserError: a text for a class that there is not, or a template that cannot be filled in.
    """
    given = given or {}
    if unknown := sorted(given.keys() - set(names)):
        raise UserError(f"texts for classes that there are not: {some(unknown)}; the classes are {some(list(names), 50)}")
    texts = []
    for name in names:
        text = given.get(name) or fill(template, name)
        texts.append((text,) if isinstance(text, str) else tuple(text))
    return tuple(texts)


def tell_missing(names: Sequence[str], template: str | None, given: Mapping[str, str | Sequence[str]]) -> None:
    """A line that names the classes for which texts were given to others only."""
    missing = [name for name in names if name not in given]
    if given and missing:
        instead = f"the template {template!r}" if template else "their names"
        log.warning("no text is given for the classes %s: using %s", some(missing), instead)


def fill(template: str | None, name: str) -> str:
    """The template with the class name in place; the name where there is no template.

    Raises:
        UserError: the template holds another placeholder, or none.
    """
    if not template:
        return name
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise UserError(f"the text template {template!r} cannot be read: {error}") from error
    if fields != {PLACEHOLDER}:
        raise UserError(
            f"the text template {template!r} needs {{{PLACEHOLDER}}} where the class name goes, and no other field"
        )
    return template.format(class_name=name)


def read_class_texts(path: Path) -> ClassTexts:
    """The texts in a JSON file: an object from class name to a text, or to a list of texts.

    Raises:
        UserError: no such file, not such an object, or a class that stands twice; with the file.
    """
    if not path.is_file():
        raise UserError(f"no class texts in {path}: no such file. Write one with jobs/class_texts.py")
    try:
        content = json.loads(read_text(path), object_pairs_hook=_once)
    except (ValueError, UserError) as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: class texts are an object {{class: text}}, not a {type(content).__name__}")
    for name, text in content.items():
        texts = text if isinstance(text, list) else [text]
        if not texts or not all(isinstance(each, str) and each.strip() for each in texts):
            raise UserError(f"{path}: the text of {name!r} must be a text, or a list of texts, none of them empty")
    return content


def write_class_texts(path: Path, texts: Mapping[str, str | Sequence[str]]) -> None:
    """Write a file that `read_class_texts` reads, whole or not at all: UTF-8, classes sorted.

    Raises:
        UserError: the file cannot be written.
    """
    content = json.dumps(dict(sorted(texts.items())), ensure_ascii=False, indent=2) + "\n"
    Folder.at(path.parent).write(path.name, content.encode())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{some(twice)} stands twice")
    return dict(pairs)
