"""`ray up cluster.yaml` rehearsed: Ray's own steps, from the launch of the head to a worker that its autoscaler set up.

moto plays AWS. A machine is a folder with a home, a /tmp and a /var/tmp of its own; `ssh` and `rsync` reach it as they would
reach a host, and what the file's commands start there (dnf, make, ray, ...) are programs that write down how they were
called. The shell, its quoting and all that Ray does are real.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml
from aws_account import TEMPLATE, deployed
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from moto import mock_aws
from ray.autoscaler._private.autoscaler import StandardAutoscaler
from ray.autoscaler._private.aws.utils import client_cache, resource_cache
from ray.autoscaler._private.commands import create_or_update_cluster
from ray.autoscaler._private.load_metrics import LoadMetrics
from ray.scripts.scripts import cli
from seen import show

from raymed.cluster.autoscaler import TRIES, in_words, set_ups

REPOSITORY = TEMPLATE.parent
CONFIG = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
REGION: str = CONFIG["provider"]["region"]
SECONDS = 240  # for all that Ray does with a machine
TYPES = {name: each["node_config"]["InstanceType"] for name, each in CONFIG["available_node_types"].items()}
NAMES = {machine: name for name, machine in TYPES.items()}
GPU = {"CPU": 8, "GPU": 1}  # what a trial's worker asks for
FIRST, SECOND, *_ = (TYPES[name] for name in TYPES if name != CONFIG["head_node_type"])  # of the first, AWS has none

NAMESPACE = ["unshare", "--map-root-user", "--mount", "bash", "-ec"]
CAN = (
    shutil.which("unshare") and not subprocess.run([*NAMESPACE, "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not CAN, reason="this system lets nobody give a machine folders of its own"),
]

SSH = """#!/bin/bash
while [[ $1 != *@* ]]; do shift; done
machine={machines}/${{1#*@}}; shift
[ -d $machine ] || cp -r {image} $machine
exec {namespace} '
  for folder in home:/mnt var:/var/tmp tmp:/tmp; do mount --bind $0/${{folder%%:*}} ${{folder#*:}}; done; cd /mnt
  exec env -i HOME=/mnt PATH=/usr/bin:/bin TERM=dumb bash -c "$1"' $machine "$*"
"""
RSYNC = """#!/bin/bash
source=${{@: -2:1}}; target=${{@: -1}}; machine={machines}/${{target#*@}}; machine=${{machine%%:*}}
cp -rT $source $machine/home/${{target#*:\\~/}}
"""
CALLED = 'echo "$(basename $0) $*" >> ~/called\n'
PROGRAMS = {  # of a machine
    "sudo": '"$@"',
    "dnf": "",
    "make": "mkdir -p ~/raymed/.venv/bin; echo export VIRTUAL_ENV=~/raymed/.venv > ~/raymed/.venv/bin/activate",
    "pip": '[ -n "$VIRTUAL_ENV" ]',  # Ray's own: boto3 for the head
    "python": "",
    "curl": "echo OK",  # MLflow is there, and, to whoever asks AWS, a spot notice
    "shutdown": "",
    "pgrep": "exit 1",
    "nvidia-smi": "[ ! -e ~/ray_bootstrap_config.yaml ]",  # the head has no card
    "ray": "env | sort > ~/environment-of-ray-$1; mkdir -p $TMPDIR/ray/session_latest/logs",
}


@dataclass
class Machine:
    """A machine that was launched, as a folder."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def called(self) -> list[str]:
        """What was started there, as it was typed."""
        return (self.home / "called").read_text().splitlines()

    @property
    def environment(self) -> dict[str, str]:
        """What `ray start` was started with."""
        return dict(
            line.split("=", 1) for line in (self.home / "environment-of-ray-start").read_text().splitlines() if "=" in line
        )

    def run(self, command: str) -> str:
        """What a person types there."""
        mounts = "mount --bind $0/home /mnt; mount --bind $0/var /var/tmp; mount --bind $0/tmp /tmp"
        return subprocess.run(
            [*NAMESPACE, f"{mounts}; {command}", str(self.folder)], capture_output=True, text=True, check=True
        ).stdout


@dataclass
class Night:
    """A cluster that was rehearsed."""

    file: Path
    head: Machine
    worker: Machine
    autoscaler: StandardAutoscaler
    told: list[str]  # of its machines, to a person at the job
    image: Path  # what is on a machine when it is launched


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    folder = tmp_path_factory.mktemp("night")
    machines, image, person = folder / "machines", folder / "image", folder / "person"
    for each in (machines, image / "home" / "bin", image / "tmp", image / "var", person / ".ray", person / "bin"):
        each.mkdir(parents=True)
    (image / "home" / ".bashrc").write_text("PATH=~/bin:$PATH\n")
    for name, line in PROGRAMS.items():
        program(image / "home" / "bin" / name, f"#!/bin/bash\n{CALLED}{line}\n")
    words = " ".join(NAMESPACE)
    program(person / "bin" / "ssh", SSH.format(machines=machines, image=image, namespace=words))
    program(person / "bin" / "rsync", RSYNC.format(machines=machines))
    (person / ".ray" / "auth_token").write_text("a token")
    with pytest.MonkeyPatch.context() as environment, mock_aws():
        environment.setenv("HOME", str(person))
        environment.setenv("PATH", f"{person}/bin:{os.environ['PATH']}")
        environment.delenv("AWS_PROFILE", raising=False)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "made-up")
        environment.chdir(person)
        for cache in (client_cache, resource_cache):
            cache.cache_clear()
        file = fill_in(person, deployed(REGION))
        create_or_update_cluster(str(file), None, None, False, False, True, no_config_cache=True)
        head = Machine(machines / address("head", "PublicIpAddress"))
        environment.setenv("HOME", str(head.home))
        for name in ("RAY_enable_autoscaler_v2", "RAY_AUTOSCALER_UTILIZATION_SCORER"):
            environment.setenv(name, head.environment[name])
        environment.setattr(BaseClient, "_make_api_call", without_capacity(FIRST))
        loads: Any = LoadMetrics()
        loads.set_resource_requests([GPU])
        nobody: Any = SimpleNamespace()
        config = str(head.home / "ray_bootstrap_config.yaml")
        autoscaler = StandardAutoscaler(config, loads, nobody, update_interval_s=0)
        told = scale_up(autoscaler)
        assert not autoscaler.num_failed_updates
        yield Night(file, head, Machine(machines / address("worker", "PrivateIpAddress")), autoscaler, told, image)


def without_capacity(machine: str) -> Any:
    """AWS, when it has no machine of a type."""
    usual = BaseClient._make_api_call

    def call(self: BaseClient, operation: str, words: dict[str, Any]) -> Any:
        if operation == "RunInstances" and words["InstanceType"] == machine:
            reason = {"Code": "InsufficientInstanceCapacity", "Message": f"there is no {machine} now"}
            raise ClientError({"Error": reason}, operation)
        return usual(self, operation, words)

    return call


def program(path: Path, content: str) -> None:
    path.write_text(content)
    path.chmod(0o755)


def fill_in(folder: Path, outputs: dict[str, str]) -> Path:
    """cluster.yaml as a person fills it in, beside the archive of this checkout that the doctor writes."""
    image = boto3.client("ec2", region_name=REGION).describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    text = (REPOSITORY / "cluster.yaml").read_text()
    for value, filled in (("ami", image), ("sg", outputs["SecurityGroup"])):
        text = re.sub(rf"\b{value}-[0-9a-f]{{17}}\b", filled, text)
    text = re.sub(r"s3://[\w-]+/", f"s3://{outputs['Bucket']}/", text)
    (folder / "cluster.yaml").write_text(text)
    (folder / "Makefile").write_text("setup:\n")
    subprocess.run(["tar", "-czf", "raymed.tar.gz", "Makefile"], cwd=folder, check=True)
    return folder / "cluster.yaml"


def address(kind: str, name: str) -> str:
    filters = [{"Name": "tag:ray-node-type", "Values": [kind]}, {"Name": "instance-state-name", "Values": ["running"]}]
    (group,) = boto3.client("ec2", region_name=REGION).describe_instances(Filters=filters)["Reservations"]
    found: str = group["Instances"][0][name]
    return found


def scale_up(autoscaler: StandardAutoscaler, until: Callable[[], object] = lambda: False) -> list[str]:
    """The head's autoscaler, with what `ray up` left it, is asked until one more worker is ready.

    Returns:
        What a job would say of it meanwhile, each line once.
    """
    told: list[str] = []
    end, ready = time.monotonic() + SECONDS, len(autoscaler.num_successful_updates)
    while len(autoscaler.num_successful_updates) == ready and not until():
        assert time.monotonic() < end, f"nothing came of it: {told}"
        for node in autoscaler.num_successful_updates:  # whose Rays, being none, are heard of by nobody
            autoscaler.load_metrics.mark_active(autoscaler.provider.internal_ip(node))
        autoscaler.update()
        if (summary := autoscaler.summary()) is not None:
            failed = {kind: (tries, failure) for kind, (tries, _, failure) in set_ups().failed.items()}
            words = in_words(json.loads(json.dumps(asdict(summary))), failed)
            told += [line for line in words if line not in told]
        time.sleep(0.5)
    return told


def test_a_person_reads_which_machine_there_is_none_of_and_which_is_on_its_way(
    night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = next(line for line in night.told if line.startswith(f"no {NAMES[FIRST]}: InsufficientInstanceCapacity: "))
    assert f"there is no {FIRST} now" in refused
    coming = next(line for line in night.told if line == f"on their way: 1 x {NAMES[SECOND]}")
    show([(f"AWS has no {FIRST}", refused), ("", coming)], capsys)


def test_every_machine_has_the_checkout_the_token_and_the_models_before_ray_starts(night: Night) -> None:
    for machine, lock in ((night.head, ""), (night.worker, " LOCK=requirements.gpu.lock")):
        assert (machine.home / "raymed" / "Makefile").read_text() == "setup:\n"
        token = machine.home / ".ray" / "auth_token"
        assert token.read_text() == "a token" and token.stat().st_mode & 0o077 == 0
        first = (
            "dnf install -y python3.11",
            f"make -C /mnt/raymed setup{lock}",
            "python /mnt/raymed/jobs/copy",
            "ray start",
        )
        order = [next(place for place, line in enumerate(machine.called) if line.startswith(words)) for words in first]
        assert order == sorted(order)
        (copy,) = (line for line in machine.called if "copy_models.py" in line)
        assert re.fullmatch(r"python \S+ --source s3://raymed-bucket-\w+/models --out /mnt/models", copy)


def test_ray_is_started_with_what_the_file_says_on_head_and_worker(night: Night) -> None:
    for machine in (night.head, night.worker):
        environment = machine.environment
        assert environment["TMPDIR"] == "/var/tmp" and "OMP_NUM_THREADS" not in environment
        assert environment["RAY_enable_autoscaler_v2"] == "0" and environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAYMED_MODELS"] == "/mnt/models" and environment["RAYMED_CAPACITY"].startswith("CPU=")
        assert environment["RAYMED_STORAGE"].startswith("s3://raymed-bucket-")
    start = next(line for line in night.head.called if line.startswith("ray start"))
    assert start.startswith("ray start --head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config=")
    (start,) = (line for line in night.worker.called if line.startswith("ray start"))
    words = dict(word.split("=") for word in start.split()[2:])
    assert words == {
        "--address": f"{address('head', 'PrivateIpAddress')}:6379",
        "--object-store-memory": str(8 << 30),
    }


def test_a_worker_that_aws_takes_back_is_drained_and_ends(night: Night, capsys: pytest.CaptureFixture[str]) -> None:
    until = time.monotonic() + SECONDS
    while "shutdown -h now" not in night.worker.called:
        assert time.monotonic() < until, night.worker.called
        time.sleep(0.1)
    (drained,) = (line for line in night.worker.called if line.startswith("ray drain-node"))
    assert f"--address {address('head', 'PrivateIpAddress')}:6379 --reason DRAIN_NODE_REASON_PREEMPTION" in drained
    assert "shutdown -h now" not in night.head.called and not any("drain" in line for line in night.head.called)
    show([("a spot notice", drained), ("", "shutdown -h now")], capsys)


def test_the_head_serves_mlflow_before_ray_and_waits_for_its_answer(night: Night) -> None:
    places = [
        next(place for place, line in enumerate(night.head.called) if words in line)
        for words in ("jobs/serve_tracking.py --port 5001", "curl -sf http://127.0.0.1:5001/health")
    ]
    assert places == sorted(places)
    assert not any("serve_tracking" in line for line in night.worker.called)


def test_what_ray_advises_to_look_at_is_there_though_its_files_lie_elsewhere(night: Night) -> None:
    """`ray monitor` reads below /tmp, which AWS keeps in memory."""
    for machine in (night.head, night.worker):
        assert machine.run("ls -d /tmp/ray/session_latest/logs; readlink /tmp/ray").split()[-1] == "/var/tmp/ray"


def test_a_shell_of_a_person_has_the_environment_too(night: Night) -> None:
    said = night.head.run("HOME=/mnt bash --login -ic 'source ~/.bashrc; echo $RAYMED_STORAGE' 2> /dev/null")
    assert said.startswith("s3://")
    assert night.head.run("grep -c raymed.env /mnt/.bashrc") == "1\n"


@pytest.fixture
def tried(night: Night) -> list[str]:
    """What a job would say of a second worker, whose set-up fails each time."""
    program(night.image / "home" / "bin" / "make", "#!/bin/bash\nexit 2\n")
    autoscaler: Any = night.autoscaler
    autoscaler.load_metrics.set_resource_requests([GPU, GPU])
    told = scale_up(autoscaler, lambda: len(autoscaler.num_failed_updates) == TRIES)
    return told + scale_up(autoscaler, in_seconds(10))


def test_a_type_whose_set_up_fails_is_tried_three_times_and_not_for_ever_and_that_is_said(
    night: Night, tried: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(night.autoscaler.num_failed_updates) == TRIES
    assert not night.autoscaler.pending_launches.breakdown()[NAMES[SECOND]]
    lines = list(dict.fromkeys(line for line in tried if NAMES[SECOND] in line and "failed" in line))
    assert [line.partition(": ")[0] for line in lines] == [
        *(f"the set-up of {NAMES[SECOND]} failed (try {number} of {TRIES})" for number in range(1, TRIES)),
        f"no {NAMES[SECOND]} any more",
    ]
    assert all(re.search(r"`make -C ~/raymed setup .*` ended with status 2", line) for line in lines), lines
    show([("a set-up that fails", lines[0]), *(("", line) for line in lines[1:])], capsys)


def in_seconds(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def test_the_worker_is_a_spot_machine_that_ends_by_itself_and_nothing_runs_after_make_down(
    night: Night,
) -> None:
    ec2 = boto3.client("ec2", region_name=REGION)
    filters = [{"Name": "tag:ray-node-type", "Values": ["worker"]}]
    (worker,) = ec2.describe_instances(Filters=filters)["Reservations"][0]["Instances"]
    assert (worker["InstanceLifecycle"], worker["InstanceType"]) == ("spot", SECOND)
    behaviour = ec2.describe_instance_attribute(
        InstanceId=worker["InstanceId"], Attribute="instanceInitiatedShutdownBehavior"
    )
    assert behaviour["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"
    down = ["make", "--dry-run", "down", f"CLUSTER={night.file}"]
    said = subprocess.run(down, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^\S+/ray .*", said, re.MULTILINE)
    assert len(lines) == 2
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOME", str(night.file.parent))
        environment.chdir(night.file.parent)
        for line in lines:
            cli(shlex.split(line)[1:], standalone_mode=False)
    called = night.head.called
    (saved,) = (place for place, line in enumerate(called) if line == "python /mnt/raymed/jobs/wind_down.py")
    assert any(line.startswith("ray stop") for line in called[saved:]), "jobs save what they are at while there is a Ray"
    running = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    assert ec2.describe_instances(Filters=running)["Reservations"] == []
