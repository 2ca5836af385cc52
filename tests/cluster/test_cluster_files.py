"""The cluster files, as far as they can be tried without machines: Ray's own checks, and AWS played by moto."""

from __future__ import annotations

import re
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.event_summarizer import EventSummarizer
from ray.autoscaler._private.node_launcher import BaseNodeLauncher
from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
from ray.autoscaler._private.prom_metrics import AutoscalerPrometheusMetrics
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler
from ray.autoscaler._private.util import ConcurrentCounter, prepare_config, validate_config, with_envs
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    TAG_RAY_CLUSTER_NAME,
    TAG_RAY_NODE_KIND,
    TAG_RAY_USER_NODE_TYPE,
)

from raymed.cluster.connection import capacity
from raymed.tracking.server import COPY

REPOSITORY = Path(__file__).parent.parent.parent
FILES = ("cluster.yaml", "cluster.local.yaml")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / name).read_text())


def programs(folder: Path, lines: Mapping[str, str]) -> dict[str, str]:
    """An environment in which each of these programs is the shell lines given."""
    for program, content in lines.items():
        (folder / program).write_text(f"#!/bin/bash\n{content}\n")
        (folder / program).chmod(0o755)
    return {"HOME": str(folder), "PATH": f"{folder}:/usr/bin:/bin"}


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name: str) -> None:
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize("name", FILES)
def test_every_node_gets_the_token_and_asks_for_it(name: str) -> None:
    config = load(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert any("export RAY_AUTH_MODE=token" in line for line in config["setup_commands"])
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2 and all(line.startswith("source ~/raymed.env && ") for line in starts)


@pytest.mark.parametrize("name", FILES)
def test_nothing_listens_beyond_loopback_but_ray_itself(name: str) -> None:
    lines = load(name)["head_start_ray_commands"]
    assert sum("--dashboard-host=127.0.0.1" in line for line in lines) == 1
    assert not any("0.0.0.0" in line for line in lines)


@pytest.mark.parametrize("name", FILES)
def test_shell_commands_parse(name: str) -> None:
    config = load(name)
    for line in [line for key, lines in config.items() if key.endswith("_commands") for line in lines]:
        done = subprocess.run(["bash", "-n", "-c", f"( {line} )"], capture_output=True, text=True)
        assert done.returncode == 0, line + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_jobs_know_storage_and_tracking_address(name: str) -> None:
    environment = "\n".join(load(name)["setup_commands"])
    assert "RAYMED_STORAGE=" in environment and "MLFLOW_TRACKING_URI=http://127.0.0.1:5001" in environment


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("exit_code", "chosen"), [(0, " LOCK=requirements.gpu.lock"), (9, ""), (127, "")])
def test_a_machine_with_a_gpu_installs_from_the_lock_with_cuda(
    name: str, exit_code: int, chosen: str, tmp_path: Path
) -> None:
    """`make` and `nvidia-smi` are programs here; the latter fails where there is no card."""
    environment = programs(tmp_path, {"make": "echo make $*", "nvidia-smi": f"echo GPU 0; exit {exit_code}"})
    (command,) = (line for line in load(name)["setup_commands"] if "make -C" in line)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, f"make -C {tmp_path}/raymed setup{chosen}\n")


def locked(name: str) -> dict[str, str]:
    """Versions by the names of packages."""
    lines = [line for line in (REPOSITORY / name).read_text().splitlines() if not line.startswith("#")]
    return {str(canonicalize_name(package)): version for package, version in (line.split("==") for line in lines)}


def test_the_locks_agree_on_what_both_hold_and_each_has_its_faiss() -> None:
    """A head without a GPU and workers with one send each other objects of the same libraries."""
    usual, gpu = (locked(lock) for lock in ("requirements.lock", "requirements.gpu.lock"))
    both = usual.keys() & gpu.keys()
    assert {name: usual[name] for name in both} == {name: gpu[name] for name in both}
    assert len(usual.keys() - both) < 60, "development tools, and faiss-cpu"
    assert {"ray", "torch", "deepspeed", "transformers", "mlflow", "nvidia-nccl-cu13"} <= gpu.keys()
    faiss = [{name for name in lock if name.startswith("faiss")} for lock in (usual, gpu)]
    assert faiss == [{"faiss-cpu"}, {"faiss-gpu"}]
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["gpu"], *extras["weights"]]:
        requirement = Requirement(text)
        assert gpu[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_the_stated_capacity_is_what_the_cluster_can_grow_to(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("cluster.yaml")
    stated = re.search(r"export .*RAYMED_CAPACITY=(\S+)", "\n".join(config["setup_commands"]))
    assert stated is not None
    monkeypatch.setenv("RAYMED_CAPACITY", stated[1])
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])["resources"]
    assert len(types) > 1
    for worker in types.values():
        machines = {name: worker["resources"][name] * config["max_workers"] for name in ("CPU", "GPU")}
        assert {name: machines[name] + head.get(name, 0) for name in machines} == capacity({})


@pytest.mark.parametrize("name", FILES)
def test_ray_starts_with_the_older_autoscaler_a_thread_for_each_cpu_and_its_files_on_a_disk(
    name: str, tmp_path: Path
) -> None:
    """`ray up` exports the contrary before each command. `ray` is a program here that shows what it was started with."""
    config, disk = load(name), "/var/tmp" if name == "cluster.yaml" else "/tmp"  # AWS keeps /tmp in memory
    (tmp_path / "raymed" / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "raymed" / ".venv" / "bin" / "activate").write_text(f"PATH={tmp_path}:$PATH\n")
    (tmp_path / "ray").write_text(
        "#!/bin/bash\necho $1 v2=$RAY_enable_autoscaler_v2 threads=${OMP_NUM_THREADS-unset} ${TMPDIR-/tmp}\n"
    )
    (tmp_path / "ray").chmod(0o755)
    (writes,) = (line for line in config["setup_commands"] if "cat > ~/raymed.env" in line)
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line]
    for command in (writes, *with_envs(starts, {"RAY_enable_autoscaler_v2": "1"})):
        line = " ".join(_with_interactive(command)).replace(" --login -c -i ", " -c ")
        done = subprocess.run(
            line, shell=True, capture_output=True, text=True, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        )
        assert done.returncode == 0, done.stderr
        assert command == writes or done.stdout == f"start v2=0 threads=unset {disk}\n"


def test_the_autoscaler_takes_the_other_type_while_the_first_cannot_be_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's scheduler and launcher; only the cloud that has no machine is played."""
    config = load("cluster.yaml")
    types, head = config["available_node_types"], config["head_node_type"]
    named = re.search(r"RAY_AUTOSCALER_UTILIZATION_SCORER=(\S+)", "\n".join(config["setup_commands"]))
    assert named is not None
    asked: list[str] = []

    class Empty(NodeProvider):
        def create_node_with_resources_and_labels(self, node_config: Any, tags: dict[str, str], *_: Any) -> None:
            asked.append(tags[TAG_RAY_USER_NODE_TYPE])
            raise NodeLaunchException("InsufficientInstanceCapacity", "there is no spot capacity", None)

    def wanted() -> dict[str, int]:
        scheduler = ResourceDemandScheduler(provider, types, config["max_workers"], head, config["upscaling_speed"])
        return scheduler.get_nodes_to_launch([], {head: 1}, [{"CPU": 8, "GPU": 1}] * 3, {}, [], {}, [], tracker.summary())[0]

    provider, tracker = Empty(config["provider"], "raymed"), NodeProviderAvailabilityTracker()
    metrics = AutoscalerPrometheusMetrics("made-up")
    launcher = BaseNodeLauncher(provider, ConcurrentCounter(), EventSummarizer(), tracker, None, metrics, types)
    (first,) = wanted()
    launcher._launch_node(config, 1, first)
    assert asked == [first] and list(wanted()) == [first], "Ray now minds by itself: `raymed.autoscaler` can go"
    monkeypatch.setenv("RAY_AUTOSCALER_UTILIZATION_SCORER", named[1])
    (second,) = wanted()
    assert {first, second} == types.keys() - {head}
    launcher._launch_node(config, 1, second)
    assert list(wanted()) == [first], "with none to be had, the usual order holds"


def test_a_worker_whose_head_is_gone_ends_itself_and_no_other_does(tmp_path: Path) -> None:
    """Only the head ends machines: without one they would be paid for ever. A minute is a hundredth of a second here."""
    workers = [each for name, each in load("cluster.yaml")["available_node_types"].items() if name != "head"]
    (user_data,) = {each["node_config"]["UserData"] for each in workers}
    assert {each["node_config"]["InstanceInitiatedShutdownBehavior"] for each in workers} == {"terminate"}
    calls, ended = tmp_path / "calls", tmp_path / "ended"
    # Ray is there in the first 30 minutes but for the ten of its set-up, and gone from then on
    present = f"echo >> {calls}; minute=$(wc -l < {calls}); ((minute > 10 && minute <= 30))"
    environment = programs(tmp_path, {"sleep": "/usr/bin/sleep 0.01", "pgrep": present, "shutdown": f"echo $* > {ended}"})
    subprocess.run(["bash", "-c", user_data], env=environment, check=True)
    deadline = time.monotonic() + 60
    while not ended.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended.read_text() == "-h now\n"
    assert len(calls.read_text().splitlines()) == 50, "twenty minutes after it was last seen"


@pytest.mark.parametrize("name", FILES)
def test_a_head_whose_tracking_server_does_not_start_says_why_at_once(name: str, tmp_path: Path) -> None:
    """A wrong bucket was ten blind minutes."""
    (waits,) = (line for line in load(name)["head_start_ray_commands"] if "/health" in line)
    (tmp_path / "tracking.log").write_text("error: the bucket s3://YOUR-BUCKET does not exist\n")
    environment = programs(tmp_path, {"curl": "exit 7", "pgrep": "exit 1"})
    done = subprocess.run(["bash", "-c", f"( {waits} )"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "does not exist" in done.stdout
    environment = programs(tmp_path, {"curl": "exit 0", "pgrep": "exit 0"})
    done = subprocess.run(["bash", "-c", f"( {waits} )"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stdout


KEY = "arn:aws:kms:eu-central-1:123456789012:key/made-up"


@pytest.fixture
def account(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, str]]:
    """An account in which cluster.account.yaml was deployed, and its outputs; moto answers in this process."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "made-up")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the new key pair to ~/.ssh
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        stacks = boto3.client("cloudformation", region_name=load("cluster.yaml")["provider"]["region"])
        stacks.create_stack(
            StackName="raymed",
            TemplateBody=(REPOSITORY / "cluster.account.yaml").read_text(),
            Capabilities=["CAPABILITY_NAMED_IAM"],
            Parameters=[
                {"ParameterKey": name, "ParameterValue": value}
                for name, value in {"SshFrom": "192.0.2.0/24", **getattr(request, "param", {})}.items()
            ],
        )
        outputs = stacks.describe_stacks(StackName="raymed")["Stacks"][0]["Outputs"]
        yield {each["OutputKey"]: each["OutputValue"] for each in outputs}


@pytest.mark.slow
def test_aws_launches_an_on_demand_head_and_spot_workers_that_only_ssh_can_enter(
    account: dict[str, str], tmp_path: Path
) -> None:
    config = load("cluster.yaml")
    region = config["provider"]["region"]
    ec2 = boto3.client("ec2", region_name=region)
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    for node_type in config["available_node_types"].values():  # what a person fills in
        node_type["node_config"] |= {"ImageId": image, "SecurityGroupIds": [account["SecurityGroup"]]}
    ready = _bootstrap_config(config, no_config_cache=True)
    assert (tmp_path / ".ssh" / f"ray-autoscaler_{region}.pem").stat().st_mode & 0o077 == 0
    provider = _get_node_provider(ready["provider"], ready["cluster_name"])
    for name, node_type in ready["available_node_types"].items():
        kind = NODE_KIND_HEAD if name == ready["head_node_type"] else NODE_KIND_WORKER
        provider.create_node(node_type["node_config"], {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: name}, 1)
    found = [each for reservation in ec2.describe_instances()["Reservations"] for each in reservation["Instances"]]
    profiles = {each["InstanceType"]: each["IamInstanceProfile"]["Arn"].rsplit("/", 1)[1] for each in found}
    assert profiles == {"m7i.2xlarge": "raymed-head", "g6.2xlarge": "raymed-worker", "g5.2xlarge": "raymed-worker"}
    spot = {each["InstanceType"]: each.get("InstanceLifecycle") == "spot" for each in found}
    assert spot == {"m7i.2xlarge": False, "g6.2xlarge": True, "g5.2xlarge": True}
    groups = {group["GroupId"] for each in found for group in each["SecurityGroups"]}
    rules = [
        (rule["IpProtocol"], rule.get("FromPort"), [cidr["CidrIp"] for cidr in rule["IpRanges"]], inner["GroupId"])
        for group in ec2.describe_security_groups(GroupIds=list(groups))["SecurityGroups"]
        for rule in group["IpPermissions"]
        for inner in rule["UserIdGroupPairs"] or [{"GroupId": ""}]
    ]
    assert rules == [("tcp", 22, ["192.0.2.0/24"], ""), ("-1", None, [], account["SecurityGroup"])]


@pytest.mark.parametrize(
    ("account", "encryption", "allowed"),
    [({}, {"SSEAlgorithm": "AES256"}, []), ({"KmsKey": KEY}, {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": KEY}, [KEY])],
    indirect=["account"],
)
def test_the_bucket_is_encrypted_by_the_key_that_was_given_which_its_machines_may_use(
    account: dict[str, str], encryption: dict[str, str], allowed: list[str]
) -> None:
    region = load("cluster.yaml")["provider"]["region"]
    answer = boto3.client("s3", region_name=region).get_bucket_encryption(Bucket=account["Bucket"])
    (rule,) = answer["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == encryption
    roles = boto3.client("iam", region_name=region)
    for role in ("raymed-head", "raymed-worker"):
        usable = []
        for attached in roles.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
            version = roles.get_policy_version(PolicyArn=attached["PolicyArn"], VersionId="v1")["PolicyVersion"]
            statements = version["Document"]["Statement"]
            usable += [each["Resource"] for each in statements if "kms:GenerateDataKey" in each["Action"]]
        assert usable == allowed


def test_the_account_template_uses_nothing_that_cloudformation_refuses() -> None:
    text = (REPOSITORY / "cluster.account.yaml").read_text()
    assert not [token for token in yaml.scan(text) if isinstance(token, yaml.AnchorToken | yaml.AliasToken)]


class _Tags(yaml.SafeLoader):
    """Reads CloudFormation's functions as what they are applied to."""


def _function(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    assert isinstance(node, yaml.SequenceNode)
    return loader.construct_sequence(node, deep=True)


_Tags.add_multi_constructor("!", _function)


def template() -> dict[str, Any]:
    return yaml.load((REPOSITORY / "cluster.account.yaml").read_text(), _Tags)["Resources"]


def policies(role: str) -> list[dict[str, Any]]:
    """The statements of a role's own policies."""
    return [each for policy in template()[role]["Properties"]["Policies"] for each in policy["PolicyDocument"]["Statement"]]


def test_the_head_ends_and_tags_only_machines_of_its_cluster() -> None:
    for statement in policies("HeadRole"):
        actions = {statement["Action"]} if isinstance(statement["Action"], str) else {*statement["Action"]}
        if actions & {"ec2:TerminateInstances", "ec2:DeleteTags"}:
            assert statement["Condition"] == {"StringEquals": {f"aws:ResourceTag/{TAG_RAY_CLUSTER_NAME}": "ClusterName"}}
        if "ec2:RunInstances" in actions and "instance/*" in statement["Resource"]:
            assert statement["Condition"] == {"StringEquals": {f"aws:RequestTag/{TAG_RAY_CLUSTER_NAME}": "ClusterName"}}
        if any(action.startswith("ec2:") and action != "ec2:Describe*" for action in actions):
            assert statement["Resource"] != "*"


def test_a_worker_cannot_write_the_record_or_the_registry() -> None:
    """`raymed.tracking.server` keeps both beside the runs, in the storage."""
    (denied,) = policies("WorkerRole")
    assert denied["Effect"] == "Deny" and {"s3:PutObject", "s3:DeleteObject"} <= {*denied["Action"]}

    def is_denied(key: str) -> bool:
        return any(fnmatch(key, pattern.removeprefix("${Bucket.Arn}/")) for pattern in denied["Resource"])

    assert is_denied(f"raymed/{COPY}") and is_denied(COPY)
    assert is_denied("raymed/artifacts/1/models/model.safetensors")
    assert not is_denied("raymed/lung-3fa9c1-0/checkpoint_1/rank-0.pt")


def test_the_bucket_keeps_versions_takes_no_plain_http_and_drops_unfinished_uploads() -> None:
    bucket = template()["Bucket"]["Properties"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert any("AbortIncompleteMultipartUpload" in rule for rule in bucket["LifecycleConfiguration"]["Rules"])
    (statement,) = template()["BucketRules"]["Properties"]["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Principal"]) == ("Deny", "*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
