"""Aliases: the names, such as `champion`, under which whoever predicts asks for a version of a registered model."""

from __future__ import annotations

import logging
import re

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from raymed.data.prepared import MissingError
from raymed.errors import RunError, UserError
from raymed.job.job import Outcome
from raymed.language import say
from raymed.registry.assessment import Assessment
from raymed.registry.candidate import CHECKPOINT, Candidate
from raymed.storage.availability import second_look
from raymed.storage.folder import Folder
from raymed.tracking.refusals import is_permanent
from raymed.tracking.tracker import Tracker

log = logging.getLogger("raymed")

CHAMPION = "champion"
ALIAS = re.compile(r"(?!(latest|v\d+)$)[\w-]+", re.IGNORECASE)  # MLflow keeps the two for itself
VERSION = re.compile(r"models:/([^/@]+)/(\d+)")


def require_alias(alias: str | None) -> None:
    """Raises: UserError: MLflow allows no such alias."""
    if alias is not None and not ALIAS.fullmatch(alias):
        raise UserError(
            f"--alias {alias!r}: an alias has letters, digits, - and _, and is neither latest nor v1, v2 and so on, which "
            "MLflow keeps for itself"
        )


def alias_of(candidate: Candidate, given: str | None) -> str | None:
    """The alias that a candidate's version gets: the given one, else `champion`, and none after a limit on its patients."""
    return given or (None if candidate.is_limited else CHAMPION)


def alias_version(tracker: Tracker, name: str, alias: str = CHAMPION) -> str:
    """The version of a registered model that an alias names; empty where there is none."""
    named = _version_of(tracker, name, alias)
    return str(named.version) if named else ""


def seen_version(tracker: Tracker, name: str, alias: str = CHAMPION) -> str:
    """As `alias_version`, to be known again by `give_alias`: a database that was set back gives numbers anew."""
    named = _version_of(tracker, name, alias)
    return known_by(named) if named else ""


def known_by(version: ModelVersion) -> str:
    """A version's number, and when it was made, in milliseconds."""
    return f"{version.version} of {version.creation_timestamp}"


def is_there(tracker: Tracker, name: str, known: str) -> bool:
    """Whether the version is there that `known_by` gave so: a database that was set back may have another of its number."""
    try:
        return known_by(tracker.client.get_model_version(name, known.partition(" ")[0])) == known
    except MlflowException as error:
        if not is_permanent(error):
            raise
        return False


def _version_of(tracker: Tracker, name: str, alias: str) -> ModelVersion | None:
    try:
        return tracker.client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if not is_permanent(error):
            raise
        return None


def move_alias(tracker: Tracker, uri: str, alias: str, is_dry_run: bool = False) -> Outcome:
    """Let an alias name a version that is registered already: the way back to an earlier model.

    Args:
        uri: models:/NAME/VERSION.

    Raises:
        UserError: there is no such version.
    """
    match = VERSION.fullmatch(uri)
    if not match:
        raise UserError(f"{uri!r} names no version: give models:/NAME/VERSION, or the run id of a trial")
    name, number = match.groups()
    try:
        tracker.client.get_model_version(name, number)
    except MlflowException as error:
        if not is_permanent(error):
            raise
        known = ", ".join(each.name for each in tracker.client.search_registered_models()) or "none"
        raise UserError(f"there is no {uri} at {tracker.uri}. Registered models: {known}.") from error
    before = alias_version(tracker, name, alias)
    if not is_dry_run:
        tracker.client.set_registered_model_alias(name, alias, number)
    moved = "{alias} of {name}: version {number}; before: {before}"
    text = [
        say(moved, alias=alias, name=name, number=number, before=before or say("none")),
        say("dry run: the alias was not moved")
        if is_dry_run
        else say("a server that runs keeps the version it began with: start it again"),
    ]
    return Outcome("\n".join(text), {"model": f"models:/{name}@{alias}", "version": number, "before": before})


def against(
    tracker: Tracker, candidate: Candidate, assessment: Assessment, name: str, number: str, alias: str | None
) -> str:
    """What speaks against giving a version the alias of another one without a person's word; empty where nothing does.

    By how much its validation loss is above the other's, over the same patients, is logged.

    Args:
        candidate: that the version is made from.

    Raises:
        OSError: its checkpoint's storage is away.
        RunError: its data are not there.
    """
    now = alias_version(tracker, name, alias) if alias is not None else ""
    if now in ("", number):
        return ""
    try:
        version = tracker.client.get_model_version(name, now)
        run, tags = tracker.describe(str(version.run_id)), dict(version.tags)
        noted = {name: str(value) for name, value in run.metrics.items()} | tags
        other, own = Candidate.of_run(tracker, run.id, checkpoint=tags.get(CHECKPOINT, "")), Folder.at(candidate.checkpoint)
        difference = second_look(lambda: assessment.above(other, noted), own)
    except (UserError, RunError) as error:
        _require_data(candidate, name, number)
        log.info("not compared with version %s (%s): %s", now, alias, error)
        return f"not comparable with version {now}, whose data or checkpoint are gone or others now"
    if difference is None:
        return ""
    log.info("validation loss against version %s (%s), on the same data: %s more", now, alias, difference)
    is_worse = difference.low is not None and difference.low > 0
    return f"surely worse than version {now} on the same validation data" if is_worse else ""


def _require_data(candidate: Candidate, name: str, number: str) -> None:
    """Data may lie in another storage than checkpoints, and that may be away.

    Raises:
        RunError: they are not there.
    """
    try:
        candidate.open_data()
    except MissingError as error:
        raise RunError(
            f"{name} version {number} is registered and has no alias: {error}. It is compared on these data; bring them "
            "back, and run the same command again"
        ) from error
    except UserError:  # others are there now, or damaged ones
        return


def give_alias(
    tracker: Tracker,
    candidate: Candidate,
    name: str,
    number: str,
    given: str | None,
    seen: str | None = None,
    why_not: str = "",
) -> str:
    """Give a version its alias, unless a search must not, and say so; returns how to ask for the version.

    Args:
        seen: of a search, the version that the alias named when it began, see `seen_version`; None of a person.
            Earlier searches noted its number alone.
        why_not: see `against`; a person's word goes before it.
    """
    alias = alias_of(candidate, given)
    if alias is None:
        log.warning("registered %s version %s under no alias: a limit left some out of training", name, number)
        return f"models:/{name}/{number}"
    named = _version_of(tracker, name, alias)
    now, known = (str(named.version), known_by(named)) if named else ("", "")
    if seen is not None and seen not in (known, now) and now != number:
        why_not = f"{alias} was another version when the search began"
    if seen is not None and why_not:
        log.warning("registered %s version %s; %s stays version %s: %s", name, number, alias, now, why_not)
        log.warning("to change that: python jobs/promote.py models:/%s/%s", name, number)
        return f"models:/{name}/{number}"
    tracker.client.set_registered_model_alias(name, alias, number)
    log.info("registered %s version %s as %s", name, number, alias)
    return f"models:/{name}@{alias}"
