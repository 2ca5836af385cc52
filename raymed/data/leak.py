"""The leak guard: near-duplicate pictures of different patients, and the proof that the splits share nothing.

A re-encoded or resized copy keeps the signs of its low spatial frequencies, so it is found by a perceptual hash and then
confirmed on the pixels: pictures of the same body part look alike at first sight (two chest X-rays correlate up to 0.97),
but not in their detail (at most 0.83, copies at least 0.99), which is what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from raymed.data.split import SPLITS, split_of_rows
from raymed.errors import UserError

THUMBNAIL = 64  # pixels
FLAT = 2.0  # grey levels: below this standard deviation a picture has no structure to recognise
BANDS = 16
DISTANCE = BANDS - 1  # bits of 256: the most at which one of the bands is sure to be equal
DETAIL = 4.0  # pixels of a thumbnail: what a Gaussian of this width leaves over is detail
SAME = 0.95  # correlation of the details of two thumbnails
CHUNK = 2048  # pairs confirmed at a time, which bounds the memory
NAMED = 10


@dataclass(frozen=True)
class GuardSummary:
    """What the guard proved, counted per split: nothing below is in two of them."""

    fold: int | None
    patients: dict[str, int]
    studies: dict[str, int]
    groups: dict[str, int]
    slices: dict[str, int]

    def __str__(self) -> str:
        where = "stored splits" if self.fold is None else f"fold {self.fold}"
        counts = ", ".join(f"{split} {self.patients[split]} patients / {self.slices[split]} slices" for split in SPLITS)
        return f"leak guard ({where}): no patient, study, near-duplicate group or picture is in two splits; {counts}"


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


def guard(index: pa.Table, fold: int | None = None) -> GuardSummary:
    """Prove that train, val and test share no patient, study, near-duplicate group or picture.

    Flat pictures (an all-black slice beyond the body) are alike without being copies; they are not compared.

    Args:
        index: rows in the schema INDEX.
        fold: None for the stored splits, or the fold that is validated on.

    Raises:
        UserError: something is in two splits; the message names it and its patients.
    """
    split = split_of_rows(index, fold)
    inside = split >= 0
    counts: dict[str, dict[str, int]] = {}
    for key, words in (
        ("patient", "the patient"),
        ("study", "the study"),
        ("group", "the near-duplicate group"),
        ("digest", "identical pixels"),
    ):
        compared = inside & pc.is_valid(index["hash"]).to_numpy() if key == "digest" else inside
        codes = pc.dictionary_encode(index[key]).combine_chunks().indices.to_numpy(zero_copy_only=False)
        codes, places = codes[compared], split[compared]
        seen = np.zeros((int(codes.max(initial=-1)) + 1, len(SPLITS)), dtype=bool)
        seen[codes, places] = True
        if (leaks := np.flatnonzero(seen.sum(axis=1) > 1)).size:
            rows = np.flatnonzero(compared)[np.isin(codes, leaks)]
            raise UserError(_leak(index, rows, split, words))
        counts[key] = dict(zip(SPLITS, seen.sum(axis=0).tolist(), strict=True))
    slices = dict(zip(SPLITS, np.bincount(split[inside], minlength=len(SPLITS)).tolist(), strict=True))
    return GuardSummary(fold, counts["patient"], counts["study"], counts["group"], slices)


def _candidates(codes: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Pairs [n, 2] of rows of different owners whose codes, uint8 [rows, 32], differ in at most `DISTANCE` bits."""
    words = np.ascontiguousarray(codes).view(np.uint64)
    # Neighbouring frequencies go together; mixed bands are told apart better, so that fewer rows fall into one bucket.
    mixed = np.random.default_rng(0).permutation(256)
    bands = np.ascontiguousarray(np.packbits(np.unpackbits(codes, axis=1)[:, mixed], axis=1)).view(np.uint16)
    found: list[np.ndarray] = [np.empty((0, 2), dtype=np.int64)]
    for band in bands.T:
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
    return np.unique(np.concatenate(found), axis=0)


def _details(thumbnails: np.ndarray) -> np.ndarray:
    """Unit vectors [n, 64 * 64] of what is left of thumbnails without their coarse shape."""
    grey = thumbnails.astype(np.float32)
    detail = (grey - gaussian_filter(grey, sigma=(0, DETAIL, DETAIL))).reshape(len(grey), -1)
    return detail / np.maximum(np.linalg.norm(detail, axis=1, keepdims=True), 1e-6)


def _leak(index: pa.Table, rows: np.ndarray, split: np.ndarray, words: str) -> str:
    patients = np.asarray(index["patient"].take(pa.array(rows)).to_pylist(), dtype=object)
    named = {f"{patient} ({SPLITS[split[row]]})": None for patient, row in zip(patients, rows, strict=True)}
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return (
        f"leak: {words} is in more than one split: {', '.join(list(named)[:NAMED])}{more}. "
        "Correct the patient ids of the source, or prepare the data again into an empty folder"
    )
