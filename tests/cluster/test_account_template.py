"""cluster.account.yaml, deployed in an account that moto plays: what its roles allow, and its watch."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from aws_account import TEMPLATE, Request, allows, deployed, requests_of, statements
from botocore.client import BaseClient
from moto import mock_aws
from ray.autoscaler._private.aws.utils import client_cache, resource_cache
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    TAG_RAY_CLUSTER_NAME,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from raymed.tracking.database_copy import LIST, PARTS
from raymed.tracking.server import COPY

CLUSTER = TEMPLATE.with_name("cluster.yaml")
REGION: str = yaml.safe_load(CLUSTER.read_text())["provider"]["region"]
KEY = f"arn:aws:kms:{REGION}:123456789012:key/made-up"


@pytest.fixture(scope="module")
def account(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An account in which cluster.account.yaml was deployed, and its outputs; moto answers in this process."""
    with pytest.MonkeyPatch.context() as environment, mock_aws():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            environment.setenv(name, "made-up")
        environment.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray writes the new key pair to ~/.ssh
        environment.setenv("AWS_DEFAULT_REGION", REGION)
        environment.delenv("AWS_PROFILE", raising=False)
        for cache in (client_cache, resource_cache):
            cache.cache_clear()
        yield deployed(REGION, **getattr(request, "param", {}))


@pytest.fixture(scope="module")
def filled_in(account: dict[str, str]) -> dict[str, Any]:
    """cluster.yaml, filled in and as `ray up` sends it to the head."""
    config = yaml.safe_load(CLUSTER.read_text())
    image = boto3.client("ec2", region_name=REGION).describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    for node_type in config["available_node_types"].values():
        node_type["node_config"] |= {"ImageId": image, "SecurityGroupIds": [account["SecurityGroup"]]}
    ready: dict[str, Any] = _bootstrap_config(config, no_config_cache=True)
    return ready


@pytest.fixture
def cluster(filled_in: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """It, with no machine that runs."""
    yield deepcopy(filled_in)
    if names := [each["InstanceId"] for each in machines()]:
        boto3.client("ec2", region_name=REGION).terminate_instances(InstanceIds=names)


def launch(cluster: dict[str, Any], *names: str) -> NodeProvider:
    """Launch a machine of each of these types, as Ray does; returns Ray's view of AWS."""
    provider = _get_node_provider(cluster["provider"], cluster["cluster_name"])
    for name in names:
        kind = NODE_KIND_HEAD if name == cluster["head_node_type"] else NODE_KIND_WORKER
        tags = {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: name}
        provider.create_node(cluster["available_node_types"][name]["node_config"], tags, 1)
    return provider


def machines(state: str = "running") -> list[dict[str, Any]]:
    filters = [{"Name": "instance-state-name", "Values": [state]}]
    groups = boto3.client("ec2", region_name=REGION).describe_instances(Filters=filters)["Reservations"]
    return [each for group in groups for each in group["Instances"]]


@pytest.mark.slow  # Ray asks for all machine types of AWS
def test_aws_launches_an_on_demand_head_and_spot_workers_that_only_ssh_can_enter(
    account: dict[str, str], cluster: dict[str, Any]
) -> None:
    assert (Path.home() / ".ssh" / f"ray-autoscaler_{REGION}.pem").stat().st_mode & 0o077 == 0
    launch(cluster, *cluster["available_node_types"])
    profiles = {each["InstanceType"]: each["IamInstanceProfile"]["Arn"].rsplit("/", 1)[1] for each in machines()}
    assert profiles == {"m7i.2xlarge": "raymed-head", "g6.2xlarge": "raymed-worker", "g5.2xlarge": "raymed-worker"}
    spot = {each["InstanceType"]: each.get("InstanceLifecycle") == "spot" for each in machines()}
    assert spot == {"m7i.2xlarge": False, "g6.2xlarge": True, "g5.2xlarge": True}
    groups = {group["GroupId"] for each in machines() for group in each["SecurityGroups"]}
    described = boto3.client("ec2", region_name=REGION).describe_security_groups(GroupIds=list(groups))["SecurityGroups"]
    rules = [
        (rule["IpProtocol"], rule.get("FromPort"), [cidr["CidrIp"] for cidr in rule["IpRanges"]], inner["GroupId"])
        for group in described
        for rule in group["IpPermissions"]
        for inner in rule["UserIdGroupPairs"] or [{"GroupId": ""}]
    ]
    assert rules == [("tcp", 22, ["198.51.100.0/24"], ""), ("-1", None, [], account["SecurityGroup"])]


@pytest.mark.slow
def test_all_that_a_head_asks_of_aws_for_its_workers_is_allowed_to_its_role(
    cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing permission fails here, and not by a 403 in the night."""
    called: list[tuple[str, dict[str, Any]]] = []
    usual = BaseClient._make_api_call

    def call(self: BaseClient, operation: str, words: dict[str, Any]) -> Any:
        called.append((operation, words))
        return usual(self, operation, words)

    workers = [name for name in cluster["available_node_types"] if name != cluster["head_node_type"]]
    with monkeypatch.context() as patched:
        patched.setattr(BaseClient, "_make_api_call", call)
        provider = launch(cluster, *workers)
        names = provider.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_WORKER})
        provider.set_node_tags(names[0], {TAG_RAY_NODE_STATUS: "up-to-date"})
        assert all(provider.internal_ip(name) for name in names)
    requests = [each for operation, words in called for each in requests_of(operation, words, REGION)]
    requests += [each for name in names for each in requests_of("TerminateInstances", {"InstanceIds": [name]}, REGION)]
    wanted = {"ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances", "ec2:DescribeInstances", "iam:PassRole"}
    assert {action for action, _, _ in requests} == wanted
    head, worker = statements("raymed-head"), statements("raymed-worker")
    assert [request for request in requests if not allows(head, request)] == []
    assert [request for request in requests if allows(worker, request)] == []


def machine(tag: str) -> tuple[str, dict[str, str]]:
    return f"arn:aws:ec2:{REGION}:123456789012:instance/i-1", {f"aws:ResourceTag/{TAG_RAY_CLUSTER_NAME}": tag}


@pytest.mark.parametrize(
    "request_",
    [
        ("ec2:TerminateInstances", *machine("another")),
        ("ec2:CreateTags", *machine("another")),  # or it could make it its own
        ("ec2:RunInstances", f"arn:aws:ec2:{REGION}:123456789012:instance/*", {}),
        ("iam:PassRole", "arn:aws:iam::123456789012:role/raymed-head", {}),
        ("iam:PassRole", "arn:aws:iam::123456789012:role/admin", {}),
        ("s3:GetObject", "arn:aws:s3:::another/key", {}),
    ],
)
def test_a_head_has_no_say_about_what_is_not_its_clusters(account: dict[str, str], request_: Request) -> None:
    assert not allows(statements("raymed-head"), request_)


def test_a_worker_cannot_write_the_record_or_the_registry(account: dict[str, str]) -> None:
    """`raymed.tracking.server` keeps both beside the runs, in the storage."""
    head, worker = statements("raymed-head"), statements("raymed-worker")

    def may_write(policy: list[dict[str, Any]], key: str) -> bool:
        return allows(policy, ("s3:PutObject", f"arn:aws:s3:::{account['Bucket']}/{key}", {}))

    for key in (f"raymed/{COPY}/{LIST}", f"{COPY}/{PARTS}/00", "raymed/artifacts/1/models/model.safetensors"):
        assert may_write(head, key) and not may_write(worker, key)
    assert may_write(worker, "raymed/lung-3fa9c1-0/checkpoint_1/rank-0.pt")


@pytest.fixture
def watch(account: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The watch's function, as AWS would call it, with an hour that it is told of."""
    function = template()["Watch"]["Properties"]
    names: dict[str, Any] = {}
    exec(function["Code"]["ZipFile"], names)
    topic = boto3.client("sns", region_name=REGION).list_topics()["Topics"][0]["TopicArn"]
    for name, value in {"CLUSTER": "raymed", "HOURS": "24", "TOPIC": topic}.items():
        monkeypatch.setenv(name, value)
    assert function["Environment"]["Variables"].keys() == {"CLUSTER", "HOURS", "TOPIC"}

    def after(hours: float) -> list[str]:
        lines: list[str] = names["watch"]({"time": (datetime.now(UTC) + timedelta(hours=hours)).isoformat()}, None)
        return lines

    return after


@pytest.mark.slow
def test_the_watch_ends_workers_that_have_no_head_and_none_that_have(cluster: dict[str, Any], watch: Any) -> None:
    """Only a head ends machines: where it is gone they would be paid for ever."""
    provider = launch(cluster, *cluster["available_node_types"])
    boto3.client("ec2", region_name=REGION).run_instances(ImageId="ami-1", MinCount=1, MaxCount=1)  # somebody else's
    assert watch(5) == [] and len(machines()) == 4
    provider.terminate_nodes(provider.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_HEAD}))
    assert watch(0.5) == [] and len(machines()) == 3, "`ray up` may be about to launch one"
    first, *lines = watch(1.5)
    assert "without a head" in first and len(lines) == 2
    assert len(machines()) == 1


@pytest.mark.slow
def test_a_machine_that_still_runs_is_told_of_once_a_day_and_left_alone(cluster: dict[str, Any], watch: Any) -> None:
    launch(cluster, cluster["head_node_type"])
    told = [hour for hour in range(60) if watch(hour + 0.5)]
    assert told == [24, 48] and len(machines()) == 1
    assert "ray down cluster.yaml" in watch(24.5)[0] and "(head), 24 hours" in watch(24.5)[1]


@pytest.mark.parametrize("account", [{}, {"AlarmTo": "me@example.org"}], indirect=True)
def test_the_alarm_goes_to_the_address_that_was_given(account: dict[str, str], request: pytest.FixtureRequest) -> None:
    subscriptions = boto3.client("sns", region_name=REGION).list_subscriptions()["Subscriptions"]
    given = request.node.callspec.params["account"].get("AlarmTo")
    assert [each["Endpoint"] for each in subscriptions] == ([given] if given else [])


def test_the_watch_may_do_what_it_does_and_end_no_other_machines(account: dict[str, str]) -> None:
    policy = statements("raymed-watch")
    assert allows(policy, ("ec2:DescribeInstances", "*", {}))
    assert allows(policy, ("ec2:TerminateInstances", *machine("raymed")))
    assert not allows(policy, ("ec2:TerminateInstances", *machine("another")))
    topic = boto3.client("sns", region_name=REGION).list_topics()["Topics"][0]["TopicArn"]
    assert allows(policy, ("sns:Publish", topic, {}))


@pytest.mark.parametrize(
    ("account", "encryption", "allowed"),
    [({}, {"SSEAlgorithm": "AES256"}, False), ({"KmsKey": KEY}, {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": KEY}, True)],
    indirect=["account"],
)
def test_the_bucket_is_encrypted_by_the_key_that_was_given_which_its_machines_may_use(
    account: dict[str, str], encryption: dict[str, str], allowed: bool
) -> None:
    answer = boto3.client("s3", region_name=REGION).get_bucket_encryption(Bucket=account["Bucket"])
    (rule,) = answer["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == encryption
    for role in ("raymed-head", "raymed-worker"):
        for action in ("kms:GenerateDataKey", "kms:Decrypt"):
            assert allows(statements(role), (action, KEY, {})) is allowed


@pytest.mark.parametrize(("account", "allowed"), [({}, False), ({"DiskKey": KEY}, True)], indirect=["account"])
def test_the_head_may_start_machines_whose_disks_are_encrypted_by_the_key_that_was_given(
    account: dict[str, str], allowed: bool
) -> None:
    head = statements("raymed-head")
    for action in ("kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:Decrypt", "kms:ReEncryptFrom"):
        assert allows(head, (action, KEY, {})) is allowed
    assert allows(head, ("kms:CreateGrant", KEY, {"kms:GrantIsForAWSResource": "true"})) is allowed
    assert not allows(head, ("kms:CreateGrant", KEY, {})), "it lends the key to AWS, and to nobody else"
    assert not allows(statements("raymed-worker"), ("kms:Decrypt", KEY, {}))


def test_a_second_cluster_has_its_own_of_everything_and_lies_in_the_vpc_that_was_given(account: dict[str, str]) -> None:
    ec2 = boto3.client("ec2", region_name=REGION)
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    other = deployed(REGION, stack="second", ClusterName="second", Vpc=vpc)
    assert not set(account.values()) & set(other.values())
    (group,) = ec2.describe_security_groups(GroupIds=[other["SecurityGroup"]])["SecurityGroups"]
    assert group["VpcId"] == vpc
    for theirs, ours in (("second", "raymed"), ("raymed", "second")):
        there, tagged = machine(ours)
        assert allows(statements(f"{ours}-head"), ("ec2:TerminateInstances", there, tagged))
        assert not allows(statements(f"{theirs}-head"), ("ec2:TerminateInstances", there, tagged))


def test_the_account_template_uses_nothing_that_cloudformation_refuses() -> None:
    assert not [token for token in yaml.scan(TEMPLATE.read_text()) if isinstance(token, yaml.AnchorToken | yaml.AliasToken)]


class _Tags(yaml.SafeLoader):
    """Reads CloudFormation's functions as what they are applied to."""


def _function(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    assert isinstance(node, yaml.SequenceNode)
    return loader.construct_sequence(node, deep=True)


_Tags.add_multi_constructor("!", _function)


def template() -> dict[str, Any]:
    resources: dict[str, Any] = yaml.load(TEMPLATE.read_text(), _Tags)["Resources"]
    return resources


def test_the_bucket_keeps_versions_takes_no_plain_http_and_drops_unfinished_uploads() -> None:
    bucket = template()["Bucket"]["Properties"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert any("AbortIncompleteMultipartUpload" in rule for rule in bucket["LifecycleConfiguration"]["Rules"])
    (statement,) = template()["BucketRules"]["Properties"]["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Principal"]) == ("Deny", "*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
