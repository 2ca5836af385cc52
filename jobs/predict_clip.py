"""Give images the class whose text they resemble most: a CSV with one line per image, or per patient where they are known.

    python jobs/predict_clip.py --model models:/raymed-clip@champion --input IMAGES --out predictions.csv
    python jobs/predict_clip.py --model OUT/checkpoint_best.pth --input image.png --out predictions.csv
    python jobs/predict_clip.py --model OUT/checkpoint_best.pth --input IMAGES --out zero_shot.csv --texts other_texts.json

IMAGES is a folder (all images below it), one image, or a CSV with image and patient_id. With --texts the model is asked
about other classes than it was trained on: a JSON object from class name to text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from raymed.data.sources import SourceSettings
from raymed.data.sources.table import is_table
from raymed.job.command_line import Alias
from raymed.job.job import Outcome, run
from raymed.registry.prediction import PredictOptions, predict
from raymed.systems.clip.class_texts import read_class_texts

GUIDE = {"patients": Alias("source.patients"), "patient-regex": Alias("source.patient_regex")}


@dataclass(frozen=True, kw_only=True)
class PredictClip(PredictOptions):
    """Options of predicting with a CLIP classifier.

    Attributes:
        model: A .pth file of an output folder, models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, or a folder.
        texts: JSON file of other classes and their texts.
        source: How the input is read; labels in it are not looked at.
    """

    model: str
    texts: str | None = None
    source: SourceSettings = field(default_factory=lambda: SourceSettings(format="classes", labelled=False))


def main(options: PredictClip) -> Outcome:
    from raymed.systems.clip.model import open_classifier
    from raymed.tracking.tracker import Tracker

    if options.source.format == "classes" and is_table(Path(options.input)):
        options = replace(options, source=replace(options.source, format="csv"))
    texts = read_class_texts(Path(options.texts).expanduser()) if options.texts else None
    classifier = open_classifier(options.model, Tracker.open(options.tracking), texts)
    return predict(options, classifier.inference, classifier.open)


if __name__ == "__main__":
    run(PredictClip, main, aliases=GUIDE)
