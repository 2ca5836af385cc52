"""Notes on the phantom patients: the conversations that pretraining tries itself on where there are no others.

What they say is measured on the disease as it is drawn: in which lung it lies, how high, and how much it fills. They are
no model of any real report.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raymed.data.corpus import CorpusSettings, prepare_corpus
from raymed.data.phantom import CLASSES, VERSION, PhantomSettings, diseased_body, heights, write_phantoms
from raymed.data.phantom_anatomy import Body, Finding
from raymed.data.prepared import Prepared
from raymed.storage.folder import Folder

log = logging.getLogger("raymed")

KINDS = {
    "bacterial": ("Dense consolidation with open airways", "bacterial pneumonia"),
    "viral": ("Patches of ground glass under the pleura", "viral pneumonia"),
    "pneumocystis": ("Ground glass around the hila with small cysts", "Pneumocystis pneumonia"),
}
INVOLVED = 0.1  # share of a voxel that disease fills, from which on it counts
ONE_SIDED = 0.85
LEVELS = ("upper", "middle", "lower")
REPORT = ("Write the findings of this CT.", "Describe these slices of a chest CT.", "What do these slices show?")
CAPTION = ("Describe this slice.", "What is seen here?", "Caption this CT slice.")


@dataclass(frozen=True)
class Extent:
    """How much of the lungs disease fills.

    Attributes:
        share: of the lungs, 0..1.
        left: share of what is filled that lies in the left lung.
        levels: share of it in the upper, middle and lower third.
    """

    share: float
    left: float
    levels: tuple[float, float, float]

    @property
    def side(self) -> str:
        if self.left > ONE_SIDED:
            return "in the left lung"
        return "in the right lung" if self.left < 1 - ONE_SIDED else "in both lungs"

    @property
    def level(self) -> str:
        most = int(np.argmax(self.levels))
        return f"mostly in the {LEVELS[most]} third" if self.levels[most] > 0.5 else "from top to bottom"


def measure(body: Body, disease: Finding, at: Sequence[float]) -> Extent:
    """The extent of a disease in the planes at some heights."""
    lung, filled, left = np.zeros(len(at)), np.zeros(len(at)), 0.0
    for place, z in enumerate(at):
        plane = body.plane(z)
        involved = plane.lung * (disease(plane)[0] > INVOLVED)
        lung[place], filled[place] = plane.lung.sum(), involved.sum()
        left += float(involved[plane.x > 0].sum())  # the patient's left is on the right of the picture
    total = float(filled.sum())
    thirds = [float(filled[(low <= np.array(at)) & (np.array(at) < low + 1 / 3)].sum()) for low in (0, 1 / 3, 2 / 3)]
    parts = [third / total if total else 0.0 for third in thirds]
    return Extent(total / max(float(lung.sum()), 1.0), left / total if total else 0.5, (parts[0], parts[1], parts[2]))


def notes(settings: PhantomSettings, number: int, pictures: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The lines of conversation on patient `number`, whose slices are `pictures`, from the apex to the base."""
    rng = np.random.default_rng((settings.seed, number))
    label, body, disease = diseased_body(settings, number, rng)
    words = np.random.default_rng((settings.seed, number, 1))
    at = heights(len(pictures))
    shown = [round(share * (len(at) - 1)) for share in (0.25, 0.5, 0.75)]
    planes = [measure(body, disease, [at[place]]) for place in shown]
    whole = measure(body, disease, at[:: max(1, len(at) // 8)])
    fullest = shown[int(np.argmax([plane.share for plane in planes]))]
    one = max(planes, key=lambda plane: plane.share)

    def line(image: str | list[str] | None, *turns: str) -> dict[str, Any]:
        roles = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(turns)]
        return ({"image": image} if image else {}) | {"patient_id": f"phantom_{number:04d}", "conversations": roles}

    marks = "".join(f"Slice {place + 1}: <image>\n" for place in shown)
    asked = REPORT[int(words.integers(len(REPORT)))]
    if label in KINDS:
        kind, name = KINDS[label]
        percent = "less than 5 %" if whole.share < 0.05 else f"about {5 * round(20 * whole.share)} %"
        report = f"{kind} {whole.side}, {whole.level}; {percent} of the lungs. This fits {name}."
        caption, yes, told = f"{kind} {one.side}.", "Yes.", f"A typical picture of {name}: {kind.lower()}."
    else:
        report = "Both lungs are clear: no consolidation, no ground glass. There is no sign of pneumonia."
        caption, yes, name = "Both lungs are clear.", "No.", "a normal finding"
        told = "Clear lungs on both sides, with vessels that taper towards the pleura, are a normal finding."
    yield line([pictures[place] for place in shown], f"{marks}{asked}", report)
    yield line(pictures[fullest], f"{CAPTION[int(words.integers(len(CAPTION)))]}<image>", caption)
    yield line(
        pictures[fullest], "<image>\nIs there pneumonia?", yes, "What does the whole picture fit?", f"It fits {name}."
    )
    yield line(None, f"How does one tell {name} in a CT of the chest?", told)


def write_notes(folder: Path, settings: PhantomSettings) -> Path:
    """Write the phantom patients below ``patients``, ``notes.jsonl`` and a meta file, whose path is returned.

    Raises:
        UserError: the folder holds phantoms of other settings or other files, or cannot be written to.
    """
    write_phantoms(folder / "patients", settings)
    lines = []
    for number in range(settings.patients):
        slices = sorted((folder / "patients" / CLASSES[number % len(CLASSES)] / f"phantom_{number:04d}").glob("*.png"))
        lines += list(notes(settings, number, [path.relative_to(folder / "patients").as_posix() for path in slices]))
    Folder.at(folder).write("notes.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    entry = {"root": "patients", "annotation": "notes.jsonl", "data_augment": False, "repeat_time": 1, "length": len(lines)}
    Folder.at(folder).write("meta.json", json.dumps({"phantom_notes": entry}, indent=1).encode())
    return folder / "meta.json"


def prepare_notes(storage: Folder, phantom: PhantomSettings, settings: CorpusSettings) -> Prepared:
    """Make and prepare the embedded patients and notes under the storage; what is there already is kept."""
    made = hashlib.blake2b(repr((VERSION, phantom)).encode(), digest_size=3).hexdigest()
    described = hashlib.blake2b(repr((VERSION, phantom, settings)).encode(), digest_size=3).hexdigest()
    scratch = storage if storage.is_local else Folder.at(Path.home() / ".raymed")
    source = Path(scratch.path) / f"phantom-notes-{made}"
    log.info("phantom patients with notes: %d of them in %s", phantom.patients, source)
    return prepare_corpus(write_notes(source, phantom), f"{storage.uri}/corpus-{described}", settings).prepared
