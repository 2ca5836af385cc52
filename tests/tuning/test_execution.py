"""What a search says when Ray ends under it."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, RaySystemError
from ray.tune.error import TuneError

from raymed.errors import RunError, StorageError, UserError
from raymed.tuning.execution import in_words


def wrapped(cause: Exception) -> TuneError:
    """As Tune raises what was raised in what it calls: the text is a traceback."""
    try:
        try:
            raise cause
        except Exception:
            raise TuneError("Traceback (most recent call last):\n  File ...\nActorDiedError: gone") from None
    except TuneError as error:
        return error


@pytest.mark.parametrize("error", [RaySystemError("gone"), wrapped(RaySystemError("gone")), wrapped(ActorDiedError())])
def test_a_raylet_that_is_gone_is_told_with_the_command_to_go_on_wherever_it_was_met(error: Exception) -> None:
    """Met while Tune asked the study, it was a traceback of Tune's."""
    told = in_words(error)
    assert isinstance(told, RunError)
    assert str(told).startswith("Ray ended in the middle of the search (")
    assert "Trials under way go on from their checkpoints: python" in str(told) and "Traceback" not in str(told)


def test_what_a_person_can_mend_is_told_as_it_is_and_a_mistake_of_tune_s_stays_one() -> None:
    mistake, bug = UserError("mend this"), wrapped(KeyError("a bug"))
    assert in_words(wrapped(mistake)) is mistake
    assert in_words(bug) is bug


def test_a_write_that_gives_up_a_moment_before_the_watch_ends_the_job_as_the_watch_does() -> None:
    """Its error named no command, and its exit code was that of a mistake."""
    away, full = StorageError("has been away"), StorageError("No space left")
    told = in_words(wrapped(away), absence="Once it is back: python job.py")
    assert isinstance(told, RunError) and str(told) == "Once it is back: python job.py"
    assert in_words(wrapped(full)) is full
