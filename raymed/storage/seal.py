"""Digests of files, kept beside them: a model whose files were damaged or exchanged is not used.

A seal vouches for files against damage, not against a person who can write both.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from pathlib import Path

from raymed.errors import UserError

log = logging.getLogger("raymed")

SEAL = "sealed.json"
UNSEALED = ("__pycache__",)  # written by whoever runs what is sealed


def seal(folder: Path) -> None:
    """List the digests of a folder's files in `SEAL`; written last. A sealed folder within counts by its own list."""
    files = {path.relative_to(folder).as_posix(): digest_of_file(path) for path in _files(folder)}
    (folder / SEAL).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")


def check_seal(folder: Path) -> None:
    """Refuse a folder with a file that is not as its list says; a line tells of a folder without a list.

    Raises:
        UserError: a file is missing, damaged or exchanged, or the list itself is damaged; the message names the file.
    """
    path = folder / SEAL
    if not path.is_file():
        log.warning("%s has no list of digests (%s): damage to its files would not be noticed", folder, SEAL)
        return
    files = read_list(path.read_bytes(), str(path))
    wrong = next((name for name, digest in files.items() if not _is(folder / name, digest)), None)
    if wrong is not None:
        raise UserError(
            f"{folder / wrong} is missing, damaged or exchanged: it is not the file that {SEAL} lists. "
            "Copy the model again from where it was made, or register it again (jobs/promote.py RUN_ID)"
        )


def read_list(content: bytes, where: str) -> dict[str, str]:
    """The digests in a list, by the names of files.

    Raises:
        UserError: it is damaged.
    """
    try:
        files = dict(json.loads(content)["files"])
        if not all(isinstance(each, str) for pair in files.items() for each in pair):
            raise TypeError("names and digests are texts")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} is damaged ({error!r}): copy the model again from where it was made") from error
    return files


def check_archive(file: Path) -> None:
    """Refuse a file of `torch.save` with a damaged record. Each has a CRC-32, which torch itself does not look at.

    Whatever else is no archive, as files of an older torch and safetensors, or is missing, is left to who reads it.

    Raises:
        UserError: a record is damaged, or the archive's own list is; or the file is text, as what git-lfs leaves in place of
            a file that was not fetched.
    """
    if not file.is_file():
        return
    if not zipfile.is_zipfile(file):
        with file.open("rb") as content:
            start = content.read(40).decode("ascii", "replace")
        if len(start) > 8 and start.replace("\n", " ").isprintable() and start.isascii():
            raise UserError(f"{file} is text and holds no weights; it begins: {start!r}. Fetch the file that it stands for")
        return
    try:
        with zipfile.ZipFile(file) as archive:
            wrong = archive.testzip()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{file} is damaged ({error}): copy it again from where it was made") from error
    if wrong is not None:
        raise UserError(
            f"{file} is damaged in its record {wrong}, or was saved without checksums: copy it again from where it was made"
        )


def digest_of_file(path: Path) -> str:
    """BLAKE2b of a file, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and digest_of_file(path) == digest


def _files(folder: Path) -> list[Path]:
    """The files that a folder's list holds: of sealed folders within only their list."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    inner = {path.parent for path in files if path.name == SEAL} - {folder}
    return [
        path
        for path in files
        if not set(path.relative_to(folder).parts) & set(UNSEALED)
        and path != folder / SEAL
        and (path.name == SEAL or not inner & set(path.parents))
    ]
