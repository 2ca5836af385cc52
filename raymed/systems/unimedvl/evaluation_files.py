"""What was judged, in files to look through: every answer, and pictures side by side."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from raymed.spreadsheet import to_csv
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.evaluation import Answers, Drawings, Evaluation
from raymed.systems.unimedvl.synthetic import GAP, sheet

HEAD = 24  # pixels above the pictures
PANEL_ROWS = 12  # pictures that are shown


def answers_csv(answers: Answers) -> bytes:
    """A table of every answer."""
    columns = {
        "patient": answers.texts.patients,
        "question": answers.questions,
        "reference": list(answers.texts.references),
        "answer": list(answers.texts.generated),
    }
    return to_csv(pd.DataFrame(columns))


def pictures_png(drawings: Drawings) -> bytes:
    """The panels below each other, as PNG."""
    rows = panels(drawings)
    width = max(row.width for row in rows)
    page = Image.new("RGB", (width, HEAD + sum(row.height + GAP for row in rows)), "white")
    ImageDraw.Draw(page).text((0, 4), "from left to right: input, target, synthetic", "black", ImageFont.load_default(14))
    top = HEAD
    for row in rows:
        page.paste(row, (0, top))
        top += row.height + GAP
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


def panels(drawings: Drawings) -> list[Image.Image]:
    """Input, target and, marked, the drawing side by side, of the first pictures."""
    pictures = drawings.pictures
    triples = list(zip(pictures.inputs, pictures.targets, pictures.drawn, strict=True))[:PANEL_ROWS]
    return [sheet(*(_image(pixels) for pixels in triple)) for triple in triples]


def _image(pixels: np.ndarray) -> Image.Image:
    """uint8 [height, width, 1 or 3]."""
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])


def write_evaluation(evaluation: Evaluation, out: str) -> list[str]:
    """Write answers.csv and pictures.png; lines that say where."""
    folder, lines = Folder.at(out), []
    if evaluation.answers:
        folder.write("answers.csv", answers_csv(evaluation.answers))
        lines.append(f"every answer: {folder.uri}/answers.csv")
    if evaluation.drawings:
        folder.write("pictures.png", pictures_png(evaluation.drawings))
        lines.append(f"input, target and drawing side by side: {folder.uri}/pictures.png")
    return lines
