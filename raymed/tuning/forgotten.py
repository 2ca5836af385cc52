"""Searches that were forgotten (``--resume never``): noted in the storage before anything is removed.

Forgetting takes several steps and places: the record, the folder, MLflow. A process that is killed in between leaves the
note, and the next one removes the rest. A head that comes back later with its record learns from the note that it is over.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass

from raymed.storage.availability import is_missing
from raymed.storage.folder import Folder

NOTES = ".forgotten"


@dataclass(frozen=True)
class Forgotten:
    """What was forgotten under a name.

    Attributes:
        generations: of the searches.
        is_unfinished: whether something of them may still be there.
    """

    generations: tuple[str, ...] = ()
    is_unfinished: bool = False

    @classmethod
    def read(cls, storage: Folder, name: str) -> Forgotten:
        """What was noted in a storage.

        Raises:
            OSError: the storage is not there, or does not answer.
        """
        file = f"{NOTES}/{name}.json"
        if is_missing(storage, file):
            return cls()
        values = json.loads(storage.read(file))
        return cls(tuple(values["generations"]), values["is_unfinished"])

    def begin(self, generations: Collection[str]) -> Forgotten:
        """With these, which are about to be removed."""
        return Forgotten(tuple(sorted({*self.generations, *generations})), True)

    def write(self, storage: Folder, name: str) -> None:
        storage.write(f"{NOTES}/{name}.json", json.dumps(asdict(self)).encode())
