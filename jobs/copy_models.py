"""Copy a model's folder to a storage, or all that lie in one to this machine, checked against lists of digests.

    python jobs/copy_models.py --source InternVL2_5-1B --out s3://YOUR-BUCKET/models/InternVL2_5-1B
    python jobs/copy_models.py --source s3://YOUR-BUCKET/models --out ~/models

The second is what every machine of cluster.yaml does when it starts. Files that are there already are not copied again.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymed.errors import UserError
from raymed.job.job import JobOptions, Outcome, run
from raymed.storage.copies import copy_folder, listed_folders
from raymed.storage.folder import Folder


@dataclass(frozen=True, kw_only=True)
class CopyModels(JobOptions):
    """Options of copying models.

    Attributes:
        source: A model's folder, or a folder or URI in which copies of some lie.
        out: Folder or URI of the copy, or of the folder that the copies lie in.
    """

    source: str
    out: str


def main(options: CopyModels) -> Outcome:
    source, out = Folder.at(options.source), Folder.at(options.out)
    if source.is_local and not source.names():
        raise UserError(f"--source {source.uri} is no folder, or holds nothing")
    models = [source] if source.is_local else listed_folders(source)
    targets = [out if model is source else out.child(model.uri.rpartition("/")[2]) for model in models]
    if options.dry_run:
        lines = [f"would copy {model.uri} to {target.uri}" for model, target in zip(models, targets, strict=True)]
        return Outcome("\n".join(lines) or "nothing to copy", {"models": len(models), "copied": 0})
    copied = sum(copy_folder(model, target) for model, target in zip(models, targets, strict=True))
    names = ", ".join(model.uri.rpartition("/")[2] for model in models) or "none"
    return Outcome(
        f"models in {out.uri}: {names}; {copied} files copied, the others were there",
        {"models": len(models), "copied": copied},
    )


if __name__ == "__main__":
    run(CopyModels, main)
