"""Reports in CSV files as RadFM writes them: a picture or volume, a question, and the report, a line each.

Columns are found under their usual names, also those of RadFM's own files. A path may be written as on Windows. What is
wrong with the file is an error that names every line; a line whose picture is missing, or whose answer is empty, goes to the
quarantine.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from raymed.data.record import Message
from raymed.data.sources.lines import Lines
from raymed.data.sources.listing import Listing, SourceSettings, some
from raymed.data.sources.paths import absence, inside, read_text
from raymed.data.sources.table import read_cells
from raymed.errors import UserError
from raymed.systems.mamba_vlm.instructions import is_instructions, read_instructions
from raymed.systems.mamba_vlm.paths import local_path
from raymed.systems.mamba_vlm.slice_labels import without_slice_labels

USUAL_NAMES = {
    "image": ("image_path", "image", "figure_path", "img_ref", "path"),
    "image_id": ("image_id", "序号"),
    "folder": ("img_root_dir",),
    "answer": ("answer", "caption", "report"),
    "question": ("question", "instruction", "prompt"),
    "mask": ("mask_path", "mask"),
    "patient_id": ("patient_id", "patient", "patientid", "subject_id", "pmc_id"),
}
ENDINGS = ("", ".nii.gz", ".nii", "_0000.nii.gz", "_0000.nii", ".png", ".jpg", ".dcm")  # that an id may leave out
DATED = re.compile(r"(.+)_\d{8}_\d{4}")  # case, day, and nnU-Net's channel
CHANNEL = re.compile(r"(.+)_\d{4}")
PROMPT_KEYS = ("caption_prompt", "prompts")
WHOLE = "all"  # the split of a file that is divided by patient


@dataclass(frozen=True)
class ReportColumns:
    """Names of a CSV's columns, where they are not the usual ones.

    Attributes:
        image: path of the volume, series or picture, relative to the CSV's folder.
        image_id: in place of it, the name of a file or folder in `root`.
        folder: where a line's picture lies, if its path is relative to that; itself relative to the CSV's folder.
        answer: the report.
        question: what is asked; where a cell is empty, a prompt.
        mask: path of a mask of the same shape, relative to the CSV's folder.
        patient_id: whose report it is.
    """

    image: str | None = None
    image_id: str | None = None
    folder: str | None = None
    answer: str | None = None
    question: str | None = None
    mask: str | None = None
    patient_id: str | None = None


@dataclass(frozen=True)
class CaptionSettings:
    """How reports are read.

    Attributes:
        root: a folder that pictures may lie in besides the CSV's own, and where those named by an id are.
        patient_regex: a regular expression searched in a picture's path, where a line names no patient; its first group is
            the patient. Without it, a name such as CASE_20260123_0000.nii.gz is a file of the patient CASE.
        columns: names of the CSV's columns, where they are not the usual ones.
        question: what is asked where neither a line nor a prompt does.
        prompts: a JSON file of questions for lines without one, {"caption_prompt": [...]}.
        orientation: what to believe of a NIfTI volume that does not say where left, front and head are, or says it twice in
            two ways: sform, qform, or where its stored axes point to, such as LPS.
        keep_slice_labels: leave marks of single slices such as (IM12) in the reports: no picture shows its number.
    """

    root: str | None = None
    patient_regex: str | None = None
    columns: ReportColumns = field(default_factory=ReportColumns)
    question: str = "Describe this image."
    prompts: str | None = None
    orientation: str | None = None
    keep_slice_labels: bool = False

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise UserError("question is empty: say what is asked about a picture")
        _ = self.source_settings

    @property
    def source_settings(self) -> SourceSettings:
        """The part that all sources share, checked."""
        return SourceSettings(patient_regex=self.patient_regex, orientation=self.orientation)

    def read_prompts(self) -> tuple[str, ...]:
        """The questions of the prompt file; none without one.

        Raises:
            UserError: as `read_prompts`.
        """
        return read_prompts(local_path(self.prompts, Path.cwd())) if self.prompts else ()


def read_prompts(path: Path) -> tuple[str, ...]:
    """The questions of a prompt file, in its order.

    Raises:
        UserError: no such file, not JSON, or no list of texts under one of its keys.
    """
    if not path.is_file():
        raise UserError(f"{path}: {absence(path)}")
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    questions = next((content[key] for key in PROMPT_KEYS if isinstance(content, dict) and key in content), None)
    if not isinstance(questions, list) or not questions or not all(isinstance(q, str) and q.strip() for q in questions):
        raise UserError(f'{path}: needs a list of questions that are not empty: {{"caption_prompt": ["..."]}}')
    return tuple(question.strip() for question in questions)


def list_reports(
    files: Mapping[str, Path], settings: CaptionSettings, prompts: tuple[str, ...], roots: tuple[Path, ...]
) -> Listing:
    """The reports of CSV or instruction files: a study for each picture, a slice for each report about it.

    Args:
        files: of each split; one file under `WHOLE` is divided later.
        prompts: for lines that ask nothing.
        roots: folders that pictures may lie in besides those of the CSV files.

    Raises:
        UserError: what is wrong with the files, with file and line; a patient in two splits; nothing that can be used.
    """
    named = [local_path(settings.root, Path.cwd())] if settings.root else []
    folders = dict.fromkeys([*(path.parent for path in files.values()), *roots, *named])
    reports = _Reports(tuple(folders), settings, prompts)
    for split, path in files.items():
        if not path.is_file():
            raise UserError(f"{path}: {absence(path)}")
        columns = vars(settings.columns)
        lines = read_instructions(path) if is_instructions(path) else read_cells(path, USUAL_NAMES, ("answer",), columns, {})
        for line, cells in lines:
            if "image" not in cells and "image_id" not in cells:
                raise UserError(
                    f"{path}:1: no column image_path or image_id. Say which one it is with --columns.image NAME, or "
                    "--columns.image_id NAME"
                )
            reports.add(split, path, line, cells)
    return reports.listing()


class _Reports:
    """Reports in the making: grouped by picture, and everything that is wrong with them."""

    def __init__(self, roots: tuple[Path, ...], settings: CaptionSettings, prompts: tuple[str, ...]) -> None:
        self._roots, self._settings, self._prompts = roots, settings, prompts
        self._root = Path(os.path.commonpath(roots))
        self._lines = Lines(self._root, "reports", "report")
        self._unnamed = self._labelled = 0
        self._splits: dict[str, dict[str, str]] = {}  # patient -> split -> where

    def add(self, split: str, file: Path, line: int, cells: Mapping[str, str]) -> None:
        self._lines.count += 1
        where = f"{file.name}:{line}"
        try:
            image = self._image(file, cells, where)
            mask = self._placed(cells["mask"], file.parent, where) if cells.get("mask") else None
            patient = cells.get("patient_id") or self._patient(image)
        except UserError as error:
            self._lines.is_wrong(where, str(error).removeprefix(f"{where}: "))
            return
        self._splits.setdefault(patient, {}).setdefault(split, where)
        answer, question = cells["answer"], cells.get("question", "")
        if not self._settings.keep_slice_labels and (plain := without_slice_labels(answer)) != answer:
            self._labelled, answer = self._labelled + 1, plain
        content = repr((image, mask, question, answer, patient))
        name = f"{file.stem}/{blake2b(content.encode(errors='surrogatepass'), digest_size=8).hexdigest()}"
        refusal = self._refused(image, mask, answer, name)
        if refusal:
            more = f" {where}" if name in self._lines.first else ""
            self._lines.refuse(f"{name}{more}", where, patient, refusal)
            return
        messages = Message("human", question or self._asked(name)), Message("gpt", answer)
        state = patient, name, messages, *(_state(self._root / path) for path in (image, mask) if path)
        self._lines.add((patient, image, file.stem), state, name, image, None, where, messages, mask)

    def listing(self) -> Listing:
        """Raises: UserError: anything was wrong."""
        self._lines.check()
        if several := [patient for patient, places in self._splits.items() if len(places) > 1]:
            named = [f"{patient} ({' and '.join(self._splits[patient].values())})" for patient in several]
            raise UserError(
                f"a leak: {len(several)} patients are in more than one of the files: {some(named)}. Put each into one, or "
                "prepare one CSV with --source, which is divided by patient"
            )
        splits = {patient: next(iter(places)) for patient, places in self._splits.items()}
        stated = {} if WHOLE in splits.values() else splits
        return self._lines.listing(tuple(self._notes()), patients_known=not self._unnamed, splits=stated)

    def _notes(self) -> Iterator[str]:
        if self._unnamed:
            yield (
                f"{self._unnamed} of {self._lines.count} reports name no patient, and neither do their files: each picture "
                "counts as a patient of its own. Add a column patient_id, or pass --patient-regex"
            )
        if self._labelled:
            yield f"marks of single slices, such as (IM12), are left out of {self._labelled} reports (--keep-slice-labels)"

    def _image(self, file: Path, cells: Mapping[str, str], where: str) -> str:
        """The picture's path, relative to the root.

        Raises:
            UserError: none is named, it leaves the data folders, or an id stands for several files.
        """
        if path := cells.get("image"):
            folder = local_path(cells["folder"], file.parent) if cells.get("folder") else file.parent
            return self._placed(path, folder, where)
        name = cells.get("image_id")
        if not name:
            raise UserError("no picture is named")
        if self._settings.root is None:
            raise UserError("the picture is named by an id: say with --root in which folder it lies")
        folder = local_path(self._settings.root, Path.cwd())
        there = [name + ending for ending in ENDINGS if (folder / (name + ending)).exists()]
        if len(there) > 1:
            raise UserError(f"the id {name} stands for several files: {', '.join(there)}")
        return self._placed(there[0] if there else name, folder, where)

    def _placed(self, text: str, folder: Path, where: str) -> str:
        """Raises: UserError: outside of every data folder, be it through a link."""
        path = local_path(text, folder)
        for root in self._roots:
            if path.is_relative_to(root):
                inside(root, os.path.relpath(path, root), where)
                return PurePosixPath(os.path.relpath(path, self._root)).as_posix()
        folders = ", ".join(map(str, self._roots))
        raise UserError(
            f"the path {text!r} lies outside of the data folders {folders}: name its folder as nnunet_raw in "
            "paths.yaml, or with prepare_mamba's --root"
        )

    def _patient(self, image: str) -> str:
        """Raises: UserError: the regular expression does not match."""
        if pattern := self._settings.patient_regex:
            if (patient := self._settings.source_settings.patient_of(image)) is None:
                raise UserError(f"patient_regex {pattern!r} does not match {image}")
            return patient
        stem = re.sub(r"(\.nii)?\.\w+$", "", PurePosixPath(image).name)
        if match := DATED.fullmatch(stem):
            return match[1]
        self._unnamed += 1
        match = CHANNEL.fullmatch(stem)
        return match[1] if match else image

    def _refused(self, image: str, mask: str | None, answer: str, name: str) -> str | None:
        """Why a line cannot be used; None where it can."""
        if not answer:
            return "the answer is empty"
        if name in self._lines.first:
            return f"the same as {self._lines.first[name]}"
        if not (self._root / image).exists():
            return absence(self._root / image)
        if mask is not None and not (self._root / mask).is_file():
            return f"the mask: {absence(self._root / mask)}"
        try:
            answer.encode()
        except UnicodeEncodeError:
            return "the answer holds half of a character"
        return None

    def _asked(self, name: str) -> str:
        """A prompt that stays the same for a report, whatever stands beside it."""
        if not self._prompts:
            return self._settings.question
        return self._prompts[int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) % len(self._prompts)]


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Size and time of a file, or of every file in a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
