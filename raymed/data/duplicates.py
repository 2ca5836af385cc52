"""Pictures that two patients share: identical ones, and near-duplicates (re-encoded or resized copies).

A copy keeps the signs of its low spatial frequencies, so it is found by a perceptual hash and then confirmed on the
pixels: pictures of the same body part look alike at first sight (two chest X-rays correlate up to 0.97), but not in their
detail (at most 0.83, copies at least 0.99), which is what is compared.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from raymed.data.places import Places
from raymed.data.record import INDEX, input_pictures, records_from
from raymed.errors import UserError
from raymed.storage.folder import Folder

log = logging.getLogger("raymed")

LAYOUT = ["shard", "row_group", "row"]
THUMBNAIL = 64  # pixels
FLAT = 2.0  # grey levels: below this standard deviation a picture has no structure to recognise
BANDS = 16
DISTANCE = BANDS - 1  # bits of 256: the most at which one of the bands is sure to be equal
DETAIL = 4.0  # pixels of a thumbnail: what a Gaussian of this width leaves over is detail
SAME = 0.95  # correlation of the details of two thumbnails
CHUNK = 2048  # pairs confirmed at a time, and
READ = 64  # records read at a time, which bounds the memory
NAMED = 10
MANY = 100_000  # pictures, which take a while to compare


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Grey uint8 [64, 64] of uint8 [height, width, channels], each pixel the mean of its area."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("L")
    return np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def perceptual_hash(pixels: np.ndarray) -> bytes | None:
    """256-bit DCT hash of uint8 [height, width, channels]; None for a picture with almost no structure.

    The signs of the 16 x 16 lowest frequencies (without the constant ones) against their median: C. Zauner, Implementation
    and Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2.1, there with 8 x 8.
    """
    small = thumbnail(pixels).astype(np.float32)
    if small.std() < FLAT:
        return None
    low = dctn(small, norm="ortho")[1:17, 1:17]
    return np.packbits(low > np.median(low)).tobytes()


def near_duplicates(
    hashes: Sequence[bytes | None], patients: Sequence[str], thumbnails: Callable[[np.ndarray], np.ndarray]
) -> list[tuple[int, int]]:
    """Pairs of rows (first < second) of different patients that show the same picture.

    Args:
        hashes: perceptual hash of each row.
        patients: patient of each row.
        thumbnails: row numbers int64 [n] -> their `thumbnail`s, uint8 [n, 64, 64]; asked for candidate rows only.
    """
    rows = np.array([row for row, value in enumerate(hashes) if value is not None], dtype=np.int64)
    if len(rows) < 2:
        return []
    codes = np.frombuffer(b"".join(value for value in hashes if value is not None), dtype=np.uint8).reshape(-1, 32)
    owners = np.unique(np.asarray(patients, dtype=object)[rows].astype(str), return_inverse=True)[1]
    candidates = _candidates(codes, owners)
    confirmed: list[np.ndarray] = []
    for start in range(0, len(candidates), CHUNK):
        pairs = candidates[start : start + CHUNK]
        needed, places = np.unique(pairs, return_inverse=True)
        details = _details(thumbnails(rows[needed]))
        first, second = places.reshape(-1, 2).T
        confirmed.append(pairs[np.einsum("nd,nd->n", details[first], details[second]) >= SAME])
    return [(int(a), int(b)) for pairs in confirmed for a, b in rows[pairs]]


def require_distinct(index: pa.Table, patients_known: bool = True) -> None:
    """Make sure that no two patients share identical pixels; flat pictures (an all-black slice) are not compared.

    Where patients are not known, copies within a class may be of one patient, and only copies in two classes are wrong.

    Raises:
        UserError: names the patients and their pictures.
    """
    pictures = input_pictures(index)
    structured = pictures.filter(pc.is_valid(pictures["hash"]))
    columns = [structured["digest"], *index.select(["patient", "id", "label"]).take(structured["row"]).columns]
    owners: dict[bytes, dict[str, str]] = defaultdict(dict)
    labels: dict[bytes, set[int | None]] = defaultdict(set)
    for digest, patient, name, label in zip(*(column.to_pylist() for column in columns), strict=True):
        owners[digest].setdefault(patient, name)
        labels[digest].add(label)
    shared = [
        patients for digest, patients in owners.items() if len(patients) > 1 and (patients_known or len(labels[digest]) > 1)
    ]
    if shared:
        named = "; ".join(
            " = ".join(f"{patient} ({name})" for patient, name in sorted(patients.items()))
            for patients in sorted(shared, key=lambda patients: min(patients.items()))[:NAMED]
        )
        if not patients_known:
            raise UserError(f"{len(shared)} pictures stand in two classes: {named}. Remove the wrong copy")
        raise UserError(
            f"{len(shared)} pictures with identical pixels belong to two patients: {named}. "
            "Remove the copy, or give both pictures the same patient id"
        )


def grouped(index: pa.Table, folder: Folder, mode: str) -> tuple[pa.Table, list[list[str]]]:
    """The index with its `group` column filled in, and the groups of more than one patient.

    Args:
        index: rows in the schema INDEX, their shards written under `folder`.
        mode: group, warn or error, as in `PrepareSettings.near_duplicates`.

    Raises:
        UserError: there are near-duplicates and `mode` is error.
    """
    pictures = input_pictures(index)
    row_of, place_of = pictures["row"].to_numpy(), pictures["place"].to_numpy()
    if len(row_of) >= MANY:
        log.info("comparing %d pictures of different patients with one another", len(row_of))

    def thumbnails(wanted: np.ndarray) -> np.ndarray:
        found = np.empty((len(wanted), THUMBNAIL, THUMBNAIL), dtype=np.uint8)
        order = np.argsort(row_of[wanted], kind="stable")
        for some in (order[start : start + READ] for start in range(0, len(order), READ)):
            rows, at = np.unique(row_of[wanted[some]], return_inverse=True)
            records = records_from(Places.of(folder, index, rows).read())
            inputs = [[image for image in record.images if image.role == "input"] for record in records]
            for target, row, place in zip(some, at, place_of[wanted[some]], strict=True):
                found[target] = thumbnail(inputs[row][place].pixels)
        return found

    patients, owners = np.unique(np.array(index["patient"].to_pylist()), return_inverse=True)
    ids = index["id"]
    pairs = [
        (int(row_of[a]), int(row_of[b]))
        for a, b in near_duplicates(
            pictures["hash"].to_pylist(), index["patient"].take(pictures["row"]).to_pylist(), thumbnails
        )
    ]
    if pairs and mode == "error":
        named = "; ".join(f"{ids[a]} and {ids[b]}" for a, b in pairs[:NAMED])
        raise UserError(
            f"{len(pairs)} near-duplicate pictures of different patients: {named}. "
            "Remove the copies, or use near_duplicates=group to keep those patients in one split"
        )
    links = owners[np.array(pairs, dtype=np.int64).reshape(-1, 2)]
    graph = coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(len(patients), len(patients)))
    component = connected_components(graph, directed=False)[1]
    first = np.unique(component, return_index=True)[1]  # patients are sorted: the first names the group
    members = [patients[component == number].tolist() for number in np.flatnonzero(np.bincount(component) > 1)]
    if members:
        fate = "kept in one split" if mode == "group" else "they may stand in different splits"
        named = "; ".join(" = ".join(names) for names in members[:NAMED])
        log.warning("%d near-duplicate pictures; patients that share some (%s): %s", len(pairs), fate, named)
    group = patients[first[component]] if mode == "group" else patients
    place = INDEX.get_field_index("group")
    return index.set_column(place, INDEX.field(place), pa.array(group[owners].tolist(), INDEX.field(place).type)), sorted(
        members
    )


def _candidates(codes: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Pairs [n, 2] of rows of different owners whose codes, uint8 [rows, 32], differ in at most `DISTANCE` bits."""
    words = np.ascontiguousarray(codes).view(np.uint64)
    # Neighbouring frequencies go together; mixed bands are told apart better, so that fewer rows fall into one bucket.
    mixed = np.random.default_rng(0).permutation(256)
    bands = np.ascontiguousarray(np.packbits(np.unpackbits(codes, axis=1)[:, mixed], axis=1)).view(np.uint16)
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # numpy holds no lock while it compares
        found = threads.map(lambda band: _in_band(band, words, owners), bands.T)
        return np.unique(np.concatenate(list(found)), axis=0)


def _in_band(band: np.ndarray, words: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """The pairs among rows that are equal in one band, uint16 [rows]: whoever differ in few bits are so in one of them."""
    found: list[np.ndarray] = [np.empty((0, 2), dtype=np.int64)]
    order = np.argsort(band, kind="stable")
    ordered = band[order]
    alive = np.arange(len(order))
    for step in range(1, len(order)):
        alive = alive[alive < len(order) - step]
        alive = alive[ordered[alive] == ordered[alive + step]]
        if not alive.size:
            break
        a, b = order[alive], order[alive + step]
        other = owners[a] != owners[b]
        a, b = a[other], b[other]
        near = np.bitwise_count(words[a] ^ words[b]).sum(axis=1) <= DISTANCE
        found.append(np.sort(np.stack([a[near], b[near]], axis=1), axis=1))
    return np.concatenate(found)


def _details(thumbnails: np.ndarray) -> np.ndarray:
    """Unit vectors [n, 64 * 64] of what is left of thumbnails without their coarse shape."""
    grey = thumbnails.astype(np.float32)
    detail = (grey - gaussian_filter(grey, sigma=(0, DETAIL, DETAIL))).reshape(len(grey), -1)
    return detail / np.maximum(np.linalg.norm(detail, axis=1, keepdims=True), 1e-6)
