"""Errors that a person can act on."""

from __future__ import annotations

from typing import Self


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do; jobs exit with code 2."""


class RunError(Exception):
    """A run that failed for a reason the user did not cause. Jobs exit with code 1."""


class CommonError(UserError):
    """What every run of a search would meet alike. It stops the search and leaves its trials: the same command goes on."""


class StorageError(CommonError):
    """The storage is full, read-only, or was away for too long. What it held is untouched."""

    @classmethod
    def of(cls, refusal: OSError) -> Self:
        """A disk refused what was written."""
        return cls(f"{refusal}. Free space or mend the permissions, and run the same command again")
