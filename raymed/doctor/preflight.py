"""What must be there before a cluster is launched: looked at before the first second that is paid for.

`ray up` finds out late: the head runs already when the token's file is missing, and a worker's type that AWS does not have
there, or that the account may not start, is met in the night.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from raymed.doctor.finding import Finding
from raymed.errors import UserError
from raymed.storage.seal import SEAL, read_list

ARCHIVE = "raymed.tar.gz"  # what machines install, as cluster.yaml names it
# What cluster.yaml has where a person fills in their own. 192.0.2.0/24 is a network of examples (RFC 5737).
PLACEHOLDERS = re.compile(r"\b(ami-0{17}|sg-0{17}|YOUR-BUCKET|192\.0\.2\.\d+)\b")
# vCPUs of spot machines, and of others, by the letters that their types begin with
SPOT_QUOTAS = {"g": "L-3819A6DF", "gr": "L-3819A6DF", "p": "L-7212CCBC"} | dict.fromkeys("acdhimrtz", "L-34B43A08")
USUAL_QUOTAS = {"g": "L-DB2E81BA", "gr": "L-DB2E81BA", "p": "L-417A185B"} | dict.fromkeys("acdhimrtz", "L-1216C47A")


def preflight(cluster_file: Path, is_plan: bool = False) -> Iterator[Finding]:
    """Everything a cluster file needs, and the archive of this checkout that its machines install.

    Args:
        is_plan: leave the archive as it is.

    Raises:
        UserError: the file cannot be read.
    """
    config = _read(cluster_file)
    yield _filled_in(cluster_file)
    yield _token(config)
    if any(Path(source).name == ARCHIVE for source in config.get("file_mounts", {}).values()):
        yield _archive(Path(ARCHIVE), is_plan)
    if config["provider"].get("type") == "aws":
        yield from _aws(config)


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as a cluster file: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("provider"), dict):
        raise UserError(f"{path} is no cluster file of Ray's: it has no provider")
    return config


def _filled_in(path: Path) -> Finding:
    lines = path.read_text("utf-8").splitlines()
    found = [
        f"line {number} ({match[0]})"
        for number, line in enumerate(lines, 1)
        if not line.lstrip().startswith("#") and (match := PLACEHOLDERS.search(line))
    ]
    if found:
        return Finding("cluster file", "wrong", f"{path}: fill in {', '.join(found)}; docs/cluster.md says with what")
    return Finding("cluster file", "ok", f"{path} is filled in")


def _token(config: Mapping[str, Any]) -> Finding:
    missing = [
        source
        for target, source in config.get("file_mounts", {}).items()
        if "auth_token" in target and not Path(source).expanduser().is_file()
    ]
    if missing:
        return Finding("Ray token", "wrong", f"{missing[0]} is not there: run `ray get-auth-token --generate`")
    return Finding("Ray token", "ok", "goes to every machine")


def _archive(archive: Path, is_plan: bool) -> Finding:
    """Write the archive: what is committed, and nothing else that lies in the folder."""
    if shutil.which("git") is None or _git("rev-parse", "--show-cdup") != "":
        return Finding("archive", "wrong", "machines install what git archives: run this in the top folder of a checkout")
    if is_plan:
        return Finding("archive", "missing", f"{archive} would be written")
    _git("archive", "--format=tar.gz", "-o", str(archive), "HEAD")
    changed = len((_git("status", "--porcelain") or "").splitlines())
    text = f"{archive}: commit {_git('rev-parse', '--short', 'HEAD')}, {archive.stat().st_size / 1e6:.1f} MB"
    if changed:
        return Finding(
            "archive", "missing", f"{text}; {changed} changed files are not in it: commit them, and run this again"
        )
    return Finding("archive", "ok", text)


def _git(*words: str) -> str | None:
    """What git says, or None where it refuses: in a folder that is no checkout."""
    done = subprocess.run(["git", *words], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _aws(config: Mapping[str, Any]) -> Iterator[Finding]:
    region = config["provider"]["region"]
    try:
        who = boto3.client("sts", region_name=region).get_caller_identity()["Arn"]
    except (BotoCoreError, ClientError) as error:
        yield Finding("AWS", "wrong", f"no credentials that hold ({error}): run `aws configure`")
        return
    yield Finding("AWS", "ok", f"{who} in {region}")
    for subject, look in {
        "image": _image,
        "security group": _security_group,
        "roles": _roles,
        "network": _network,
        "machine types": _types,
        "bucket": _bucket,
        "models": _models,
        "vCPU quota": _quota,
        "prices": _prices,
    }.items():
        try:
            yield look(config, region)
        except (BotoCoreError, ClientError) as error:
            yield Finding(subject, "missing", f"could not be looked up: {error}")


def _machines(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: each["node_config"] for name, each in config["available_node_types"].items()}


def _image(config: Mapping[str, Any], region: str) -> Finding:
    wanted = {each["ImageId"] for each in _machines(config).values()}
    filters = [{"Name": "image-id", "Values": sorted(wanted)}]
    there = {each["ImageId"] for each in boto3.client("ec2", region).describe_images(Filters=filters)["Images"]}
    if wanted - there:
        return Finding(
            "machine image",
            "wrong",
            f"{', '.join(sorted(wanted - there))} is no image of {region}: every region has its own",
        )
    return Finding("machine image", "ok", ", ".join(sorted(wanted)))


def _security_group(config: Mapping[str, Any], region: str) -> Finding:
    wanted = {group for each in _machines(config).values() for group in each.get("SecurityGroupIds", ())}
    if not wanted:
        return Finding("security group", "wrong", "none is named: Ray makes one that lets the whole world try ssh")
    filters = [{"Name": "group-id", "Values": sorted(wanted)}]
    groups = boto3.client("ec2", region).describe_security_groups(Filters=filters)["SecurityGroups"]
    if missing := wanted - {each["GroupId"] for each in groups}:
        return Finding("security group", "wrong", f"{', '.join(sorted(missing))} is not there: see the stack's outputs")
    world = [rule for each in groups for rule in each["IpPermissions"] if {"CidrIp": "0.0.0.0/0"} in rule["IpRanges"]]
    if world:
        return Finding("security group", "wrong", "it lets the whole world in: give the template SshFrom, your own network")
    return Finding("security group", "ok", ", ".join(sorted(wanted)))


def _roles(config: Mapping[str, Any], region: str) -> Finding:
    roles = boto3.client("iam", region_name=region)
    wanted = sorted({each["IamInstanceProfile"]["Name"] for each in _machines(config).values()})
    for name in wanted:
        try:
            roles.get_instance_profile(InstanceProfileName=name)
        except roles.exceptions.NoSuchEntityException:
            return Finding("roles", "wrong", f"{name} is not there: deploy cluster.account.yaml (docs/cluster.md)")
    return Finding("roles", "ok", ", ".join(wanted))


def _network(config: Mapping[str, Any], region: str) -> Finding:
    zones = _zones(config)
    named = {subnet for each in _machines(config).values() for subnet in each.get("SubnetIds", ())}
    if named:
        return Finding("network", "ok", ", ".join(sorted(named)))
    filters = [{"Name": "default-for-az", "Values": ["true"]}]
    subnets = boto3.client("ec2", region).describe_subnets(Filters=filters)["Subnets"]
    there = {each["AvailabilityZone"] for each in subnets}
    if missing := [zone for zone in zones if zone not in there]:
        advice = "name other zones, or SubnetIds in cluster.yaml and Vpc for the template"
        return Finding("network", "wrong", f"{region} has no default subnet in {', '.join(missing)}: {advice}")
    return Finding("network", "ok", f"default subnets in {', '.join(zones)}")


def _types(config: Mapping[str, Any], region: str) -> Finding:
    zones = _zones(config)
    wanted = {each["InstanceType"] for each in _machines(config).values()}
    filters = [{"Name": "instance-type", "Values": sorted(wanted)}, {"Name": "location", "Values": zones}]
    pages = boto3.client("ec2", region).get_paginator("describe_instance_type_offerings")
    offers = [
        offer
        for page in pages.paginate(LocationType="availability-zone", Filters=filters)
        for offer in page["InstanceTypeOfferings"]
    ]
    if missing := wanted - {each["InstanceType"] for each in offers}:
        return Finding("machine types", "wrong", f"no zone of {', '.join(zones)} has {', '.join(sorted(missing))}")
    return Finding("machine types", "ok", ", ".join(sorted(wanted)))


def _bucket(config: Mapping[str, Any], region: str) -> Finding:
    stated = re.search(r"RAYMED_STORAGE=s3://([^/\s]+)", "\n".join(config.get("setup_commands", ())))
    if stated is None:
        return Finding("bucket", "wrong", "setup_commands set no RAYMED_STORAGE=s3://...")
    try:
        boto3.client("s3", region_name=region).head_bucket(Bucket=stated[1])
    except ClientError as error:
        reason = {"404": "is not there", "403": "may not be used by you", "301": f"lies in another region than {region}"}
        code = str(error.response["Error"]["Code"])
        return Finding("bucket", "wrong", f"s3://{stated[1]} {reason.get(code, code)}: see the stack's outputs")
    return Finding("bucket", "ok", f"s3://{stated[1]}")


def _models(config: Mapping[str, Any], region: str) -> Finding:
    """Whether the folders with weights that machines copy are whole."""
    stated = re.search(r"copy_models\.py --source s3://([^/\s]+)/(\S+)", "\n".join(config.get("setup_commands", ())))
    if stated is None:
        return Finding("models", "ok", "machines copy none")
    s3, bucket, prefix = boto3.client("s3", region_name=region), stated[1], f"{stated[2].rstrip('/')}/"
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    there = {each["Key"].removeprefix(prefix) for page in pages for each in page.get("Contents", ())}
    models = sorted({name.partition("/")[0] for name in there if "/" in name})
    advice = "bring it there again with jobs/copy_models.py (docs/cluster.md)"
    for model in models:
        where = f"s3://{bucket}/{prefix}{model}"
        if f"{model}/{SEAL}" not in there:
            return Finding("models", "wrong", f"{where} has no list of digests, and would not be copied: {advice}")
        content = s3.get_object(Bucket=bucket, Key=f"{prefix}{model}/{SEAL}")["Body"].read()
        lost = [name for name in read_list(content, f"{where}/{SEAL}") if f"{model}/{name}" not in there]
        if lost:
            return Finding("models", "wrong", f"{where} lacks {lost[0]}: {advice}")
    return Finding("models", "ok", f"{', '.join(models) or 'none'} in s3://{bucket}/{prefix}".rstrip("/"))


def _quota(config: Mapping[str, Any], region: str) -> Finding:
    """Whether the account may start the head and as many workers as the file asks for: new accounts may start neither."""
    quotas, most = boto3.client("service-quotas", region_name=region), int(config.get("max_workers", 0))
    short: list[str] = []
    there: list[str] = []
    for name, each in config["available_node_types"].items():
        machine, is_head = each["node_config"], name == config["head_node_type"]
        count = 1 if is_head else min(most, int(each.get("max_workers", most)))
        is_spot, family = "InstanceMarketOptions" in machine, re.split(r"\d", machine["InstanceType"])[0]
        code = (SPOT_QUOTAS if is_spot else USUAL_QUOTAS).get(family)
        if code is None or not count:
            continue
        allowed = float(quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"])
        cpus = float(each["resources"]["CPU"])
        machines = min(count, math.floor(allowed / cpus))
        text = f"{allowed:.0f} vCPUs of {'spot ' if is_spot else ''}{family.upper()} machines ({code})"
        (short if machines < count else there).append(f"{text} are {machines} of {count} x {machine['InstanceType']}")
    if short:
        return Finding("vCPU quota", "wrong", f"{'; '.join(short)}: ask AWS for more (Service Quotas), or lower max_workers")
    return Finding("vCPU quota", "ok", "; ".join(there) or "none is known for these machines")


def _prices(config: Mapping[str, Any], region: str) -> Finding:
    """What spot machines, whose price changes, cost an hour now in the cheapest zone that is named."""
    ec2, most, zones = boto3.client("ec2", region), int(config.get("max_workers", 0)), _zones(config)
    prices: dict[str, float] = {}
    for_a_gpu: list[float] = []
    for each in config["available_node_types"].values():
        machine = each["node_config"]
        if "InstanceMarketOptions" not in machine:
            continue
        history = ec2.describe_spot_price_history(
            InstanceTypes=[machine["InstanceType"]], ProductDescriptions=["Linux/UNIX"], StartTime=datetime.now(UTC)
        )["SpotPriceHistory"]
        now = [float(price["SpotPrice"]) for price in history if not zones or price["AvailabilityZone"] in zones]
        if now:
            prices[machine["InstanceType"]] = min(now)
            for_a_gpu.append(min(now) / float(each["resources"].get("GPU", 1)))
    if not prices:
        return Finding("prices", "missing", "AWS says none: these are no spot machines, or their zones have none")
    text = ", ".join(f"{name} {price:.2f}" for name, price in prices.items())
    return Finding(
        "prices",
        "ok",
        f"spot, USD an hour now: {text}; {most} of them {most * max(prices.values()):.2f}, beside the head. With "
        f"RAYMED_PRICES=head=PRICE,GPU={max(for_a_gpu):.2f},DATE={date.today()} in the cluster file plans say what a night "
        "costs, and reports what it did",
    )


def _zones(config: Mapping[str, Any]) -> list[str]:
    return [zone for zone in str(config["provider"].get("availability_zone", "")).replace(" ", "").split(",") if zone]
