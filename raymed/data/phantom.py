"""Synthetic lung CT patients: the data that raymed tries itself on where there are no others.

Each is a series of slices from the apex to the base of the lungs in the lung window, drawn from nothing but the seed and
the patient's number. Anatomy and disease are in the two modules beside this one.
"""

from __future__ import annotations

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from raymed.data.phantom_anatomy import Body, Finding
from raymed.data.phantom_disease import DISEASES, incidental
from raymed.errors import UserError

CLASSES = tuple(DISEASES)
MARKER = ".phantoms.json"
VERSION = 1  # of the drawing: other pictures for the same settings need another number


@dataclass(frozen=True)
class PhantomSettings:
    """The synthetic patients.

    Attributes:
        patients: how many, over all four classes in turn.
        size: side of a slice, in pixels.
        slices: fewest and most slices of a patient.
        difficulty: 0 (plain to see) to 1 (faint, small, alike, noisy).
        seed: other seeds are other patients.
    """

    patients: int = 48
    size: int = 512
    slices: tuple[int, int] = (30, 35)
    difficulty: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.patients < 1 or self.size < 32 or not 1 <= self.slices[0] <= self.slices[1]:
            raise UserError(f"{self}: needs patients >= 1, size >= 32 and slices as fewest,most")
        if not 0 <= self.difficulty <= 1:
            raise UserError(f"difficulty {self.difficulty}: must be from 0 to 1")


def phantom_patient(settings: PhantomSettings, number: int) -> tuple[str, list[np.ndarray]]:
    """Class name and slices, uint8 [size, size], of patient `number`. A function of the settings but `patients`."""
    rng = np.random.default_rng((settings.seed, number))
    label, body, disease = diseased_body(settings, number, rng)
    findings = [disease, *incidental(rng, settings.difficulty)]
    count = int(rng.integers(settings.slices[0], settings.slices[1] + 1))
    return label, [body.slice(z, findings, rng) for z in heights(count)]


def diseased_body(settings: PhantomSettings, number: int, rng: np.random.Generator) -> tuple[str, Body, Finding]:
    """Class name, anatomy and disease of patient `number`, whose generator is still untouched."""
    label = CLASSES[number % len(CLASSES)]
    body = Body(rng, settings.size, settings.difficulty)
    return label, body, DISEASES[label](rng, body, settings.difficulty)


def heights(count: int) -> list[float]:
    """Heights of a patient's slices, from 0 at the apex to 1 at the base."""
    return np.linspace(0.03, 0.97, count).tolist()


def write_phantoms(folder: Path, settings: PhantomSettings) -> None:
    """Write ``<class>/<patient>/<slice>.png`` for all patients, unless they are there already; goes on after a stop.

    Raises:
        UserError: the folder holds phantoms of other settings or other files, or cannot be written to.
    """
    marker = folder / MARKER
    unfinished, finished = (
        json.dumps({"complete": complete, "version": VERSION, **asdict(settings)}) for complete in (False, True)
    )
    if marker.exists():
        found = marker.read_text()
        if found == finished:
            return
        if found != unfinished:
            raise UserError(f"{folder} holds phantoms of other settings; remove it or choose another folder")
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds other files; choose an empty folder for the phantoms")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(unfinished)
        # numpy and PIL let go of the interpreter lock while they work
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(partial(_write_patient, folder, settings), range(settings.patients)))
        marker.write_text(finished)
    except OSError as error:
        raise UserError(f"cannot write phantoms to {folder}: {error}") from error


def _write_patient(folder: Path, settings: PhantomSettings, number: int) -> None:
    name = f"phantom_{number:04d}"
    target = folder / CLASSES[number % len(CLASSES)] / name
    if target.exists():
        return
    draft = target.with_name(f".{name}")  # a patient's folder is whole or not there
    draft.mkdir(parents=True, exist_ok=True)
    for position, pixels in enumerate(phantom_patient(settings, number)[1], start=1):
        path = draft / f"slice_{position:02d}.png"
        Image.fromarray(pixels).save(path, compress_level=1, compress_type=zlib.Z_RLE)
    draft.rename(target)
