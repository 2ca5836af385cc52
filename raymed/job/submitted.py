"""A submitted job: it sees the files of the cluster's machines, and a copy of the folder that was submitted."""

from __future__ import annotations

from pathlib import Path


def is_submitted() -> bool:
    """Whether the working folder is a copy that Ray made, and deletes some day."""
    return "working_dir_files" in Path.cwd().parts


def lasting(folder: str) -> str:
    """A folder in the working folder; of a submitted job, which works in a copy, below ``raymed`` at home."""
    return str(Path.home() / "raymed" / folder) if is_submitted() else folder


def where_it_looks() -> str:
    """A sentence for errors about paths that are not there; empty for a job that runs where it was typed."""
    if not is_submitted():
        return ""
    return (
        ". This job was submitted: it does not see the machine it was typed on, only a copy of the submitted folder "
        "(without what .gitignore names) and the cluster's files. Give a path that all of them have, or a URI"
    )
