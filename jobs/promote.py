"""Judge, calibrate and register a trial, of any system, that a person picked in the MLflow UI.

    python jobs/promote.py RUN_ID                          # becomes models:/raymed-lung@champion
    python jobs/promote.py RUN_ID --alias candidate        # under another alias; the champion stays
    python jobs/promote.py RUN_ID --dry-run                # say what would be judged

The trial's checkpoint and its prepared data must still be there. Figures of every judged patient go to the storage. Where
the data have no classes, as for pretraining, there is nobody to judge: the network is registered with its validation loss.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from raymed.job import JobOptions, Outcome, run

if TYPE_CHECKING:
    from raymed.judgement import Candidate
    from raymed.tracking import Tracker


@dataclass(frozen=True)
class Promote(JobOptions):
    """Options of promoting a trial.

    Attributes:
        run_id: The trial's MLflow run id.
        alias: Name that the model version gets; it moves from the version that has it.
        licence: What the model card says about the terms of use.
        micro_batch: Slices that are predicted at once.
        workers: Ray actors that predict; 1 works in this process.
        bootstrap: Resamples of patients behind each interval.
    """

    run_id: str
    alias: str = "champion"
    licence: str = ""
    micro_batch: int = 32
    workers: int = 1
    bootstrap: int = 1000


def main(options: Promote) -> Outcome:
    from raymed.data.prepared import Prepared
    from raymed.evaluation.summary import lines
    from raymed.judgement import Candidate
    from raymed.registry import judge_and_register
    from raymed.tracking import Tracker

    tracker = Tracker.open(options.tracking)
    candidate = Candidate.of_run(tracker, options.run_id)
    prepared = Prepared.open(candidate.data)
    if options.dry_run:
        text = [
            f"checkpoint  {candidate.network(candidate.checkpoint).uri}",
            f"data        {candidate.data}, digest {prepared.digest}",
            f"alias       {options.alias}",
            "dry run: nothing was judged or registered",
        ]
        return Outcome("\n".join(text), asdict(candidate))
    if not prepared.labels.classes:
        return register(options, tracker, candidate)
    registered = judge_and_register(
        tracker,
        candidate,
        alias=options.alias,
        licence=options.licence,
        micro_batch=options.micro_batch,
        workers=options.workers,
        bootstrap=options.bootstrap,
    )
    judgement = registered.judgement
    options.folder.write(f"promoted/{options.run_id}/patients.csv", judgement.predictions())
    judged, split = (judgement.test, "test") if judgement.test else (judgement.validation, "validation")
    text = [
        f"{judged.patients} {split} patients, temperature {judgement.temperature:.3f}",
        *lines(judged),
        f"every judged patient: {options.folder.uri}/promoted/{options.run_id}/patients.csv",
        f"registered: {registered.uri} (version {registered.version})",
    ]
    data = {"model": registered.uri, "version": registered.version, "temperature": judgement.temperature}
    return Outcome("\n".join(text), data | {"split": split, "figures": judged.flat()})


def register(options: Promote, tracker: Tracker, candidate: Candidate) -> Outcome:
    """For data without classes: the network and its validation loss."""
    from raymed.registry import register_network

    run = tracker.describe(candidate.run_id)
    epoch = int(run.metrics["best_epoch"])
    val_loss = tracker.of_epoch(run.id, "val_loss", epoch)
    found_by = f"The run {run.name}: val_loss {val_loss:.4f} in epoch {epoch}; picked by a person."
    registered = register_network(tracker, candidate, val_loss, found_by, options.alias, options.licence)
    text = [
        f"val_loss {val_loss:.4f}; the data have no classes to judge patients by",
        f"registered: {registered.uri} (version {registered.version})",
        f"take its ViT out: python jobs/extract_vit.py --model {registered.uri} --out VIT",
    ]
    return Outcome("\n".join(text), {"model": registered.uri, "version": registered.version, "val_loss": val_loss})


if __name__ == "__main__":
    run(Promote, main, positional=True)
