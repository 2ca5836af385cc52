"""Pictures to be looked at, in parts: each part becomes one shard of features, and is decoded where it is computed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from raymed.data.image import ImageSettings
from raymed.data.labels import LabelTable
from raymed.data.places import Places
from raymed.data.prepared import Prepared
from raymed.data.record import records_from
from raymed.data.sources import Listing, Refusal, Slice, SourceSettings, Study, list_source, load_study, recognise
from raymed.data.sources.dicom import is_dicom
from raymed.data.sources.folders import is_picture
from raymed.data.sources.listing import make_study, some, sorted_studies
from raymed.data.sources.paths import Tree, walk
from raymed.data.survey import OWN_LABELS

PICTURES = 128  # of a part: 77 MB of colour pictures at 448 pixels
BY_PATIENT = {2, 3}  # folders above a picture in <class>/<patient>/ and <class>/<patient>/<study>/
Decoded = list[np.ndarray | Refusal]
Map = Callable[..., Iterable[Any]]
"""`map`, or the `map` of a pool of threads."""


@dataclass(frozen=True)
class Part:
    """Some pictures.

    Attributes:
        digest: names their content.
        rows: what is known of each, in the schema PICTURE.
        load: decodes them in this order, file by file by the given `map`: uint8 [size, size, 1 or 3], or why a picture
            cannot be used.
    """

    digest: str
    rows: list[dict[str, Any]]
    load: Callable[[Map], Decoded]


def prepared_parts(prepared: Prepared, split: str) -> list[Part]:
    """The pictures of a split of prepared data.

    Raises:
        UserError: there is no such split.
    """
    rows = prepared.rows(split)
    names = prepared.labels.names
    columns = prepared.columns(rows, ["id", "patient", "study", "position", "label", "source", "digest"])
    known = [
        dict(zip(columns, values, strict=True)) | {"path": None, "frame": None}
        for values in zip(*(column.tolist() for column in columns.values()), strict=True)
    ]
    pixels = [row.pop("digest") for row in known]
    for row in known:
        row["label"] = names[row["label"]] if row["label"] >= 0 else None
    sizes = [(f"{patient}/{study}", len(list(group))) for (patient, study), group in groupby(known, _study)]
    firsts = np.cumsum([0, *(size for _, size in sizes)])
    parts = []
    for pieces in packed(sizes):
        start, stop = firsts[pieces[0].number] + pieces[0].start, firsts[pieces[-1].number] + pieces[-1].stop
        some = known[start:stop]
        digest = _digest(repr(pixels[start:stop]), some)
        parts.append(Part(digest, some, partial(_read, prepared.places(rows[start:stop]))))
    return parts


def _study(row: dict[str, Any]) -> tuple[str, str]:
    return row["patient"], row["study"]


def source_listing(path: Path, settings: SourceSettings) -> Listing:
    """The pictures of a folder or file, as `list_source` reads them.

    A folder of pictures that are not laid out by patients is taken as in the guide to retrieval: all of them, at any depth,
    each labelled with the folder that it lies in.

    Raises:
        UserError: as `list_source`.
    """
    if settings.labelled and _untold(path, settings):
        tree = walk(path)
        pictures = [name for name in tree.files if is_picture(Path(name))]
        if not _by_patient(pictures):
            return _labelled_by_folder(path, tree, pictures)
    return list_source(path, settings)


def asked_listing(path: Path, settings: SourceSettings) -> Listing:
    """The pictures of a folder or file that somebody asks about, whose labels are not looked at.

    Folders of patients in folders of classes are known as such; a single picture's name says nothing of its patient.

    Raises:
        UserError: as `list_source`.
    """
    in_classes = _untold(path, settings) and _by_patient([name for name in walk(path).files if is_picture(Path(name))])
    listing = list_source(path, replace(settings, labelled=settings.labelled and in_classes))
    alone = path.is_file() and listing.format == "folders" and not settings.patient_regex
    return replace(listing, patients_known=False) if alone else listing


def _untold(path: Path, settings: SourceSettings) -> bool:
    """Whether it is a folder of pictures whose layout must speak for itself."""
    told = settings.format != "auto" or settings.patients or settings.patient_regex
    return path.is_dir() and not told and recognise(path) == "folders"


def _by_patient(pictures: list[str]) -> bool:
    return {name.count("/") for name in pictures} <= BY_PATIENT


def _labelled_by_folder(root: Path, tree: Tree, pictures: list[str]) -> Listing:
    studies = []
    for name in pictures:
        folder = PurePosixPath(name).parent.name
        slices = [Slice(name, name, None, 0, name)]
        studies.append(make_study(name, name, folder or None, root.name, slices, tree.files))
    notes = ["no patients are known: every picture counts as a patient of its own"]
    if others := sorted(tree.files.keys() - set(pictures)):
        notes.append(f"{len(others)} files that are not pictures were left out: {some(others)}")
    return Listing(root, "classes", sorted_studies(studies), tree.refusals, tuple(notes), patients_known=False)


def source_parts(listing: Listing, labels: str, image: ImageSettings) -> tuple[list[Part], dict[str, int]]:
    """The pictures of a source, and how many were left out because their label is on the label table's ignore list.

    Args:
        labels: a label table's file or name, or ``source``: labels as the source writes them.

    Raises:
        UserError: labels that the table does not know.
    """
    table = None if labels == OWN_LABELS else LabelTable.open(labels)
    written: Counter[str] = Counter()
    for study in listing.studies:
        written[study.label or ""] += len(study.slices)
    if table is not None:
        table.check({label: count for label, count in written.items() if label})
    known = {label: _known_as(table, label) for label in written}
    ignored = {label: written[label] for label, name in known.items() if label and name is None}
    studies = [study for study in listing.studies if not study.label or study.label not in ignored]
    sizes = [(f"{study.patient}/{study.study}", len(study.slices)) for study in studies]
    divided = [
        [replace(studies[each.number], slices=studies[each.number].slices[each.start : each.stop]) for each in pieces]
        for pieces in packed(sizes)
    ]
    return [_part(listing, some, known, image) for some in divided], ignored


def _known_as(table: LabelTable | None, label: str) -> str | None:
    if table is None or not label:
        return label or None
    index = table.index_of(label)
    return None if index is None else table.names[index]


@dataclass(frozen=True)
class Piece:
    """Pictures of one study, `start` to `stop`; `number` is the study's."""

    number: int
    start: int
    stop: int


def packed(studies: Sequence[tuple[str, int]]) -> Iterator[list[Piece]]:
    """Studies, by name and number of pictures, put together to at most `PICTURES`; only larger ones are cut.

    Where a part ends is told by its last study's name alone (content-defined chunking, Muthitacharoen et al. 2001,
    doi:10.1145/502034.502052), or by a full part: a study that is added or taken away changes its own part, and those up to
    the next such name.
    """
    pieces: list[Piece] = []
    room = PICTURES
    for number, (name, pictures) in enumerate(studies):
        for start in range(0, pictures, PICTURES):
            piece = Piece(number, start, min(start + PICTURES, pictures))
            if piece.stop - piece.start > room:
                yield pieces
                pieces, room = [], PICTURES
            pieces.append(piece)
            room -= piece.stop - piece.start
        chance = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) / 2**32
        if pieces and chance * PICTURES < 2 * pictures:  # half as many as a full part, on average
            yield pieces
            pieces, room = [], PICTURES
    if pieces:
        yield pieces


def _part(listing: Listing, studies: list[Study], known: dict[str, str | None], image: ImageSettings) -> Part:
    rows = [
        {
            "id": piece.id,
            "patient": study.patient if listing.patients_known else None,
            "study": study.study,
            "position": piece.position,
            "label": known[study.label or ""],
            "source": study.source,
            "path": piece.path,
            "frame": piece.frame,
        }
        for study in studies
        for piece in study.slices
    ]
    fingerprints = repr([study.fingerprint for study in studies])
    return Part(_digest(fingerprints, rows), rows, partial(_decode, listing.root, studies, image))


def _digest(content: str, rows: list[dict[str, Any]]) -> str:
    return hashlib.blake2b(f"{content}{rows}".encode(), digest_size=12).hexdigest()


def _read(places: Places, _: Map) -> Decoded:
    return [record.images[0].pixels for record in records_from(places.read())]


def _decode(root: Path, studies: list[Study], image: ImageSettings, mapped: Map) -> Decoded:
    files = [  # those of a series together, because its slices prove their units together
        replace(study, slices=tuple(slices))
        for study in studies
        for _, slices in groupby(study.slices, key=lambda piece: "" if is_dicom(root / piece.path) else piece.path)
    ]
    loaded = mapped(lambda file: load_study(root, file, image), files)
    return [result for _, result in chain.from_iterable(loaded)]
