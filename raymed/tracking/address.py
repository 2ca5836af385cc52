"""Where MLflow is: tracking addresses, found out to be good before MLflow's own client tries, which repeats for minutes."""

from __future__ import annotations

import base64
import os
import sqlite3
import urllib.error
import urllib.request
from pathlib import Path

from raymed.errors import UserError
from raymed.storage.folder import Folder, refuse_password

ANSWER_SECONDS = 5.0


def reachable(tracking_uri: str) -> tuple[str, str | None]:
    """The address made absolute, and where its artefacts go (None: the server decides).

    Raises:
        UserError: the server does not answer, the database cannot be written to, or it is no address that MLflow writes to.
    """
    refuse_password(tracking_uri)
    scheme, separator, rest = tracking_uri.partition("://")
    if scheme in ("http", "https"):
        _answers(tracking_uri)
        return tracking_uri.rstrip("/"), None
    if scheme == "sqlite":
        path = Path(rest.removeprefix("/")).expanduser().resolve()
        _writable(path)
        return f"sqlite:///{path}", (path.parent / "artifacts").as_uri()
    if not separator or scheme == "file":
        raise UserError(
            f"the tracking address {tracking_uri!r} is a folder, which MLflow no longer writes to. "
            f"Give --tracking-uri sqlite:///{Path(rest or tracking_uri).resolve()}/mlflow.db"
        )
    return tracking_uri, None


def check_reachable(tracking_uri: str) -> None:
    """As `reachable`, but a database that is not there yet is not created.

    Raises:
        UserError: as for `reachable`, or the database's folder cannot be written to.
    """
    path = Path(tracking_uri.removeprefix("sqlite:///")).expanduser().resolve()
    if tracking_uri.startswith("sqlite:///") and not path.exists():
        Folder.at(path.parent).check_writable()
    else:
        reachable(tracking_uri)


def _answers(uri: str) -> None:
    try:
        request = urllib.request.Request(f"{uri.rstrip('/')}/health")
        if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):  # as MLflow's client does
            password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
            request.add_header("Authorization", f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        raise UserError(
            f"the tracking server {uri} answers {error.code} ({error.reason}). Check the address, and "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the server asks for them."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"the tracking server {uri} does not answer within {ANSWER_SECONDS:.0f} s ({error}). Start it with "
            "`python jobs/serve_tracking.py`, correct --tracking-uri, or leave it out to use a local file."
        ) from error


def _writable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=ANSWER_SECONDS)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        finally:
            connection.close()
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"the tracking database {path} cannot be written: {error}. "
            "Free space, mend the permissions, or choose another place with --storage or --tracking-uri."
        ) from error
