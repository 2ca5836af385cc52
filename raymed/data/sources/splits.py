"""The division into train, val and test that a source states itself: taken as it is, and never made anew."""

from __future__ import annotations

import re

from raymed.data.sources.listing import Note
from raymed.errors import UserError

NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_named(text: str) -> str | None:
    """The split that a name ends in, such as ``train`` or ``chest_val``."""
    return NAMES.get(re.split(r"[_\-. ]", text.strip().casefold())[-1])


class StatedSplits:
    """The split of each patient, as a source states it."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}
        self._where: dict[str, str] = {}

    def add(self, patient: str, split: str, where: str) -> None:
        """Raises: UserError: the patient is in another split as well."""
        known = self.of.setdefault(patient, split)
        if known != split:
            raise UserError(
                f"{where}: patient {patient} is in {split} here and in {known} at {self._where[patient]}: a leak. Put each "
                "patient into one split, or pass --source.splits false, which divides them anew"
            )
        self._where.setdefault(patient, where)

    def notes(self) -> tuple[str, ...]:
        """What a person should know."""
        words = "train, val and test are as the source states them (--source.splits false divides anew)"
        return (Note.of(words),) if self.of else ()
