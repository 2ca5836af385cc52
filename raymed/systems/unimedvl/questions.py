"""Questions about pictures in a JSONL file, and their answers in another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymed.errors import UserError


@dataclass(frozen=True)
class Question:
    """One line: `pictures` are files, `prompt` is what is asked about them, `line` the whole object."""

    pictures: tuple[Path, ...]
    prompt: str
    line: dict[str, Any]


def read_questions(file: Path, folder: Path | None = None) -> list[Question]:
    """The questions of a JSONL file: `{"image": path or list of paths, "prompt": text}` a line. Blank lines are skipped.

    Args:
        folder: that paths are relative to (default: the file's own).

    Raises:
        UserError: names the file and line of everything wrong.
    """
    root = folder or file.parent
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the questions {file} cannot be read: {error}") from error
    questions, wrong = [], []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            questions.append(_question(json.loads(text), root))
        except ValueError as error:
            wrong.append(f"{file}:{number}: {error}")
    if wrong:
        raise UserError("\n".join(wrong[:10]) + (f"\nand {len(wrong) - 10} more" if len(wrong) > 10 else ""))
    if not questions:
        raise UserError(f'{file} holds no question: a line is {{"image": "chest.png", "prompt": "Which lung?"}}')
    return questions


def _question(line: Any, root: Path) -> Question:
    if not isinstance(line, dict) or not isinstance(line.get("prompt"), str) or not line["prompt"].strip():
        raise ValueError("a question is an object with a prompt")
    images = line.get("image", [])
    names = [images] if isinstance(images, str) else images
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("image is a path, or a list of paths")
    pictures = tuple(root / name for name in names)
    if missing := [str(path) for path in pictures if not path.is_file()]:
        raise ValueError(f"there is no picture {', '.join(missing)}")
    return Question(pictures, line["prompt"], line)
