"""A zip to send when asking for help, in which no patient is."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import distributions
from pathlib import Path

import numpy as np

from raymed.data.prepared import MANIFEST, Manifest, Prepared
from raymed.doctor.checks import read_text
from raymed.doctor.finding import Finding
from raymed.errors import UserError
from raymed.storage.folder import Folder

TRACEBACKS = 3  # that go into it, the last ones


def write_bundle(path: Path, findings: list[Finding], command: str, data_uri: str | None, tracking_uri: str | None) -> None:
    """A zip to send when asking for help. It holds no picture, no patient id, and no message that could name one:
    of tracebacks only the places in the code, of data only counts, settings and a record whose letters and digits are
    masked, of runs only settings and status (none where it is not known where they are tracked).
    """
    files = {
        "findings.json": json.dumps([_without_patients(each) for each in findings], indent=1),
        "command.txt": command,
        "packages.txt": "\n".join(sorted(f"{each.name}=={each.version}" for each in distributions())),
        "platform.txt": f"{platform.platform()}\nPython {sys.version}\n{os.cpu_count()} CPUs",
        "tracebacks.txt": "\n\n".join(_tracebacks()),
        "runs.json": json.dumps(_runs(tracking_uri) if tracking_uri else [], indent=1),
    }
    if data_uri and Folder.at(data_uri).exists(MANIFEST):
        with contextlib.suppress(UserError):  # the findings say what is wrong with it
            files["manifest.json"] = json.dumps(_manifest(Folder.at(data_uri)), ensure_ascii=False, indent=1)
            files["record.json"] = json.dumps(_masked_record(Prepared.open(data_uri)), ensure_ascii=False, indent=1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in files.items():
            bundle.writestr(name, text)


def frames_only(traceback: str) -> str:
    """A traceback without messages and source lines: files, lines, functions, and the names of the errors."""
    kept = []
    for line in traceback.splitlines():
        place = re.match(r'\s*File "[^"]*", line \d+, in \S+', line)
        error = re.match(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b(?=:|$)", line)
        if place or error or line.startswith("Traceback "):
            kept.append((place or error)[0] if place or error else line)  # type: ignore[index]
    return "\n".join(kept)


def _without_patients(finding: Finding) -> dict[str, str]:
    private = finding.subject == "data" and finding.state == "wrong"
    return asdict(replace(finding, text="left out, because it may name patients") if private else finding)


def _tracebacks() -> Iterator[str]:
    kept: list[tuple[float, Path]] = []
    for folder in Path(tempfile.gettempdir()).glob("raymed-*"):
        with contextlib.suppress(OSError):  # another job has removed its own meanwhile
            kept += [(path.stat().st_mtime, path) for path in folder.glob("traceback-*.txt")]
    for _, path in sorted(kept)[-TRACEBACKS:]:
        yield f"{path.name}\n{frames_only(read_text(path))}"


def _runs(tracking_uri: str) -> list[dict[str, object]]:
    from raymed.tracking.tracker import recent_runs

    try:
        return [
            {"status": run.status, "params": run.params, "metrics": run.metrics, "command": run.tags.get("raymed.command")}
            for run in recent_runs(tracking_uri, 5)
        ]
    except UserError:
        return []  # the findings say why


def _manifest(folder: Folder) -> dict[str, object]:
    manifest = Manifest.from_json(folder.read(MANIFEST), folder.uri)
    known = ("format", "digest", "settings", "patients", "slices", "same_pixels", "quarantined", "ignored", "versions")
    return {name: getattr(manifest, name) for name in known}


def _masked_record(prepared: Prepared) -> dict[str, object]:
    """What a record looks like: its fields, the shapes of its pictures, and its texts with letters and digits masked, but
    for marks of pictures and declared choices."""
    if not prepared.index.num_rows:
        return {}
    (record,) = prepared.read(np.zeros(1, np.int64))
    return {
        **{name: masked(str(getattr(record, name))) for name in ("id", "patient", "study", "source")},
        "position": record.position,
        "label": record.label,
        "images": [[image.role, image.place, list(image.pixels.shape)] for image in record.images],
        "messages": [[message.role, masked(message.text)] for message in record.messages],
    }


def masked(text: str) -> str:
    """A text whose letters are x and whose digits are 0, but for ``<image>``, ``<cls>`` and the choices after it."""
    parts = re.split(r"(<image>|<cls>[^\n.。]*)", text)
    return "".join(
        part if place % 2 else re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "0", part)) for place, part in enumerate(parts)
    )
