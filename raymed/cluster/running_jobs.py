"""Jobs that were submitted to a cluster, and run: told to end before their machines do."""

from __future__ import annotations

import time

from ray.job_submission import JobStatus, JobSubmissionClient

from raymed.errors import UserError

PERIOD = 1.0  # seconds between two looks


def end_all(address: str, seconds: float) -> list[str]:
    """Tell each to end, as `ray job stop` does, and wait: a search saves checkpoints first, and MLflow gets the rest.

    Returns:
        Their names.

    Raises:
        UserError: no cluster is there, or one of them has not ended in time.
    """
    try:
        client = JobSubmissionClient(address)
        running = [job.submission_id for job in client.list_jobs() if job.submission_id and not job.status.is_terminal()]
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"no cluster takes jobs at {address}: {str(error).splitlines()[0]}") from error
    for name in running:
        client.stop_job(name)
    until = time.monotonic() + seconds
    for name in running:
        while not _has_ended(client.get_job_status(name)):
            if time.monotonic() > until:
                raise UserError(f"the job {name} has not ended within {seconds:.0f} s: look at `ray job logs {name}`")
            time.sleep(PERIOD)
    return running


def _has_ended(status: JobStatus) -> bool:
    return bool(status.is_terminal())
