"""The lines of a configuration's data sets: chosen, checked one by one, and listed by patient and study."""

from __future__ import annotations

import logging
import os
import posixpath
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from raymed.data.sources import Listing
from raymed.data.sources.listing import SourceSettings, some
from raymed.data.sources.paths import inside
from raymed.data.sources.sample import Sample as ListedSample
from raymed.data.sources.samples import SampleListing
from raymed.errors import UserError
from raymed.systems.unimedvl.mixture_config import DataSet, Group, MixtureConfig
from raymed.systems.unimedvl.samples import Sample, read_sample
from raymed.systems.unimedvl.sequence import KINDS, sequence_of

log = logging.getLogger("raymed")


@dataclass(frozen=True)
class ListedLine:
    """A line that can be used; its pictures are paths relative to the root."""

    source: str
    split: str
    where: str
    place: tuple[str, int]
    sample: Sample
    paths: tuple[str, ...]


def source_of(group: Group, part: DataSet) -> str:
    """What records call their data set."""
    return f"{group.title}/{part.name}"


def root_of(config: MixtureConfig) -> Path:
    """The folder below which all lines and pictures lie."""
    places = [place for group in config.groups for part in group.sets for place in _places(part)]
    return Path(os.path.commonpath([place if place.is_dir() else place.parent for place in places]))


def list_sequences(
    config: MixtureConfig, settings: SourceSettings, private: bool = False
) -> tuple[Listing, dict[str, dict[str, int]]]:
    """The usable lines of all data sets, and counts for each set: of its lines, of those used and refused, and of the
    elements of each kind in their sequences.

    A line without a patient belongs with those that share a picture with it.

    Raises:
        UserError: a data set has no file or no lines, no line can be used, or a patient is trained on and held out.
    """
    root, notes = root_of(config), list[str]()
    samples = SampleListing(root, settings, private, notes)
    counts: dict[str, dict[str, int]] = {}
    lines: list[ListedLine] = []
    other_size: list[str] = []
    undropped: set[str] = set()
    for group in config.groups:
        for part in group.sets:
            source = source_of(group, part)
            total, chosen = _chosen(group, part)
            refused, kinds = 0, Counter[str]()
            for number, offset, content in chosen:
                where = f"{Path(part.info.jsonl_path).name}:{number}"
                try:
                    sample = read_sample(content)
                    elements = sequence_of(sample, group.plan, group.cfg_dropout)
                    paths = _located(sample, part, root, where)
                except (ValueError, UserError) as error:
                    samples.refuse(source, where, str(error).removeprefix(f"{where}: "))
                    refused += 1
                    continue
                kinds.update(element.kind for element in elements)
                if any(each.kind == "target" for each in elements) and not any(each.droppable for each in elements):
                    undropped.add(group.title)
                if _states_another_size(sample, root, paths):
                    other_size.append(where)
                place = posixpath.normpath(os.path.relpath(_absolute(part.info.jsonl_path), root)), offset
                lines.append(ListedLine(source, group.split, where, place, sample, paths))
            counts[source] = {"lines": total, "used": len(chosen) - refused, "refused": refused}
            counts[source] |= {kind: kinds[kind] for kind in KINDS}
    if other_size:
        notes.append(f"{len(other_size)} lines state another size of a picture than its file has: {some(other_size, 3)}")
    if undropped:
        notes.append(
            f"training leaves no condition out of {some(sorted(undropped))}, as their class has it: guidance then rests on "
            "the weights one begins with. cfg_dropout: true lets training leave them out"
        )
    unnamed = _kin(lines)
    for line, stand_in in zip(lines, unnamed, strict=True):
        sample = line.sample
        listed = ListedSample(line.paths, sample.messages, sample.patient, sample.study)
        samples.add(line.source, 0, listed, line.where, line.place, stand_in)
    listing = samples.listing()
    if any(group.split != "train" for group in config.groups):
        listing = replace(listing, splits=_splits(listing, {line.source: line.split for line in lines}))
    return listing, counts


def _places(part: DataSet) -> Iterator[Path]:
    """The file of a data set, and its folder.

    Raises:
        UserError: one is not there.
    """
    file = _absolute(part.info.jsonl_path)
    if not file.is_file():
        raise UserError(f"the data set {part.name} has no file {part.info.jsonl_path}: correct its jsonl_path")
    yield file
    if part.info.data_dir:
        folder = _absolute(part.info.data_dir)
        if not folder.is_dir():
            raise UserError(f"the data set {part.name} has no folder {part.info.data_dir}: correct its data_dir")
        yield folder


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()


def _chosen(group: Group, part: DataSet) -> tuple[int, list[tuple[int, int, bytes]]]:
    """How many lines a data set has, and those that are used: number, offset and content. Blank lines do not count.

    Raises:
        UserError: there are none.
    """
    lines, offset = list[tuple[int, int, bytes]](), 0
    with _absolute(part.info.jsonl_path).open("rb") as file:
        for number, content in enumerate(file, start=1):
            if content.strip():
                lines.append((number, offset, content))
            offset += len(content)
    total = len(lines)
    if group.shuffle_seed is not None:
        random.Random(group.shuffle_seed).shuffle(lines)
    lines = lines[part.start : part.end or None]
    if not lines:
        used = f", of which num_used_data [{part.start}, {part.end}] names none" if total else ""
        raise UserError(f"the data set {part.name} has {total} lines ({part.info.jsonl_path}){used}: nothing to use")
    return total, lines


def _located(sample: Sample, part: DataSet, root: Path, where: str) -> tuple[str, ...]:
    """The sample's pictures relative to the root.

    Raises:
        ValueError: the data set has no folder.
        UserError: a path leaves it.
    """
    if not sample.pictures:
        return ()
    if not part.info.data_dir:
        raise ValueError("the line names pictures, and its data set has no data_dir")
    folder = _absolute(part.info.data_dir)
    below = os.path.relpath(folder, root)
    return tuple(posixpath.normpath(f"{below}/{path}") for path in tidy_paths(sample, folder, where))


def tidy_paths(sample: Sample, folder: Path, where: str) -> list[str]:
    """The sample's pictures relative to the folder of its data set, to which a leading slash belongs.

    Raises:
        UserError: a path leaves it.
    """
    return [inside(folder, picture.path.lstrip("/"), where) for picture in sample.pictures]


def _states_another_size(sample: Sample, root: Path, paths: Sequence[str]) -> bool:
    """Whether a picture's file has another size than the line says; of files that cannot be opened nothing is known here."""
    for picture, path in zip(sample.pictures, paths, strict=True):
        if picture.width is None or picture.height is None:
            continue
        try:
            with Image.open(root / path) as file:
                if file.size != (picture.width, picture.height):
                    return True
        except (OSError, Image.DecompressionBombError):
            continue
    return False


def _kin(lines: Sequence[ListedLine]) -> list[str | None]:
    """For each line, the first picture of all that are linked to it by lines that share one; None without a picture."""
    names = sorted({path for line in lines for path in line.paths})
    number = {path: place for place, path in enumerate(names)}
    pairs = [(number[line.paths[0]], number[path]) for line in lines for path in line.paths]
    if not pairs:
        return [None] * len(lines)
    start, end = np.array(pairs).T
    shape = (len(names), len(names))
    _, component = connected_components(coo_array((np.ones(len(start)), (start, end)), shape), directed=False)
    first: dict[int, str] = {}
    for name, part in zip(names, component.tolist(), strict=True):
        first.setdefault(part, name)
    return [first[component[number[line.paths[0]]]] if line.paths else None for line in lines]


def _splits(listing: Listing, split_of: Mapping[str, str]) -> dict[str, str]:
    """The split of each patient.

    Raises:
        UserError: a patient is in two.
    """
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for study in listing.studies:
        splits[study.patient].setdefault(split_of[study.source], study.source)
    shared = [f"{patient} ({' and '.join(found.values())})" for patient, found in splits.items() if len(found) > 1]
    if shared:
        raise UserError(
            f"{len(shared)} patients are in groups of two splits: {some(shared)}. Move their lines into one group, or "
            "name no group val or test, so that patients are divided here"
        )
    return {patient: next(iter(found)) for patient, found in splits.items()}
