"""The meta JSON of conversation data, ``{name: {root, annotation, ...}}``: which data sets there are, and where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymed.data.sources.listing import inside, read_text
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


def read_meta(path: Path, root: Path) -> list[DataSet]:
    """The data sets of a meta file whose paths are relative to `root`.

    Raises:
        UserError: not a meta file, a file that is missing, or a path that leaves the root.
    """
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not a meta file: it is nested too deeply") from error
    if not isinstance(content, dict) or not content or not all(isinstance(entry, dict) for entry in content.values()):
        raise UserError(f"{path}: a meta file maps each data set's name to its root and annotation")
    sets = []
    for name, entry in content.items():
        where = f"{path}: {name}"
        missing = [key for key in ("root", "annotation") if not isinstance(entry.get(key), str)]
        if missing:
            raise UserError(f"{where}: {' and '.join(missing)} missing")
        annotation = root / inside(root, entry["annotation"], f"{where}: annotation")
        if not annotation.is_file():
            raise UserError(
                f"{where}: no file {annotation}. Paths are relative to the meta file; if they are relative to another "
                "folder, pass --root FOLDER"
            )
        sets.append(DataSet(name, inside(root, entry["root"], f"{where}: root"), annotation, entry))
    return sets
