"""What was judged, in files to look through: every answer, and pictures side by side."""

from __future__ import annotations

import pandas as pd

from raymed.spreadsheet import to_csv
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.evaluation import Answers, Evaluation, sheet


def answers_csv(answers: Answers) -> bytes:
    """A table of every answer."""
    columns = {
        "patient": answers.texts.patients,
        "question": answers.questions,
        "reference": list(answers.texts.references),
        "answer": list(answers.texts.generated),
    }
    return to_csv(pd.DataFrame(columns))


def write_evaluation(evaluation: Evaluation, out: str) -> list[str]:
    """Write answers.csv and pictures.png; lines that say where."""
    folder, lines = Folder.at(out), []
    if evaluation.answers:
        folder.write("answers.csv", answers_csv(evaluation.answers))
        lines.append(f"every answer: {folder.uri}/answers.csv")
    if evaluation.drawings:
        folder.write("pictures.png", sheet(evaluation.drawings))
        lines.append(f"input, target and drawing side by side: {folder.uri}/pictures.png")
    return lines
