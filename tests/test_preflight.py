"""What would fail after the first paid second is found before it. AWS is played by moto; git and the archive are real."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from aws_account import deployed
from botocore.exceptions import ClientError
from moto import mock_aws

from raymed.doctor.finding import Finding
from raymed.doctor.preflight import ARCHIVE, preflight
from raymed.errors import UserError

REPOSITORY = Path(__file__).parents[1]
REGION = "eu-central-1"


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a token and a small checkout with the cluster file, and an account with all it needs but machines."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "checkout"
    folder.mkdir()
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("made up")
    shutil.copy(REPOSITORY / ".gitignore", folder)
    (folder / "Makefile").write_text("setup:\n")
    with pytest.MonkeyPatch.context() as environment, mock_aws():
        environment.setenv("HOME", str(home))
        environment.delenv("AWS_PROFILE", raising=False)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "made-up")
        outputs = deployed(REGION)
        image = boto3.client("ec2", region_name=REGION).describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        text = (REPOSITORY / "cluster.yaml").read_text()
        text = text.replace("ami-00000000000000000", image).replace("sg-00000000000000000", outputs["SecurityGroup"])
        (folder / "filled.yaml").write_text(text.replace("YOUR-BUCKET", outputs["Bucket"]))
        who = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "filled in"]):
            subprocess.run(["git", *words], cwd=folder, check=True)
        yield folder


@pytest.fixture
def checkout(account: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The checkout, as it was committed, which is the working folder."""
    monkeypatch.chdir(account)
    yield account
    for words in (["checkout", "-q", "."], ["clean", "-qfdx"]):
        subprocess.run(["git", *words], cwd=account, check=True)


class Quotas:
    """The service that says how many vCPUs an account may start."""

    def __init__(self, vcpus: float) -> None:
        self.vcpus = vcpus

    def get_service_quota(self, ServiceCode: str, QuotaCode: str) -> dict[str, Any]:  # noqa: N803
        return {"Quota": {"Value": self.vcpus}}


def allow(vcpus: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto knows quotas of networks only."""
    usual = boto3.client
    monkeypatch.setattr(
        boto3, "client", lambda name, *a, **k: Quotas(vcpus) if name == "service-quotas" else usual(name, *a, **k)
    )


def by_subject(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {each.subject: each for each in findings}


def finding(subject: str, cluster_file: Path) -> Finding:
    """The one about a subject, and nothing is asked after it."""
    return next(each for each in preflight(cluster_file) if each.subject == subject)


def change(folder: Path, edit: Any) -> Path:
    config = yaml.safe_load((folder / "filled.yaml").read_text())
    edit(config)
    (folder / "changed.yaml").write_text(yaml.safe_dump(config))
    return folder / "changed.yaml"


def test_a_file_that_is_filled_in_is_ready_and_its_machines_get_what_is_committed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(64, monkeypatch)
    (checkout / "secret").mkdir()
    (checkout / "secret" / "key").write_text("0" * 64)
    findings = by_subject(preflight(Path("filled.yaml")))
    assert {each.state for each in findings.values()} == {"ok"}, list(map(str, findings.values()))
    with tarfile.open(ARCHIVE) as archive:
        assert sorted(archive.getnames()) == [".gitignore", "Makefile", "filled.yaml"]
    assert not subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True).stdout, "it is ignored"
    (checkout / "Makefile").write_text("setup: more\n")
    assert "1 changed files are not in it" in finding("archive", Path("filled.yaml")).text


def test_what_was_not_filled_in_is_named_by_line(checkout: Path) -> None:
    said = finding("cluster file", REPOSITORY / "cluster.yaml")
    assert said.state == "wrong"
    for value in ("ami-00000000000000000", "sg-00000000000000000", "YOUR-BUCKET"):
        assert value in said.text
    local = by_subject(preflight(REPOSITORY / "cluster.local.yaml"))
    assert "192.0.2.1" in local["cluster file"].text and "machine image" not in local


@pytest.mark.parametrize(
    ("subject", "says", "edit"),
    [
        ("machine image", "every region has its own", lambda c: machine(c).update(ImageId="ami-11111111111111111")),
        ("security group", "see the stack", lambda c: machine(c).update(SecurityGroupIds=["sg-11111111111111111"])),
        ("security group", "whole world", lambda c: [each["node_config"].pop("SecurityGroupIds") for each in types(c)]),
        ("roles", "cluster.account.yaml", lambda c: machine(c).update(IamInstanceProfile={"Name": "other-worker"})),
        ("network", "no default subnet", lambda c: c["provider"].update(availability_zone="eu-central-1x")),
        ("machine types", "x9.big", lambda c: machine(c).update(InstanceType="x9.big")),
        ("bucket", "is not there", lambda c: c.update(setup_commands=["export RAYMED_STORAGE=s3://no-such-bucket/raymed"])),
        ("bucket", "RAYMED_STORAGE", lambda c: c.update(setup_commands=[])),
        ("Ray token", "get-auth-token", lambda c: c["file_mounts"].update({"~/.ray/auth_token": "~/nowhere"})),
    ],
)
def test_what_would_fail_later_is_wrong_now(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, subject: str, says: str, edit: Any
) -> None:
    allow(64, monkeypatch)
    said = finding(subject, change(checkout, edit))
    assert said.state == "wrong" and says in said.text, str(said)


def test_models_in_the_bucket_are_whole_or_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that found out while it was set up would be launched again, and paid for, until the morning."""
    allow(64, monkeypatch)
    bucket = boto3.client("s3", region_name=REGION).list_buckets()["Buckets"][0]["Name"]
    store = boto3.resource("s3", region_name=REGION).Bucket(bucket)

    def found() -> Finding:
        return finding("models", Path("filled.yaml"))

    assert found().state == "ok" and "none in" in found().text
    store.put_object(Key="models/net/config.json", Body=b"{}")
    assert found().state == "wrong" and "no list of digests" in found().text
    store.put_object(Key="models/net/sealed.json", Body=b'{"files": {"config.json": "00", "model.safetensors": "00"}}')
    assert found().state == "wrong" and "lacks model.safetensors" in found().text
    store.put_object(Key="models/net/model.safetensors", Body=b"")
    assert found().state == "ok" and "net in s3://" in found().text
    store.objects.all().delete()


def types(config: dict[str, Any]) -> list[dict[str, Any]]:
    return list(config["available_node_types"].values())


def machine(config: dict[str, Any]) -> dict[str, Any]:
    node_config: dict[str, Any] = config["available_node_types"]["worker-l4"]["node_config"]
    return node_config


def test_an_account_that_may_start_too_few_gpu_machines_is_told_how_many(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(16, monkeypatch)
    said = finding("vCPU quota", Path("filled.yaml"))
    assert said.state == "wrong" and "are 2 of 8 x g6.2xlarge" in said.text and "L-3819A6DF" in said.text


def test_an_account_that_may_not_even_start_the_head_is_told_so_before_ray_up(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new account may have five vCPUs, and the head has eight."""
    allow(5, monkeypatch)
    said = finding("vCPU quota", Path("filled.yaml"))
    assert said.state == "wrong"
    assert "5 vCPUs of M machines (L-1216C47A) are 0 of 1 x m7i.2xlarge" in said.text


def test_it_says_what_the_machines_cost_an_hour_now(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(64, monkeypatch)
    client, usual = boto3.client("ec2", region_name=REGION), boto3.client
    rows = [("g6.2xlarge", "a", "0.40"), ("g6.2xlarge", "c", "0.10")]
    rows += [("g5.2xlarge", "b", "0.50"), ("g5.2xlarge", "a", "0.60")]

    def describe(InstanceTypes: list[str], **_: Any) -> dict[str, Any]:  # noqa: N803
        return {
            "SpotPriceHistory": [
                {"AvailabilityZone": f"{REGION}{zone}", "SpotPrice": price}
                for name, zone, price in rows
                if [name] == InstanceTypes
            ]
        }

    monkeypatch.setattr(client, "describe_spot_price_history", describe)
    monkeypatch.setattr(boto3, "client", lambda name, *a, **k: client if name == "ec2" else usual(name, *a, **k))
    said = finding("prices", Path("filled.yaml"))
    assert "g6.2xlarge 0.40, g5.2xlarge 0.50; 8 of them 4.00, beside the head" in said.text
    assert f"RAYMED_PRICES=head=PRICE,GPU=0.50,DATE={date.today()}" in said.text, "a zone that is not named does not count"


def test_what_may_not_be_looked_up_is_no_reason_to_stop(checkout: Path) -> None:
    """moto knows no quotas, as a person may not who has rights for EC2 alone."""
    said = finding("vCPU quota", Path("filled.yaml"))
    assert said.state == "missing" and "could not be looked up" in said.text


def test_without_credentials_nothing_else_is_asked(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise ClientError({"Error": {"Code": "InvalidClientTokenId", "Message": "no such key"}}, "GetCallerIdentity")

    monkeypatch.setattr(boto3, "client", refused)
    findings = by_subject(preflight(Path("filled.yaml")))
    assert findings["AWS"].state == "wrong" and "aws configure" in findings["AWS"].text and "machine image" not in findings


def test_outside_a_checkout_there_is_nothing_to_install(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout.parent)
    assert finding("archive", checkout / "filled.yaml").state == "wrong"


@pytest.mark.parametrize("content", ["", "a: [", "- 1\n", "provider: aws\n"])
def test_a_file_that_is_no_cluster_file_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "cluster.yaml").write_text(content)
    with pytest.raises(UserError, match="cluster file"):
        next(preflight(tmp_path / "cluster.yaml"))
