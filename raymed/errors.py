"""Errors that a person can act on."""


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do; jobs exit with code 2."""


class RunError(Exception):
    """A run that failed for a reason the user did not cause. Jobs exit with code 1."""
