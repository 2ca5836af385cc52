"""Phantom patients with questions, reports and pairs of pictures: what UniMedVL tries itself on where there are no others.

A pair shows one plane of one patient in another window, or a close-up with and without what fills the lungs, all else
unchanged, so that it is known what a good edit is. It is a close-up because disease is a small part of a whole plane: there
the loss of a small autoencoder outweighs all that an edit changes. In which lung it lies is measured, and said as it is in
radiology: the patient's left is on the right of the picture. Nothing here is a model of any real report.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from raymed.data.image import WINDOWS, apply_window
from raymed.data.phantom import VERSION, PhantomSettings, diseased_body
from raymed.data.phantom_disease import DISEASES, incidental
from raymed.data.phantom_notes import KINDS, Extent, measure
from raymed.data.prepared import Prepared
from raymed.data.split import SplitSettings
from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.mixture_config import MixtureConfig
from raymed.systems.unimedvl.prepare import prepare_sequences
from raymed.systems.unimedvl.prepare_settings import SequenceSettings

log = logging.getLogger("raymed")

CONFIG = "config.yaml"
DRAWING = 2  # of these pictures and texts: others for the same settings need another number
PICTURES = ("shown", "mediastinum", "near", "near_changed")  # of a patient that lines name
HEIGHTS = (0.35, 0.5, 0.65)  # of the planes that are looked at for the one with most disease
ASKED = {"report": "Write a report.", "which": "Which lung is affected?", "is": "Is there pneumonia?"}
GROUPS = {  # class of each group, and its weight
    "questions": ("SftJSONLIterableDataset_Ver1", 4),
    "texts": ("SftJSONLIterableDataset_TextOnly", 1),
    "windows": ("MedicalImageEditingIterableDataset_ver1", 4),
    "lesions": ("CounterfactualMedicalIterableDataset_ver1", 6),
    "drawings": ("T2IIterableDataset_Ver1", 1),
}
CLOSE_UP = 3 / 8  # side of a close-up, as a share of the plane's
# For the tiny network: ViT patches of 14 pixels, at most 4 a side; latent tokens of 8 pixels, of which 4 a side will do.
VIT_ARGUMENTS = {"image_stride": 14, "max_image_size": 56, "min_image_size": 56}
VAE_ARGUMENTS = {"image_stride": 8, "max_image_size": 32, "min_image_size": 32}


@dataclass(frozen=True, eq=False)
class Phantom:
    """One plane of a patient.

    Attributes:
        label: its class.
        shown: in the lung window, as it is; uint8 [size, size].
        mediastinum: the same in the mediastinal window.
        changed: in the lung window, without its disease, or with one where it has none.
        near, near_changed: close-ups of both, where most is changed.
        change: class of the disease that comes or goes.
        extent: where it is in this plane.
    """

    label: str
    shown: np.ndarray
    mediastinum: np.ndarray
    changed: np.ndarray
    near: np.ndarray
    near_changed: np.ndarray
    change: str
    extent: Extent


def phantom(settings: PhantomSettings, number: int) -> Phantom:
    """Patient `number`: a function of the settings but `patients` and `slices`."""
    rng = np.random.default_rng((settings.seed, number))
    label, body, disease = diseased_body(settings, number, rng)
    others = incidental(rng, settings.difficulty)
    change = label
    if label not in KINDS:
        change = list(KINDS)[int(rng.integers(len(KINDS)))]
        disease = DISEASES[change](rng, body, settings.difficulty)
    extents = [measure(body, disease, [z]) for z in HEIGHTS]
    most = int(np.argmax([extent.share for extent in extents]))
    nothing = DISEASES["normal"](rng, body, settings.difficulty)
    grain = int(rng.integers(2**31))

    def plane(finding: Any) -> np.ndarray:
        return body.hounsfield(HEIGHTS[most], [finding, *others], np.random.default_rng(grain))

    filled, clear = plane(disease), plane(nothing)
    as_it_is, other = (filled, clear) if label in KINDS else (clear, filled)
    shown, changed = (apply_window(plane, *WINDOWS["lung"]) for plane in (as_it_is, other))
    mediastinum = apply_window(as_it_is, *WINDOWS["mediastinum"])
    rows, columns = _close_up(shown, changed)
    return Phantom(label, shown, mediastinum, changed, shown[rows, columns], changed[rows, columns], change, extents[most])


def _close_up(shown: np.ndarray, changed: np.ndarray) -> tuple[slice, slice]:
    """The square in which two planes differ most."""
    side = int(len(shown) * CLOSE_UP)
    differs = np.pad(np.abs(shown.astype(np.int64) - changed).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = differs[side:, side:] - differs[:-side, side:] - differs[side:, :-side] + differs[:-side, :-side]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return slice(int(top), int(top) + side), slice(int(left), int(left) + side)


def lines(case: Phantom, number: int, side: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines about a patient, each with its group; pictures are `side` pixels wide and high."""
    name = f"phantom_{number:04d}"

    def picture(kind: str) -> dict[str, Any]:
        pixels = int(side * CLOSE_UP) if kind.startswith("near") else side
        return {"path": f"{name}_{kind}.png", "height": pixels, "width": pixels}

    def line(task: str, human: str, gpt: str, inputs: tuple[str, ...] = (), outputs: tuple[str, ...] = ()) -> dict[str, Any]:
        turns = [{"from": "human", "value": "<image>\n" * len(inputs) + human}, {"from": "gpt", "value": gpt}]
        pictures = {key: [*map(picture, kinds)] for key, kinds in (("input_img", inputs), ("output_img", outputs)) if kinds}
        return {"main_task_type": task, "patient_id": name, **pictures, "message": turns}

    kind, disease = KINDS[case.change]
    where = case.extent.side
    affected = case.label in KINDS
    short = kind.split(" with ")[0].split(" under ")[0].split(" around ")[0]
    report = f"{short} {where}: {disease}." if affected else "Clear lungs."
    which = (
        {"in the left lung": "Left.", "in the right lung": "Right.", "in both lungs": "Both."}[where]
        if affected
        else "None."
    )
    looked = ("image_understanding", "questions", ("shown",))
    for question, answer in (("report", report), ("which", which), ("is", "Yes." if affected else "No.")):
        yield looked[1], line(looked[0], ASKED[question], answer, looked[2])
    yield "texts", line("text_only", f"What is typical of {disease}?", f"{kind}.")
    yield "windows", line("image_to_image", "Show the mediastinal window.", "Done. <image>", ("shown",), ("mediastinum",))
    asked = f"Remove what is {where}." if affected else f"Add {disease} {where}."
    told = "The lungs are clear now. <image>" if affected else f"{short} {where}. <image>"
    yield "lesions", line("counterfactual_generation", asked, told, ("near",), ("near_changed",))
    yield "drawings", line("image_generation", f"A chest CT: {report}", "Here it is. <image>", (), ("shown",))


def write_phantoms(folder: Path, settings: PhantomSettings) -> Path:
    """Write pictures, a JSONL file for each group, and a configuration, whose path is returned. What is there is kept.

    Raises:
        UserError: the folder cannot be written to.
    """
    if (folder / CONFIG).exists():
        return folder / CONFIG
    draft = folder.with_name(f".{folder.name}")  # the folder is whole or not there
    try:
        shutil.rmtree(draft, ignore_errors=True)
        (draft / "images").mkdir(parents=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy and PIL let go of the interpreter lock while they work
            cases = list(pool.map(partial(_write_patient, draft / "images", settings), range(settings.patients)))
        for group in GROUPS:
            own = [line for case in cases for name, line in case if name == group]
            (draft / f"{group}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
        (draft / CONFIG).write_text(yaml.safe_dump(_config(), sort_keys=False))
        draft.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write phantoms to {folder}: {error}") from error
    return folder / CONFIG


def phantom_config(storage: Folder, settings: PhantomSettings) -> Path:
    """The configuration of the embedded patients, which are made under the storage where they are not there."""
    storage.check_writable()
    source = _source(storage, settings)
    log.info("phantom patients with questions and pairs: %d of them in %s", settings.patients, source)
    return write_phantoms(source, settings)


def prepare_phantoms(storage: Folder, settings: PhantomSettings) -> Prepared:
    """Make and prepare the embedded patients under the storage; what is there already is kept."""
    config = MixtureConfig.read(phantom_config(storage, settings))
    preparing = SequenceSettings(split=SplitSettings("4/1/1", folds=0))
    return prepare_sequences(config, storage.child(f"phantom-sequences-{_digest(settings)}").uri, preparing).prepared


def unseen_picture(storage: Folder, settings: PhantomSettings, prepared: Prepared) -> Path:
    """The file with the plane of an embedded patient that no training sees."""
    patients = prepared.columns(prepared.rows("test"), ["patient"])["patient"]
    return _source(storage, settings) / "images" / f"{min(patients)}_shown.png"


def _source(storage: Folder, settings: PhantomSettings) -> Path:
    scratch = storage if storage.is_local else Folder.at(Path.home() / ".raymed")
    return Path(scratch.path) / f"phantom-pairs-{_digest(settings)}"


def _digest(settings: PhantomSettings) -> str:
    return hashlib.blake2b(repr((VERSION, DRAWING, settings)).encode(), digest_size=3).hexdigest()


def _write_patient(folder: Path, settings: PhantomSettings, number: int) -> list[tuple[str, dict[str, Any]]]:
    case = phantom(settings, number)
    for kind in PICTURES:
        Image.fromarray(getattr(case, kind)).save(folder / f"phantom_{number:04d}_{kind}.png")
    return list(lines(case, number, settings.size))


def _config() -> dict[str, Any]:
    infos: dict[str, Any] = {}
    classes: dict[str, Any] = {}
    for group, (class_key, weight) in GROUPS.items():
        infos[class_key] = {f"phantom_{group}": {"data_dir": "images", "jsonl_path": f"{group}.jsonl"}}
        classes[class_key] = {
            "dataset_names": {group: [f"phantom_{group}"]},
            "image_transform_args": dict(VAE_ARGUMENTS),
            "vit_image_transform_args": dict(VIT_ARGUMENTS),
            "weight": {group: weight},
            "num_used_data": {group: [0, 0]},
            "cfg_dropout": True,
        }
    return {"dataset_info": infos, **classes}
