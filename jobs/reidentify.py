"""Put the original names back into a file that speaks of pseudonyms. For the owner of the data, who has the key.

    python jobs/reidentify.py runs/search/patients.csv ~/.raymed/keys/hospital    # writes patients.csv beside the key

The key is the file that jobs/prepare_lung.py --pseudonymise was given.
"""

from __future__ import annotations

import csv
import html
import io
from dataclasses import dataclass
from pathlib import Path

from raymed.data.pseudonyms import Pseudonyms
from raymed.data.sources.paths import read_text
from raymed.errors import UserError
from raymed.job.job import JobOptions, Outcome, run
from raymed.spreadsheet import neutral, original


@dataclass(frozen=True)
class Reidentify(JobOptions):
    """Options of re-identification.

    Attributes:
        file: A text file with pseudonyms, such as a CSV of predictions or a report.
        key: The file of the key; the result is written beside it.
    """

    file: str
    key: str


def main(options: Reidentify) -> Outcome:
    source, key = Path(options.file).expanduser(), Path(options.key).expanduser()
    if not source.is_file() or not key.is_file():
        raise UserError(f"there is no file {source if not source.is_file() else key}")
    target = key.parent / source.name
    if target.exists():
        raise UserError(f"{target} is there already: move it away first")
    named = reidentified(read_text(source), source.suffix.lower(), Pseudonyms.open(key))
    if options.dry_run:
        return Outcome(f"dry run: nothing was written to {target}", {"file": str(target)})
    target.touch(mode=0o600)
    target.write_text(named, encoding="utf-8-sig" if source.suffix.lower() == ".csv" else "utf-8", newline="")
    return Outcome(f"names of patients, for their owner only: {target}", {"file": str(target)})


def reidentified(text: str, suffix: str, pseudonyms: Pseudonyms) -> str:
    """The text with its names, written as the kind of file asks: a name may hold a comma, or an ampersand."""
    if suffix == ".csv":
        out = io.StringIO()
        rows = csv.reader(io.StringIO(text, newline=""))
        csv.writer(out, lineterminator="\n").writerows(
            [neutral(pseudonyms.reveal(original(cell))) for cell in row] for row in rows
        )
        return out.getvalue()
    return pseudonyms.reveal(text, html.escape if suffix in (".html", ".htm") else str)


if __name__ == "__main__":
    run(Reidentify, main, positional=True)
