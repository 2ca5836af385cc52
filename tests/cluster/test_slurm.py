"""A search in allocations of a real SLURM, on the hosts of a lab: out of time, cancelled, and gone on with."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import write_prepared
from lab import Host, Lab, missing, wait_for
from search_record import reports, summary, with_a_checkpoint
from slurm import Slurm, lacking

REPOSITORY = Path(__file__).parent.parent.parent
WHY_NOT = missing() or lacking()
WHY_NOT = WHY_NOT or ("" if os.environ.get("RAYMED_LAB") else "takes minutes and needs root: `make cluster-test` runs it")
TRIALS, EPOCHS = 3, 30  # a node has CPUs for two trials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


@dataclass
class Allocation:
    """cluster.slurm with its FILL INs filled in, and who may run it."""

    slurm: Slurm
    file: Path

    @property
    def nodes(self) -> list[Host]:
        return self.slurm.lab.hosts[1:]

    @property
    def search(self) -> Path:
        return self.slurm.lab.folder / "storage" / "night"

    def submit(self, job: str) -> str:
        """The number of the job."""
        log = self.slurm.lab.folder / "%j.log"
        # /tmp/ray is what each host has of /tmp for itself
        typed = f"cd {REPOSITORY} && TMPDIR=/tmp/ray sbatch --parsable --output={log} {self.file} {job}"
        return self.slurm.typed(typed).strip()

    def log(self, job: str) -> str:
        return (self.slurm.lab.folder / f"{job}.log").read_text()

    def wait_for(self, job: str, state: str, seconds: float = 300) -> None:
        try:
            wait_for(lambda: self.slurm.state(job) == state, seconds, f"{state} of job {job}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.slurm.state(job)}\n{self.log(job)}") from None

    def wait_for_search(self, job: str, more_than: int) -> None:
        """Until it has reported more epochs than that, and every trial has a checkpoint."""

        def goes_on() -> bool:
            assert self.slurm.state(job).split()[0] in ("PENDING", "RUNNING", "COMPLETING"), self.log(job)
            return with_a_checkpoint(self.search) == TRIALS and sum(reports(self.search).values()) > more_than

        wait_for(goes_on, 300, "the search")


@pytest.fixture(scope="module")
def allocation() -> Iterator[Allocation]:
    folder = Path(tempfile.mkdtemp(prefix="raymed-lab-", dir="/var/tmp"))
    with Lab(folder, 3) as lab, Slurm(lab) as slurm:
        file = folder / "cluster.slurm"
        file.write_text(fill_in((REPOSITORY / "cluster.slurm").read_text(), folder / "storage"))
        yield Allocation(slurm, file)
    shutil.rmtree(folder)


def fill_in(text: str, storage: Path) -> str:
    for before, after in (
        ("/mnt/YOUR-FOLDER", str(storage)),
        ("--cpus-per-task=8 ", "--cpus-per-task=2 "),
        ("--mem=64G ", "--mem=4G "),
    ):
        assert before in text
        text = text.replace(before, after)
    return re.sub(r"#SBATCH --gpus-per-node=.*\n", "", text)


def test_the_doctor_hears_from_slurm_what_it_cannot_give(allocation: Allocation) -> None:
    """These hosts have no GPUs, which the file as it comes asks for."""
    looks = f"cd {REPOSITORY} && source .venv/bin/activate && python jobs/doctor.py --cluster"
    as_it_comes = allocation.slurm.attempt(f"{looks} cluster.slurm")
    assert as_it_comes.returncode == 2
    assert "fill in line" in as_it_comes.stdout and "to mend: storage, SLURM" in as_it_comes.stdout
    ready = allocation.slurm.typed(f"{looks} {allocation.file}")
    assert ready.splitlines()[-1] == "ready" and "processors on nodes h[1-2]" in ready


def test_a_search_runs_out_of_time_and_is_cancelled_and_loses_nothing_beside_a_ray_of_somebody_else(
    allocation: Allocation,
) -> None:
    slurm, (first, _) = allocation.slurm, allocation.nodes
    started = first.run("ray get-auth-token --generate && ray start --head --num-cpus 1")
    assert started.returncode == 0, started.stdout + started.stderr
    data = write_prepared(slurm.lab.folder / "data")
    words = f"python jobs/tune_lung.py --name night --data {data.folder.uri} --trials {TRIALS} --max-epochs {EPOCHS} --json"
    words += " --search.halving.first_rung 0"
    job = allocation.submit(words)
    allocation.wait_for_search(job, 0)
    used: set[str] = set()

    def all_are_used() -> bool:
        used.update(host.name for host in allocation.nodes if host.running("ray::RayTrainWorker"))
        return len(used) == len(allocation.nodes)

    wait_for(all_are_used, 300, "a trial on each machine of the allocation")
    # what SLURM does by itself, three minutes before the allocation's end
    slurm.typed(f"scancel --batch --signal=USR1 {job}")
    wait_for(lambda: slurm.state(job).endswith(" 1"), 200, "the job in line again")
    saved = reports(allocation.search)
    assert set(saved.values()) == {1} and "stopping: runs under way save a checkpoint first" in allocation.log(job)
    allocation.wait_for_search(job, saved.total())
    slurm.typed(f"scancel {job}")  # with no word to the search
    allocation.wait_for(job, "CANCELLED 1")
    assert set((reports(allocation.search) - saved).values()) == {1}, "an epoch was lost and trained again"
    before = reports(allocation.search)
    assert before.total() < TRIALS * EPOCHS
    again = allocation.submit(words)
    allocation.wait_for(again, "COMPLETED 0", 600)
    assert summary(allocation.log(again))["states"] == {"COMPLETE": TRIALS, "PRUNED": 0, "FAIL": 0}
    after = reports(allocation.search)
    assert len(after) == TRIALS * EPOCHS and max(after.values()) <= 2
    assert sum(count - 1 for count in after.values()) <= TRIALS, "more than what was under way was trained again"
    for host in allocation.nodes:
        assert not host.running("/tmp/ray/raymed-"), "a Ray's processes name its folder"
        left = list(Path(host.home.parent / "ray").glob("raymed-*"))
        assert len(left) <= 1, "more than the folder of the job that was cancelled without a word"
    assert first.run("ray status --address 127.0.0.1:6379").returncode == 0, "somebody else's Ray was ended"
