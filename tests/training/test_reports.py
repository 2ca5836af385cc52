"""The loss of a worker in our words, and from where its run goes on."""

from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from raymed.storage.folder import Folder
from raymed.training.checkpoint import new_name, publish
from raymed.training.preemption import Preempted
from raymed.training.reports import LOST, Reports
from raymed.training.step_log import STEPS


class Line:
    """A queue."""

    def __init__(self):
        self.put, self.entries = lambda entry: self.entries.append(entry), []


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        (
            {1: WorkerHealthCheckFailedError("as Ray Train says it", ActorDiedError())},
            "worker 1 was lost: its process was killed, or its machine is gone",
        ),
        ({0: UserExceptionWithTraceback(ValueError("no label\nmore"), "")}, "worker 0 failed (ValueError: no label)"),
        ({0: Preempted("told")}, "its machine is being taken away, and a checkpoint was saved"),
    ],
)
def test_a_lost_worker_is_told_in_one_line_with_the_step_that_its_run_goes_on_from(tmp_path, errors, words):
    for saved, step in enumerate((16, 32)):
        (state := tmp_path / f"state-{step}").mkdir()
        publish(state, Folder.at(tmp_path / "trial-0000"), new_name(step, saved))
    (tmp_path / "trial-0000" / new_name(48, 2)).mkdir()  # its worker was lost before it was whole
    queue = Line()
    run = SimpleNamespace(run_config=SimpleNamespace(storage_path=str(tmp_path), name="trial-0000"))
    reports = Reports(queue)
    reports.after_exception(run, errors)
    reports.after_report(run, [{"epoch": 2, STEPS: [{"global_step": 40}, {"global_step": 41}]}], None)
    reports.after_report(run, [{"epoch": 2}], None)
    reports.after_exception(run, errors)
    told = [entry[LOST] for entry in queue.entries if LOST in entry]
    assert told == [
        f"{words}; it goes on from step 32",
        f"{words}; its last word came from step 41, and it goes on from step 32",
    ]


def test_a_lost_worker_is_told_also_where_the_storage_does_not_answer(tmp_path):
    """A dead server takes both, and Ray Train heard of nothing but the storage."""
    (tmp_path / "trial-0000").write_text("no folder: it cannot be listed")
    queue = Line()
    run = SimpleNamespace(run_config=SimpleNamespace(storage_path=str(tmp_path), name="trial-0000"))
    Reports(queue).after_exception(run, {0: ActorDiedError()})
    assert queue.entries[0][LOST].endswith("trial-0000 answers again")
