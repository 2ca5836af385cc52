"""Which texts are better: a trained CLIP classifier asked about several files of class texts, on its validation patients.

    python jobs/compare_texts.py --checkpoint OUT/checkpoint_best.pth --texts short.json long.json
    python jobs/compare_texts.py --checkpoint OUT/checkpoint_best.pth --texts short.json --data-dir IMAGES

The texts that it was trained with come first; the others are compared with them, patient by patient. Training with the
better ones comes next: a network knows its own texts best.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raymed.job.job import Outcome, run
from raymed.systems.clip.options import GUIDE, ClipOptions


@dataclass(frozen=True, kw_only=True)
class CompareTexts(ClipOptions):
    """Options of comparing class texts. Size, splits and slices are the checkpoint's.

    Attributes:
        checkpoint: A .pth file of an output folder.
        texts: JSON files from class to text, or to a list of texts (jobs/class_texts.py).
    """

    MATTERS = ("checkpoint", "texts", "data", "source.patients", "source.patient_regex")

    checkpoint: str
    texts: list[str]


def main(options: CompareTexts) -> Outcome:
    from raymed.systems.clip.class_texts import ClassTexts, read_class_texts
    from raymed.systems.clip.model import open_classifier
    from raymed.systems.clip.text_comparison import Texts, validated
    from raymed.tracking.tracker import Tracker

    asked: list[tuple[str, ClassTexts | None]] = [("its own texts", None)]
    asked += [(file, read_class_texts(Path(file).expanduser())) for file in options.texts]
    prepared, rows = validated(Path(options.checkpoint).expanduser(), options)
    if options.dry_run:
        return Outcome(f"would judge {len(asked)} files of texts on {len(rows)} images", {"images": len(rows)})
    tracker, compared = Tracker.open(options.tracking), list[Texts]()
    for name, texts in asked:
        network = open_classifier(options.checkpoint, tracker, texts).open()
        compared.append(Texts.of(name, network, prepared, rows, compared[0] if compared else None, options.seed))
    lines = [line for each in compared for line in each.lines()]
    lines.append(f"{options.checkpoint} on {len(compared[0].patients.ids)} validation patients of {prepared.folder.uri}")
    return Outcome("\n".join(lines), {"texts": [each.describe() for each in compared]})


if __name__ == "__main__":
    run(CompareTexts, main, aliases=GUIDE)
