"""Reports on phantom patients, which only the picture can decide: class, side, height and extent of a disease.

Each patient is a CT volume with a mask of the disease, and a line of a CSV; a file of questions goes with it. The report is
measured on the slice that is chosen by the mask. They are no model of any real report.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np

from raymed.data.image import ImageSettings
from raymed.data.phantom import VERSION, PhantomSettings, diseased_body, heights
from raymed.data.phantom_anatomy import Finding, Plane
from raymed.data.phantom_disease import incidental
from raymed.data.phantom_notes import INVOLVED, KINDS, LEVELS, Extent, measure
from raymed.data.prepared import Prepared
from raymed.data.split import SplitSettings
from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.radfm import WHOLE
from raymed.systems.mamba_vlm.report_files import ReportFiles
from raymed.systems.mamba_vlm.report_settings import ReportSettings
from raymed.systems.mamba_vlm.reports import prepare_reports

log = logging.getLogger("raymed")

REPORTS_VERSION = 1  # of what is drawn and said: raise it with every change
SETTINGS = ReportSettings(image=ImageSettings(size=64), normalize="window", split=SplitSettings("70/15/15", folds=0))
PROMPTS = ("Write the findings of this CT.", "What does this slice of a chest CT show?", "Describe this image.")
CLEAR = "Both lungs are clear. There is no sign of pneumonia."
EXTENTS = ((0.17, "a small part"), (0.28, "a moderate part"), (1.01, "a large part"))  # below a share of the slice's lungs
MUCH = 0.25  # of the largest slice
BAND = 0.12  # half the height of a confined disease, in lungs
FIELD, THICKNESS = 360.0, 30.0  # mm


@dataclass(frozen=True, eq=False)
class PhantomReport:
    """One patient.

    Attributes:
        volume: Hounsfield units, int16 [slices, size, size], from the apex to the base as shown.
        mask: where the disease is, bool of the same shape; None of a normal patient.
        answer: what is reported.
    """

    volume: np.ndarray
    mask: np.ndarray | None
    answer: str


def phantom_report(settings: PhantomSettings, number: int) -> PhantomReport:
    """Patient `number`: a function of the settings but `patients`."""
    rng = np.random.default_rng((settings.seed, number))
    label, body, disease = diseased_body(settings, number, rng)
    at = heights(int(rng.integers(settings.slices[0], settings.slices[1] + 1)))
    planes = [body.plane(z) for z in at]
    if label in ("viral", "pneumocystis"):  # else they are nearly always on both sides, and at all heights
        disease = _confined(disease, planes, np.random.default_rng((settings.seed, number, 2)))
    findings = [disease, *incidental(rng, settings.difficulty)]
    volume = np.stack([body.hounsfield(z, findings, rng) for z in at]).round().clip(-1024, 3071).astype(np.int16)
    if label not in KINDS:
        return PhantomReport(volume, None, CLEAR)
    filled = np.stack([_involved(disease, plane) for plane in planes])
    largest = int(filled.sum(axis=(1, 2)).argmax())
    answer = report(label, measure(body, disease, [at[largest]]), at[largest])
    return PhantomReport(volume, filled.repeat(2, axis=1).repeat(2, axis=2), answer)


def report(label: str, extent: Extent, height: float) -> str:
    """What is said of a slice.

    Args:
        height: of the slice, from 0 at the apex to 1 at the base.
    """
    kind, name = KINDS[label]
    part = next(words for share, words in EXTENTS if extent.share < share)
    return f"{kind} {extent.side}, {LEVELS[min(int(height * 3), 2)]} zone; {part} of the lungs. This fits {name}."


def write_reports(folder: Path, settings: PhantomSettings) -> Path:
    """Write volumes and masks as NIfTI, ``prompts.json`` and, last, ``reports.csv``, whose path is returned; files that are
    there stay.

    Raises:
        UserError: the folder cannot be written to.
    """
    table = folder / "reports.csv"
    if table.exists():
        return table
    try:
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(2) as pool:  # numpy and gzip let go of the interpreter lock
            lines = list(pool.map(lambda number: _write_patient(folder, settings, number), range(settings.patients)))
        (folder / "prompts.json").write_text(json.dumps({"caption_prompt": PROMPTS}))
        Folder.at(folder).write("reports.csv", "\n".join(["image_path,question,answer,mask_path", *lines, ""]).encode())
    except OSError as error:
        raise UserError(f"cannot write phantoms to {folder}: {error}") from error
    return table


def prepare_phantom_reports(storage: Folder, phantom: PhantomSettings, settings: ReportSettings = SETTINGS) -> Prepared:
    """Make and prepare the embedded patients with reports under the storage; what is there already is kept."""
    versions = VERSION, REPORTS_VERSION
    made = hashlib.blake2b(repr((versions, phantom)).encode(), digest_size=3).hexdigest()
    described = hashlib.blake2b(repr((versions, phantom, settings)).encode(), digest_size=3).hexdigest()
    scratch = storage if storage.is_local else Folder.at(Path.home() / ".raymed")
    source = Path(scratch.path) / f"phantom-reports-{made}"
    log.info("phantom patients with reports: %d of them in %s", phantom.patients, source)
    files = ReportFiles({WHOLE: write_reports(source, phantom)})
    settings = replace(settings, prompts=str(source / "prompts.json"))
    return prepare_reports(files, f"{storage.uri}/reports-{described}", settings).prepared


def _involved(disease: Finding, plane: Plane) -> np.ndarray:
    """Where a disease counts: bool, at half resolution."""
    return (plane.lung > 0.5) & (disease(plane)[0] > INVOLVED)


def _confined(disease: Finding, planes: Sequence[Plane], rng: np.random.Generator) -> Finding:
    """A disease in one lung or both, around one of the heights at which there is much of it."""
    side = int(rng.integers(-1, 2))  # -1 the right lung, 0 both
    sizes = np.array([np.count_nonzero(_involved(disease, plane) & (plane.x * side >= 0)) for plane in planes])
    middle = planes[rng.choice(np.flatnonzero(sizes >= MUCH * sizes.max()))].z

    def confined(plane: Plane) -> tuple[np.ndarray, np.ndarray]:
        there = (plane.x * side >= 0) & (abs(plane.z - middle) <= BAND)
        filled, free = disease(plane)
        return filled * there, free * there

    return confined


def _write_patient(folder: Path, settings: PhantomSettings, number: int) -> str:
    """The patient's line of the CSV."""
    patient = phantom_report(settings, number)
    case = f"phantom_{number:04d}_20260101"
    image, mask = f"images/{case}_0000.nii.gz", f"masks/{case}.nii.gz" if patient.mask is not None else ""
    _save(folder / image, patient.volume)
    if patient.mask is not None:
        _save(folder / mask, patient.mask.astype(np.uint8))
    return f'{image},,"{patient.answer}",{mask}'


def _save(path: Path, shown: np.ndarray) -> None:
    """Slices from the apex to the base, as shown -> a NIfTI file along left, back and head; whole, or not there."""
    stored = np.transpose(shown[::-1], (2, 1, 0))
    pixel = FIELD / shown.shape[2]
    draft = path.with_name(f".{path.name}")
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([-pixel, -pixel, THICKNESS, 1.0])), draft)
    draft.rename(path)
