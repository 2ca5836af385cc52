"""CSV files that people open in a spreadsheet, which would run a text that begins like a formula.

Such a text gets an apostrophe in front, and so does one that has apostrophes in front of such a beginning; reading takes one
away again. What is read is therefore what was written. After OWASP, "CSV Injection".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

FORMULA = re.compile(r"'*[=+\-@\t\r]")


def neutral(text: str) -> str:
    """A text as a cell that no spreadsheet runs."""
    return f"'{text}" if FORMULA.match(text) else text


def original(cell: str) -> str:
    """The text of a cell that `neutral` may have made."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def to_csv(table: pd.DataFrame) -> bytes:
    """A table as a CSV in UTF-8, without its index; texts are made neutral, numbers are not touched.

    It begins with the mark by which Excel knows UTF-8: without it, 正常 opens as nonsense.
    """
    safe = table.map(lambda cell: neutral(cell) if isinstance(cell, str) else cell).rename(columns=neutral)
    return safe.to_csv(index=False).encode("utf-8-sig")
