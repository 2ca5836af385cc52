"""Look at prepared data before a search: a printable page of what a network will see, by source and class.

    python jobs/look_at_data.py PREPARED                   # the page goes to runs/
    python jobs/look_at_data.py PREPARED --out page.html

It shows random slices, histograms, sizes and sides, suspected duplicates, and who was left out and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raymed.job.job import JobOptions, Outcome, run
from raymed.language import say


@dataclass(frozen=True)
class LookAtData(JobOptions):
    """Options of looking at data.

    Attributes:
        data: Folder or URI of the prepared data.
        out: The page to write (default: data-DIGEST.html in the storage).
    """

    data: str
    out: str = ""


def main(options: LookAtData) -> Outcome:
    from raymed.data.prepared import Prepared
    from raymed.evaluation.data_page import look_at
    from raymed.storage.folder import Folder

    prepared = Prepared.open(options.data)
    found = f"{prepared.index.num_rows} records of {len(prepared.index['patient'].unique())} patients"
    if options.dry_run:
        return Outcome(f"{found}\ndry run: nothing was written", {"found": found})
    page = look_at(prepared, options.seed)
    out = Path(options.out).expanduser().resolve() if options.out else None
    folder = Folder.at(out.parent) if out else options.folder
    name = out.name if out else f"data-{prepared.digest[:8]}.html"
    folder.write(name, page.render().encode())
    text = [*page.notes, found, say("page: {page}", page=f"{folder.uri}/{name}")]
    return Outcome("\n".join(text), {"out": f"{folder.uri}/{name}", "groups": len(page.groups), "notes": list(page.notes)})


if __name__ == "__main__":
    run(LookAtData, main, positional=True)
