"""cluster.slurm as SLURM runs it. `srun`, `scontrol` and `ray` are programs here that write down how they were called."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parent.parent.parent
CALLED = 'echo "$(basename $0) $*" >> {folder}/called\n'
PROGRAMS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"',
    "scontrol": "exit 0",
    "ray": """mkdir -p $TMPDIR/ray; echo 10.0.0.1:45678 > $TMPDIR/ray/ray_current_cluster
env > {folder}/environment-of-ray; echo This command will now block forever; exec sleep 600""",
    "job": "trap 'exit 130' TERM; touch {folder}/begun; while :; do sleep 0.05; done",
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is submitted from, with the programs of its environment."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    for name, content in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{CALLED}{content}\n".replace("{folder}", str(tmp_path)))
        (programs / name).chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    with tempfile.TemporaryDirectory(dir="/tmp") as site:  # shorter than pytest's
        (tmp_path / "site").symlink_to(site)
        yield tmp_path


@pytest.fixture
def batch(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A job in an allocation of two machines."""
    started = start(folder)
    yield started
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.communicate()


def start(folder: Path, site: Path | None = None) -> subprocess.Popen[str]:
    given = {"NNODES": "2", "CPUS_PER_TASK": "8", "GPUS_ON_NODE": "2", "MEM_PER_NODE": "65536", "JOB_ID": "7"}
    environment = {f"SLURM_{name}": value for name, value in given.items()} | {"SLURMD_NODENAME": "h1"}
    environment |= {"PATH": "/usr/bin:/bin", "TMPDIR": str(site or (folder / "site").resolve())}
    words = ["bash", str(REPOSITORY / "cluster.slurm"), "job", "--trials", "3 4"]
    return subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, batch: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert batch.poll() is None, batch.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def called(folder: Path, program: str) -> list[str]:
    return [line for line in (folder / "called").read_text().splitlines() if line.split()[0] == program]


def test_a_ray_takes_what_slurm_gave_the_job_and_no_port_that_another_one_may_have(
    batch: subprocess.Popen[str], folder: Path
) -> None:
    wait_for(folder / "begun", batch)
    head, other = (line.split() for line in called(folder, "ray"))
    for words in (head, other):
        assert {"--num-cpus=8", "--num-gpus=2", f"--object-store-memory={16 << 30}", "--block"} <= {*words}
        assert {"--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"} <= {*words}
    assert {"--head", "--port=0", "--include-dashboard=false"} <= {*head}
    (clients,) = (word for word in head if word.startswith("--ray-client-server-port="))
    assert int(clients.partition("=")[2]) not in (0, 10001), "Ray's usual one"
    assert "--address=10.0.0.1:45678" in other
    step = next(line for line in called(folder, "srun") if "--exclude=h1" in line)
    assert {"--nodes=1", "--ntasks=1", "--cpus-per-task=8"} <= {*step.split()}
    environment = environment_of_ray(folder)
    assert environment["RAY_AUTH_MODE"] == "token" and len(environment["RAY_AUTH_TOKEN"]) == 64
    assert (
        Path(environment["TMPDIR"]).parent == (folder / "site").resolve()
        and Path(environment["TMPDIR"]).stat().st_mode & 0o077 == 0
    )
    assert called(folder, "job") == ["job --trials 3 4"]


def environment_of_ray(folder: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (folder / "environment-of-ray").read_text().splitlines() if "=" in line)


def test_the_paths_of_rays_sockets_are_short_enough_whatever_the_site_s_folder(folder: Path) -> None:
    long = folder / ("job." * 8)
    long.mkdir()
    started = start(folder, long)
    try:
        wait_for(folder / "begun", started)
        assert Path(environment_of_ray(folder)["TMPDIR"]).parent == Path("/tmp")
    finally:
        started.send_signal(signal.SIGTERM)
        started.communicate(timeout=60)


@pytest.mark.parametrize(("told", "in_line_again"), [(signal.SIGUSR1, ["scontrol requeue 7"]), (signal.SIGTERM, [])])
def test_a_job_that_is_told_to_end_saves_and_waits_in_line_again_only_where_its_time_was_over(
    batch: subprocess.Popen[str], folder: Path, told: signal.Signals, in_line_again: list[str]
) -> None:
    """What was started is ended before, and what lay on the machines is gone: the same job may come back there at once."""
    wait_for(folder / "begun", batch)
    batch.send_signal(told)  # to the script alone, as --signal=B: says
    output, _ = batch.communicate(timeout=60)
    assert batch.returncode == 130, output
    assert called(folder, "scontrol") == in_line_again
    assert not list((folder / "site").glob("raymed-*"))


def test_a_job_that_ends_by_itself_ends_as_it_says_and_is_put_in_no_line(folder: Path) -> None:
    (folder / ".venv" / "bin" / "job").write_text("#!/bin/bash\nexit 2\n")
    batch = start(folder)
    output, _ = batch.communicate(timeout=60)
    assert (batch.returncode, called(folder, "scontrol")) == (2, []), output


def test_a_ray_that_a_busy_machine_does_not_start_in_time_is_started_again_and_that_is_said(folder: Path) -> None:
    ray = folder / ".venv" / "bin" / "ray"
    ray.write_text(ray.read_text().replace("\n", f"\n[ -e {folder}/slow ] || {{ touch {folder}/slow; exit 1; }}\n", 1))
    (folder / ".venv" / "bin" / "job").write_text("#!/bin/bash\nexit 0\n")
    batch = start(folder)
    output, _ = batch.communicate(timeout=60)
    assert batch.returncode == 0 and output.count("Ray did not start on") == 1 and "(try 1 of 3)" in output, output


def test_a_ray_that_does_not_start_says_why_and_the_job_is_not_begun(folder: Path) -> None:
    (folder / ".venv" / "bin" / "ray").write_text("#!/bin/bash\necho no room on /dev/shm >&2\nexit 1\n")
    batch = start(folder)
    output, _ = batch.communicate(timeout=60)
    assert batch.returncode == 1 and "no room on /dev/shm" in output and "(try 3 of 3)" in output
    assert not (folder / "begun").exists() and not list(folder.glob("raymed-*"))
