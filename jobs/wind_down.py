"""Before `ray down`: end what runs on this machine's cluster, and wait until it has saved what it is at.

    python jobs/wind_down.py        # on the head; `make down` types it there, and `ray down` after it

Submitted jobs save checkpoints, and MLflow's database is copied to the storage a last time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raymed.job.job import JobOptions, Outcome, run


@dataclass(frozen=True, kw_only=True)
class WindDown(JobOptions):
    """Options of a head's end.

    Attributes:
        address: Where the cluster takes jobs.
        database: SQLite file of the MLflow server that jobs/serve_tracking.py runs here.
        seconds: How long jobs and server may take to end.
    """

    address: str = "http://127.0.0.1:8265"
    database: str = "~/.raymed/tracking/mlflow.db"
    seconds: float = 300.0


def main(options: WindDown) -> Outcome:
    if options.dry_run:
        return Outcome(f"would end the jobs at {options.address}, and the server of {options.database}", {})
    from raymed.cluster.running_jobs import end_all
    from raymed.tracking.server import end_serving

    ended = end_all(options.address, options.seconds)
    is_copied = end_serving(Path(options.database).expanduser().absolute(), options.seconds)
    served = "MLflow's database was copied" if is_copied else "no MLflow server was running here"
    return Outcome(f"{len(ended)} jobs ended; {served}", {"jobs": ended, "copied": is_copied})


if __name__ == "__main__":
    run(WindDown, main)
