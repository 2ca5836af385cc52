"""Questions with declared choices, ``<cls>: a|b|c.``, as text."""

from __future__ import annotations

import re


def parse_choices(text: str) -> list[str] | None:
    """The choices of ``<cls>: a|b|c.`` in their order, without surrounding blanks; None if the text asks no such question.

    The colon may be full-width. The choices end at a full stop (``.`` before a blank, a picture's mark, a character beyond
    ASCII or the end; or ``。``), at a picture's mark, at a line break, or at the end.

    Raises:
        ValueError: fewer than two choices, an empty one, or one that stands twice.
    """
    match = re.search(r"<cls>[ \t]*[:：](.*?)(?:[.](?=\s|<image>|[^\x00-\x7f]|$)|。|\n|<image>|$)", text)
    if match is None:
        return None
    choices = [choice.strip() for choice in match.group(1).split("|")]
    if len(choices) < 2 or not all(choices) or len(set(choices)) < len(choices):
        raise ValueError(f"the choices {match.group(1).strip()!r} must be at least two different texts between '|'")
    return choices


def parse_answer(choices: list[str], text: str) -> str:
    """The choice that an answer names.

    Raises:
        ValueError: none.
    """
    answer = text.strip()
    if answer not in choices:
        raise ValueError(f"the answer {answer!r} is not among the choices {'|'.join(choices)}")
    return answer
