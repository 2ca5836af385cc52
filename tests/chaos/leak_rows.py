"""The row about leaks: planted among 10,000 pictures, and looked for as `prepare` and every trial look for them."""

from __future__ import annotations

import io
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as Picture
from scipy.ndimage import gaussian_filter

from raymed.data.duplicates import grouped, require_distinct
from raymed.data.leak import guard
from raymed.data.record import INDEX, Image
from raymed.data.shards import SHARDS, Content, _Shard
from raymed.data.sources import Slice, Study
from raymed.errors import UserError
from raymed.storage.folder import Folder

PICTURES, SLICES, SIDE = 10_000, 10, 64
LIMIT = 10.0  # seconds

Rows = list[dict[str, Any]]


def leaks(tries: int, seed: int, folder: Path) -> str:
    """A shared patient, a re-encoded picture and a renamed study, in two splits each; `tries` times."""
    made, draw, storage = _pictures(seed), random.Random(seed), Folder.at(folder)
    rows = _indexed(made, 0, "part.parquet", storage)
    slowest, groups = _search(rows, storage)
    assert groups == [], f"false alarms: {groups}"
    of = {split: [row for row in rows if row["split"] == split] for split in ("train", "test")}
    for attempt in range(tries):
        train, test = draw.choice(of["train"]), draw.choice(of["test"])
        shared = [row | {"patient": train["patient"]} if row is test else row for row in rows]

        copy = _reencoded(made[int(train["id"])], draw.randrange(50, 95))
        (written,) = _indexed(copy[None], int(test["id"]), f"copy-{attempt}.parquet", storage)
        reencoded = [written if row is test else row for row in rows]

        study = [row for row in rows if row["study"] == train["study"]]
        name = {"patient": "renamed", "study": "renamed", "group": "renamed", "split": "test"}
        renamed = rows + [row | name | {"id": f"renamed-{row['id']}"} for row in study]

        for planted, words in (
            (shared, "the patient is in more than one split"),
            (reencoded, "near-duplicate group is in more than one split"),
            (renamed, "identical pixels belong to two patients"),
        ):
            started = time.monotonic()
            with pytest.raises(UserError, match=words) as error:
                _search(planted, storage)
            assert str(train["patient"]) in str(error.value)
            slowest = max(slowest, time.monotonic() - started)
    assert slowest < LIMIT, f"{slowest:.1f} s"
    return f"{3 * tries} of {3 * tries} found among {PICTURES}, false alarms 0 on the clean set, {slowest:.1f} s at most"


def _search(rows: Rows, folder: Folder) -> tuple[float, list[list[str]]]:
    """Seconds of a search that finds nothing, and the patients that share near-duplicates."""
    started = time.monotonic()
    index = pa.Table.from_pylist(rows, schema=INDEX)
    require_distinct(index)
    index, groups = grouped(index, folder, "group")
    guard(index)
    return time.monotonic() - started, groups


def _pictures(seed: int) -> np.ndarray:
    """Pictures with a pattern of their own, uint8 [pictures, side, side]."""
    noise = np.random.default_rng(seed).normal(size=(PICTURES, SIDE, SIDE)).astype(np.float32)
    return np.clip(128 + 160 * gaussian_filter(noise, (0, 2, 2)), 0, 255).astype(np.uint8)


def _reencoded(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Picture.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Picture.open(file))


def _indexed(pixels: np.ndarray, first: int, name: str, folder: Folder) -> Rows:
    """Write pictures as a shard; their index rows, ten slices a patient, the patients in train, val and test in turn."""
    shard = _Shard(name)
    for number, picture in enumerate(pixels, first):
        patient = number // SLICES
        piece = Slice(str(number), "", None, number % SLICES, str(number))
        study = Study(f"patient-{patient}", f"study-{patient}", "0", "made", (piece,), "")
        shard.add(study, piece, patient % 4, Content((Image("input", 0, picture[..., None]),), ()))
    content, outcome = shard.close()
    assert content is not None
    folder.write(f"{SHARDS}/{name}", content.to_pybytes())
    rows: Rows = outcome.select(INDEX.names).to_pylist()
    return [row | {"split": ("train", "val", "test")[int(row["id"]) // SLICES % 3]} for row in rows]
