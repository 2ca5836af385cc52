"""A CSV with one picture, or folder of them, a line: image, patient_id, label, and optionally study, slice order and source.

UTF-8, with comma, semicolon or tab between the cells. Columns are found under their usual names or named in the
settings. An apostrophe in front of what would be a formula is no part of a text. An empty label cell means that the picture
has no label. DICOM files are checked and ordered as in a folder (`dicom`), but where the column `position` orders them.
"""

from __future__ import annotations

import csv
import io
import math
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raymed.data.sources.dicom import is_dicom, sort_named
from raymed.data.sources.folders import is_picture
from raymed.data.sources.listing import (
    Listing,
    Refusal,
    Slice,
    SourceSettings,
    make_study,
    natural_key,
    some,
    sorted_studies,
)
from raymed.data.sources.paths import absence, file_stat, inside, read_text, walk
from raymed.data.sources.splits import NAMES, StatedSplits
from raymed.errors import UserError
from raymed.spreadsheet import original

# the first name that the header has is taken; letter case does not matter
USUAL_NAMES = {
    "image": ("image", "image_path", "path", "file", "filename", "file_name"),
    "patient_id": ("patient_id", "patient", "patientid", "subject_id", "subject"),
    "label": ("label", "class", "diagnosis"),
    "study": ("study", "study_id", "series", "series_id"),
    "position": ("position", "slice_index", "slice", "slice_location", "order"),
    "source": ("source", "dataset", "hospital", "site"),
    "split": ("split",),
}


@dataclass(frozen=True)
class Row:
    """One line: a picture and what is said of it. `path` is relative to the root."""

    line: int
    path: str
    patient: str
    label: str | None
    study: str
    position: float | None
    source: str
    split: str | None = None


def is_table(path: Path) -> bool:
    """A ``.csv`` or ``.tsv`` file."""
    return path.suffix.lower() in (".csv", ".tsv")


def names_images(path: Path) -> bool:
    """Whether a file beside others is a CSV whose header speaks of images, patients or labels."""
    if not is_table(path):
        return False
    with path.open("rb") as file:
        header = file.readline().decode("utf-8", "replace").casefold()
    cells = {cell.strip('\ufeff" \r\n') for cell in re.split("[,;\t]", header)}
    return any(cells.intersection(USUAL_NAMES[key]) for key in ("image", "patient_id", "label"))


def list_studies(path: Path, settings: SourceSettings) -> Listing:
    """The studies that a CSV names. Pictures that are missing are refused; anything wrong in the CSV is an error.

    Raises:
        UserError: not UTF-8, no lines, a column that is missing, a cell that is empty or wrong, a path that leaves the
            folder, or a picture that is named twice; with file and line.
    """
    if path.is_dir():
        found = [item for item in sorted(path.iterdir()) if names_images(item)]
        if len(found) != 1:
            raise UserError(f"{path} holds {len(found)} CSV files; name the one to use")
        path = found[0]
    root = Path(settings.root).expanduser().absolute() if settings.root else path.parent
    rows: dict[str, Row] = {}
    for row in (each for line in read_rows(path, root, settings) for each in _files(root, line)):
        if row.path in rows:
            line = rows[row.path].line
            raise UserError(f"{path}:{row.line}: {row.path} stands on line {line} too; name each picture once")
        rows[row.path] = row
    if not rows:
        raise UserError(f"{path}: has no lines below its header")
    return list_rows(path, root, rows.values(), settings)


def _files(root: Path, row: Row) -> list[Row]:
    """A line for each picture and DICOM file of the folder that a line names, such as one examination of a patient."""
    folder = root / row.path
    if not folder.is_dir():
        return [row]
    names = [name for name in walk(folder).files if is_picture(Path(name)) or is_dicom(folder / name)]
    return [replace(row, path=posixpath.normpath(posixpath.join(row.path, name))) for name in names] or [row]


def list_rows(path: Path, root: Path, rows: Iterable[Row], settings: SourceSettings) -> Listing:
    """The studies of files that are named one by one, each once: DICOM files along their series, others by their names.

    Args:
        path: of the table, for messages.

    Raises:
        UserError: a study has several sources, or a patient several splits.
    """
    stats: dict[str, os.stat_result] = {}
    refusals: list[Refusal] = []
    there: list[Row] = []
    splits = StatedSplits()
    for row in rows:
        if row.split:
            splits.add(row.patient, row.split, f"{path}:{row.line}")
        stat = file_stat(root / row.path)
        if stat is None:
            refusals.append(Refusal(row.path, f"{path.name}:{row.line}", row.patient, absence(root / row.path)))
        else:
            stats[row.path] = stat
            there.append(row)
    dicom = sort_named(root, {row.path: (row.patient, row.study) for row in there}, settings)
    refusals += dicom.refusals({row.path: (row.path, f"{path.name}:{row.line}", row.patient) for row in there})
    unusable = dicom.refused.keys() | dicom.left_out.keys()
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in there:
        if row.path not in unusable:
            groups[row.patient, row.study + dicom.place(row.path).study].append(row)
    studies = []
    for (patient, study), alike in groups.items():
        ordered = sorted(alike, key=lambda row: (row.position or 0.0, dicom.place(row.path).position, natural_key(row.path)))
        sources = sorted({row.source for row in alike})
        if len(sources) > 1:
            raise UserError(f"{path}: study {study} of patient {patient} has several sources: {some(sources)}")
        # one study with two labels becomes two, so that whoever checks labels sees both
        for label in sorted({row.label for row in alike}, key=str):
            slices = [
                Slice(
                    *(row.path, row.path, None, position, f"{path.name}:{row.line}"),
                    geometry=place.geometry,
                    modality=place.modality,
                    date=place.date,
                )
                for position, row in enumerate(ordered)
                if row.label == label
                for place in [dicom.place(row.path)]
            ]
            studies.append(make_study(patient, study, label, sources[0], slices, stats))
    notes = dicom.notes() + splits.notes()
    return Listing(
        *(root, "csv", sorted_studies(studies), tuple(refusals), notes),
        splits=splits.of,
        about=dicom.about,
        persons=dicom.persons,
    )


def read_rows(path: Path, root: Path, settings: SourceSettings) -> Iterator[Row]:
    """The lines of a CSV whose paths are relative to `root`.

    Raises:
        UserError: not UTF-8, a column that is missing, a cell that is empty or wrong, or a path that leaves the root.
    """
    idle = {"label": not settings.labelled, "split": not (settings.labelled and settings.splits)}
    usual = {key: names for key, names in USUAL_NAMES.items() if not idle.get(key)}
    hints = {
        "image": f"; if {path.name} names no pictures, pass --source.format folders, dicom or nifti, or keep it elsewhere",
        "label": ", or pass --source.labelled false if there are no labels",
    }
    for line, cells in read_cells(path, usual, ("image", "patient_id", "label"), vars(settings.columns), hints):
        yield _row(path, root, line, cells)


def read_cells(
    path: Path,
    usual: Mapping[str, Sequence[str]],
    required: Collection[str],
    named: Mapping[str, str | None],
    hints: Mapping[str, str],
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of each line of a CSV that is not blank, by what the columns hold.

    Args:
        usual: names of a column, of which the first that the header has is taken; letter case does not matter.
        required: columns that must be there, if they are among `usual`.
        named: names that are to be taken instead.
        hints: what else a person may do about a column that is missing.

    Raises:
        UserError: not UTF-8, not a CSV, or a column is missing.
    """
    text = read_text(path)
    header_line = text.lstrip("\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=header_line.count)
    # not splitlines: texts may hold other line separators, which end no line of a CSV
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if not any(header):
            *others, last = required
            raise UserError(f"{path}: is empty; it needs a header with {', '.join(others)} and {last}")
        columns = _find_columns(path, header, usual, required, named, hints)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if any("\0" in cell for cell in cells):
                raise UserError(
                    f"{path}:{reader.line_num}: holds a NUL character, as a damaged file does: write the line anew"
                )
            if len(cells) != len(header):
                raise UserError(f"{path}:{reader.line_num}: {len(cells)} cells, but the header has {len(header)}")
            yield reader.line_num, {key: original(cells[at].strip()) for key, at in columns.items()}
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not a valid CSV line: {error}") from error


def _row(path: Path, root: Path, line: int, cells: dict[str, str]) -> Row:
    where = f"{path}:{line}"
    for key in ("image", "patient_id"):
        if not cells[key]:
            raise UserError(f"{where}: {key} is empty")
    position = None
    if "position" in cells:
        try:
            position = float(cells["position"])
        except ValueError:
            position = math.nan
        if not math.isfinite(position):
            raise UserError(f"{where}: the slice order {cells['position']!r} is not a number")
    if (stated := cells.get("split")) and stated.casefold() not in NAMES:
        raise UserError(
            f"{where}: split {stated!r} is none of {', '.join(NAMES)}: correct it, or pass "
            "--source.splits false, which divides all anew"
        )
    return Row(
        line=line,
        path=inside(root, cells["image"], where),
        patient=cells["patient_id"],
        label=cells.get("label") or None,
        study=cells.get("study") or cells["patient_id"],
        position=position,
        source=cells.get("source") or root.name,
        split=NAMES[stated.casefold()] if stated else None,
    )


def _find_columns(
    path: Path,
    header: list[str],
    usual: Mapping[str, Sequence[str]],
    required: Collection[str],
    named: Mapping[str, str | None],
    hints: Mapping[str, str],
) -> dict[str, int]:
    """Column index by what it holds."""
    lower = [name.casefold() for name in header]
    called = [name for name in lower if name]  # a spreadsheet may leave empty columns at the end
    if len(set(called)) < len(called):
        raise UserError(f"{path}:1: a column name stands twice in the header: {', '.join(header)}")
    columns: dict[str, int] = {}
    for key, names in usual.items():
        name = named.get(key)
        candidates = (name.casefold(),) if name else names
        index = next((lower.index(candidate) for candidate in candidates if candidate in lower), None)
        if index is not None:
            columns[key] = index
        elif name or key in required:
            raise UserError(
                f"{path}:1: no column {name or key!r}; the columns are {', '.join(header)}"
                + (f". Say which one it is with --source.columns.{key} NAME" if key in named else "")
                + hints.get(key, "")
            )
    return columns
