"""Pseudonyms: names of patients, studies and slices that say nothing to those without the key.

A pseudonym is a keyed hash (HMAC-SHA-256, cut to 64 bits) of the name, so the same key gives the same pseudonyms on every
day and in every hospital that shares it. The key, and the table that leads back, stay with the owner of the data.
"""

from __future__ import annotations

import contextlib
import csv
import hmac
import io
import os
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from raymed.data.sources import Refusal, Study
from raymed.data.sources.listing import Note
from raymed.data.survey import Survey
from raymed.errors import UserError
from raymed.spreadsheet import neutral, original
from raymed.storage import disk
from raymed.storage.folder import Folder

KEY_LENGTH = 32  # bytes
KEYS = "~/.raymed/keys"  # where keys are kept
COLUMNS = ("kind", "pseudonym", "original")


@dataclass(frozen=True)
class Pseudonyms:
    """Pseudonyms under one key. Get it with `Pseudonyms.open`.

    Attributes:
        file: where the key lies; the table that leads back lies beside it.
    """

    file: Path
    _key: bytes

    @classmethod
    def open(cls, file: str | Path, prepared: Folder | None = None) -> Pseudonyms:
        """The pseudonyms of a key file, which is made where there is none; readable for its owner alone.

        Args:
            prepared: the folder that data are prepared into; the key must not lie in it.

        Raises:
            UserError: the file is no key, others can read it, or it lies in a checkout or where the prepared data go.
        """
        path = Path(file).expanduser().absolute()
        if (sent := _checkout(path)) is not None:
            raise UserError(
                f"the key {path} would lie in {sent}, which is sent to clusters as a whole (ray job submit --working-dir, "
                f"ray up): keep it and its table of names elsewhere, such as {KEYS}/{path.name}"
            )
        if prepared and prepared.is_local and path.resolve().is_relative_to(prepared.path):
            raise UserError(f"the key {path} would lie among the prepared data {prepared.uri}: keep it with the originals")
        if path.is_dir():
            raise UserError(f"the key {path} is a folder: name a file in it")
        if not path.exists():
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write_private(path, secrets.token_hex(KEY_LENGTH) + "\n", anew=True)
            except OSError as error:
                raise UserError(f"the key {path} cannot be written: {error.strerror}. Name another file") from error
        if path.stat().st_mode & 0o077:
            raise UserError(f"the key {path} can be read by others: chmod 600 {path}")
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if not re.fullmatch(rf"[0-9a-f]{{{2 * KEY_LENGTH}}}", text):
            raise UserError(
                f"{path} is no key of raymed's ({2 * KEY_LENGTH} hexadecimal digits): name another --pseudonymise"
            )
        return cls(path, bytes.fromhex(text))

    @property
    def key_name(self) -> str:
        """Tells keys apart and betrays nothing of them."""
        return self.of("key", "")

    @property
    def table(self) -> Path:
        """A CSV of who is who: kind, pseudonym, original."""
        return self.file.with_name(f"{self.file.name}.table.csv")

    def of(self, kind: str, name: str) -> str:
        """The pseudonym of a name, such as ``patient-0123456789abcdef``."""
        digest = hmac.digest(self._key, f"{kind}\0{name}".encode(), "sha256")
        return f"{kind}-{digest[:8].hex()}"

    def patient(self, name: str) -> str:
        return self.of("patient", name)

    def rename(self, found: Survey) -> Survey:
        """The survey with every name replaced, and the table that leads back written.

        Paths stay, because the pictures have to be found; they are not kept in prepared data. Of notes on the source the
        part stays that names nobody.

        Raises:
            UserError: the texts of a conversation name their patient.
        """
        named = [
            f"{piece.where} names {study.patient}"
            for study in found.studies
            for piece in study.slices
            if any(re.search(rf"(?<!\w){re.escape(study.patient)}(?!\w)", turn.text) for turn in piece.messages)
        ]
        if named:
            raise UserError(f"{len(named)} texts name their patient, e.g. {'; '.join(named[:10])}. Remove the names first")
        patients = {study.patient for study in found.listing.studies} | {each.patient for each in found.listing.refusals}
        refusals = tuple(self._refusal(refusal) for refusal in found.listing.refusals)
        self._remember(found, found.listing.refusals)
        listed = {id(study): self._study(study, patients) for study in found.listing.studies}
        listing = replace(
            found.listing, studies=tuple(listed.values()), refusals=refusals, notes=_nameless(found.listing.notes)
        )
        studies = tuple(listed[id(study)] for study in found.studies)
        return replace(found, listing=listing, studies=studies, known_as=self.patient)

    def reveal(self, text: str, written: Callable[[str], str] = str) -> str:
        """A text with every pseudonym that the table knows replaced by its original, e.g. a cell of predictions.

        Args:
            written: how an original is written in such a text.

        Raises:
            UserError: there is no table, or the text holds pseudonyms that are not in it.
        """
        if not self.table.exists():
            raise UserError(f"there is no table {self.table}: it is written when data are prepared with this key")
        originals = {row["pseudonym"]: row["original"] for row in self._rows()}
        pattern = re.compile(r"\b(?:patient|study|file)-[0-9a-f]{16}\b")
        unknown = sorted(set(pattern.findall(text)) - originals.keys())
        if unknown:
            raise UserError(f"{len(unknown)} pseudonyms are of another key or other data, e.g. {', '.join(unknown[:3])}")
        return pattern.sub(lambda match: written(originals[match[0]]), text)

    def _study(self, study: Study, patients: set[str | None]) -> Study:
        patient = self.patient(study.patient)
        name = patient if study.study == study.patient else self.of("study", study.study)
        slices = []
        for piece in study.slices:
            place = f"{name}/{piece.position:05d}"
            slices.append(replace(piece, id=place, where=place))
        return replace(
            study,
            patient=patient,
            study=name,
            source=self.of("source", study.source) if study.source in patients else study.source,
            slices=tuple(slices),
            fingerprint=self.of("content", study.fingerprint),
        )

    def _refusal(self, refusal: Refusal) -> Refusal:
        name = self.of("file", refusal.id)
        patient = None if refusal.patient is None else self.patient(refusal.patient)
        return replace(refusal, id=name, where=name, patient=patient)

    def _remember(self, found: Survey, refusals: Iterable[Refusal]) -> None:
        """Add to the table who is new; nobody is ever removed."""
        with FileLock(f"{self.table}.lock"):  # other data may be prepared with the same key
            rows = {(row["kind"], row["original"]): row["pseudonym"] for row in self._rows()}
            for study in found.listing.studies:
                rows["patient", study.patient] = self.patient(study.patient)
                if study.study != study.patient:
                    rows["study", study.study] = self.of("study", study.study)
            for refusal in refusals:
                rows["file", refusal.id] = self.of("file", refusal.id)
                if refusal.patient is not None:
                    rows["patient", refusal.patient] = self.patient(refusal.patient)
            content = io.StringIO()
            writer = csv.writer(content)
            writer.writerow(COLUMNS)
            writer.writerows((kind, pseudonym, neutral(name)) for (kind, name), pseudonym in sorted(rows.items()))
            _write_private(self.table, content.getvalue())

    def _rows(self) -> list[dict[str, str]]:
        if not self.table.exists():
            return []
        with self.table.open(encoding="utf-8", newline="") as file:
            return [row | {"original": original(row["original"])} for row in csv.DictReader(file)]


def _nameless(notes: Sequence[str]) -> tuple[str, ...]:
    """What is left of notes where nobody may be named."""
    kept = [note.nameless for note in notes if isinstance(note, Note)]
    lost = len(notes) - len(kept)
    return (
        *kept,
        *([f"notes that may hold names, and are not repeated here: {lost} (--dry-run shows them)"] if lost else []),
    )


def _checkout(path: Path) -> Path | None:
    """The checkout of this or another project that a file lies in, below the home folder; None where it is in none."""
    above = path.resolve().parents
    if Path.home() in above:
        above = above[: above.index(Path.home())]
    return next((folder for folder in above if (folder / ".git").exists() or (folder / "raymed" / "systems").is_dir()), None)


def _write_private(path: Path, text: str, anew: bool = False) -> None:
    """Write a file whole, for its owner alone, so that it is still there when the power fails.

    Args:
        anew: leave a file that is there already, be it since a moment, as it is.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if anew:
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)  # fails where there is one, unlike renaming
        temporary.unlink()
    else:
        temporary.replace(path)
    disk.keep(path.parent)
