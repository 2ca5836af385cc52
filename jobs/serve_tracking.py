"""Serve MLflow on this machine only, and keep a copy of its database in the storage.

    python jobs/serve_tracking.py                                    # http://127.0.0.1:5000, until SIGTERM or Ctrl-C
    python jobs/serve_tracking.py --storage s3://bucket/raymed

cluster.yaml runs it on the head. A new head goes on with the copy that the lost one left.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raymed.job.job import JobOptions, Outcome, run
from raymed.tracking.server import answers, end_left_over, serve


@dataclass(frozen=True, kw_only=True)
class ServeTracking(JobOptions):
    """Options of the tracking server.

    Attributes:
        database: SQLite file of MLflow, on a local disk.
        port: Port on the loopback address.
        copy_seconds: Seconds between two looks at whether the database has to be copied again.
    """

    database: str = "~/.raymed/tracking/mlflow.db"
    port: int = 5000
    copy_seconds: float = 30.0


def main(options: ServeTracking) -> Outcome:
    address = f"http://127.0.0.1:{options.port}"
    database = Path(options.database).expanduser().absolute()
    if not options.dry_run:
        end_left_over(database, options.port)
    if answers(options.port):
        return Outcome(f"an MLflow server answers at {address} already", {"address": address, "copies": 0})
    if options.dry_run:
        return Outcome(f"would serve {options.database} at {address}", {"address": address, "copies": 0})
    copies = serve(database, options.folder, options.port, options.copy_seconds)
    return Outcome(f"served at {address}; the database was copied {copies} times", {"address": address, "copies": copies})


if __name__ == "__main__":
    run(ServeTracking, main)
