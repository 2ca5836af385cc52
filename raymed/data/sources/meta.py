"""The meta JSON of conversation data, ``{name: {root, annotation, ...}}``: which data sets there are, and where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymed.data.sources.paths import inside, read_text
from raymed.errors import UserError


@dataclass(frozen=True)
class DataSet:
    """One data set of a meta file.

    Attributes:
        name: as the meta file calls it.
        folder: of its pictures, relative to the root of all.
        annotation: file of its lines.
        entry: what the meta file says of it.
    """

    name: str
    folder: str
    annotation: Path
    entry: Mapping[str, Any]


def meta_root(path: Path, given: str | None, notes: list[str]) -> Path:
    """The folder that paths in a meta file are relative to: its own, or the current one where the annotations lie there.

    Args:
        given: the folder that a person named.
        notes: takes a line where it is the current folder.

    Raises:
        UserError: the annotations lie in neither, or it is not a meta file.
    """
    if given:
        return Path(given).expanduser().absolute()
    own, current = path.parent, Path.cwd()
    annotations = [entry["annotation"] for entry in _entries(path).values() if isinstance(entry.get("annotation"), str)]
    if all((own / annotation).is_file() for annotation in annotations):
        return own
    if all((current / annotation).is_file() for annotation in annotations):
        notes.append(f"paths in {path.name} are read relative to the current folder, {current}, not to the file's own")
        return current
    lost = next(each for each in annotations if not (own / each).is_file() and not (current / each).is_file())
    raise UserError(
        f"{path}: no file {lost} in the meta file's folder {own}, nor in the current one, {current}. If paths are relative "
        "to another folder, pass --source.root FOLDER"
    )


def read_meta(path: Path, root: Path) -> list[DataSet]:
    """The data sets of a meta file whose paths are relative to `root`.

    Raises:
        UserError: not a meta file, a file that is missing, or a path that leaves the root.
    """
    sets = []
    for name, entry in _entries(path).items():
        where = f"{path}: {name}"
        missing = [key for key in ("root", "annotation") if not isinstance(entry.get(key), str)]
        if missing:
            raise UserError(f"{where}: {' and '.join(missing)} missing")
        annotation = root / inside(root, entry["annotation"], f"{where}: annotation")
        if not annotation.is_file():
            raise UserError(
                f"{where}: no file {annotation}. Paths are relative to {root}; name another folder with --source.root"
            )
        sets.append(DataSet(name, inside(root, entry["root"], f"{where}: root"), annotation, entry))
    return sets


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """Raises: UserError: not a meta file."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not a meta file: it is nested too deeply") from error
    if not isinstance(content, dict) or not content or not all(isinstance(entry, dict) for entry in content.values()):
        raise UserError(f"{path}: a meta file maps each data set's name to its root and annotation")
    return content
