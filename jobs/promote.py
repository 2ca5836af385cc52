"""Assess and register a trial, of any system, that a person picked in the MLflow UI.

    python jobs/promote.py RUN_ID                          # becomes models:/raymed-lung@champion
    python jobs/promote.py RUN_ID --alias candidate        # under another alias; the champion stays
    python jobs/promote.py RUN_ID --step 8000              # its checkpoint at that step, in place of the best one
    python jobs/promote.py models:/raymed-lung/3           # the way back: a version gets the alias, unjudged
    python jobs/promote.py RUN_ID --dry-run                # say what would be judged

The trial's checkpoint and its prepared data must still be there. Figures of every judged patient go to the storage. How a
trial is judged is its system's: by its classes per patient, by its texts or pictures, or by its validation loss alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymed.job.job import JobOptions, Outcome, run


@dataclass(frozen=True)
class Promote(JobOptions):
    """Options of promoting a trial.

    Attributes:
        run_id: The trial's MLflow run id; or models:/NAME/VERSION, which gets the alias and is not judged again.
        step: Take its checkpoint at this optimizer step (0 = the best one).
        alias: Name that the model version gets; it moves from the version that has it (default: champion; none where a limit
            left patients out of training).
        licence: What the model card says about the terms of use.
        micro_batch: Slices that are predicted at once.
        workers: Ray actors that predict; 1 works in this process.
        bootstrap: Resamples of patients behind each interval.
    """

    run_id: str
    step: int = 0
    alias: str | None = None
    licence: str = ""
    micro_batch: int = 32
    workers: int = 1
    bootstrap: int = 1000


def main(options: Promote) -> Outcome:
    from raymed.registry.alias import CHAMPION, move_alias, require_alias
    from raymed.registry.assessment import AssessmentSettings
    from raymed.registry.candidate import Candidate
    from raymed.registry.promotion import Promotion
    from raymed.tracking.tracker import Tracker

    require_alias(options.alias)
    tracker = Tracker.open(options.tracking)
    if options.run_id.startswith("models:/"):
        return move_alias(tracker, options.run_id, options.alias or CHAMPION, options.dry_run)
    candidate = Candidate.of_run(tracker, options.run_id, options.step)
    promotion = Promotion(tracker, candidate, options.alias, options.licence)
    if options.dry_run:
        return promotion.describe()
    return promotion.run(options.folder, AssessmentSettings(options.micro_batch, options.workers, options.bootstrap))


if __name__ == "__main__":
    run(Promote, main, positional=True)
