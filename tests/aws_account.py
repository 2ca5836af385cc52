"""cluster.account.yaml, deployed in an account that moto plays, and what its roles may do by IAM's rules.

moto itself asks for actions only, not for resources and conditions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import yaml
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

TEMPLATE = Path(__file__).parent.parent / "cluster.account.yaml"
NUMBER = "123456789012"  # of moto's account

Request = tuple[str, str, Mapping[str, str]]
"""An action, the resource that it is to happen to, and what conditions are asked of."""


def deployed(region: str, stack: str = "raymed", **parameters: str) -> dict[str, str]:
    """The outputs of the template in an account."""
    stacks = boto3.client("cloudformation", region_name=region)
    stacks.create_stack(
        StackName=stack,
        TemplateBody=TEMPLATE.read_text(),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[
            {"ParameterKey": name, "ParameterValue": value}
            for name, value in {"SshFrom": "198.51.100.0/24", **parameters}.items()
        ],
    )
    outputs = stacks.describe_stacks(StackName=stack)["Stacks"][0]["Outputs"]
    return {each["OutputKey"]: each["OutputValue"] for each in outputs}


def statements(role: str) -> list[dict[str, Any]]:
    """What a role's policies say, its own and those that it shares."""
    iam = boto3.client("iam", region_name="us-east-1")
    documents = [
        iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        for name in iam.list_role_policies(RoleName=role)["PolicyNames"]
    ]
    for policy in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        version = iam.get_policy(PolicyArn=policy["PolicyArn"])["Policy"]["DefaultVersionId"]
        documents.append(
            iam.get_policy_version(PolicyArn=policy["PolicyArn"], VersionId=version)["PolicyVersion"]["Document"]
        )
    read = [yaml.safe_load(each) if isinstance(each, str) else each for each in documents]  # moto gives both
    return [statement for document in read for statement in document["Statement"]]


def allows(policy: Iterable[Mapping[str, Any]], request: Request) -> bool:
    """IAM's rule in small: whatever is refused is refused; else something must allow it."""
    effects = [statement["Effect"] for statement in policy if _is_about(statement, *request)]
    return bool(effects) and "Deny" not in effects


def _is_about(statement: Mapping[str, Any], action: str, resource: str, context: Mapping[str, str]) -> bool:
    conditions = statement.get("Condition", {})
    assert statement.keys() <= {"Effect", "Action", "Resource", "Condition"} and conditions.keys() <= {
        "StringEquals",
        "Bool",
    }
    return (
        any(fnmatchcase(action, pattern) for pattern in _listed(statement["Action"]))
        and any(fnmatchcase(resource, pattern) for pattern in _listed(statement["Resource"]))
        and all(context.get(name) == value for name, value in conditions.get("StringEquals", {}).items())
        and all(context.get(name) == str(value).lower() for name, value in conditions.get("Bool", {}).items())
    )


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def requests_of(operation: str, words: Mapping[str, Any], region: str) -> list[Request]:
    """What a call to EC2 asks IAM for (AWS's service authorization reference: actions, resources and condition keys)."""
    place = f"arn:aws:ec2:{region}:{NUMBER}"
    if operation.startswith("Describe"):
        return [(f"ec2:{operation}", "*", {})]
    if operation == "RunInstances":
        return list(_launch(words, place, region))
    names = words.get("InstanceIds") or words["Resources"]
    return [(f"ec2:{operation}", f"{place}:instance/{name}", _tags_of(name, region)) for name in names]


def _launch(words: Mapping[str, Any], place: str, region: str) -> Iterable[Request]:
    (specification,) = words["TagSpecifications"]
    assert specification["ResourceType"] == "instance"
    tags = {f"aws:RequestTag/{tag['Key']}": tag["Value"] for tag in specification["Tags"]}
    yield "ec2:RunInstances", f"{place}:instance/*", tags
    yield "ec2:CreateTags", f"{place}:instance/*", {**tags, "ec2:CreateAction": "RunInstances"}
    yield "ec2:RunInstances", f"arn:aws:ec2:{region}::image/{words['ImageId']}", {}
    others = ["network-interface/*", "volume/*", f"subnet/{words['SubnetId']}", f"key-pair/{words['KeyName']}"]
    others += [f"security-group/{group}" for group in words["SecurityGroupIds"]]
    others += ["spot-instances-request/*"] if "InstanceMarketOptions" in words else []
    for resource in others:
        yield "ec2:RunInstances", f"{place}:{resource}", {}
    profile = boto3.client("iam", region_name=region).get_instance_profile(
        InstanceProfileName=words["IamInstanceProfile"]["Name"]
    )
    for role in profile["InstanceProfile"]["Roles"]:
        yield "iam:PassRole", role["Arn"], {}


def _tags_of(instance: str, region: str) -> dict[str, str]:
    (group,) = boto3.client("ec2", region_name=region).describe_instances(InstanceIds=[instance])["Reservations"]
    tags = {tag["Key"]: tag["Value"] for tag in group["Instances"][0].get("Tags", ())}
    return {f"aws:ResourceTag/{TAG_RAY_CLUSTER_NAME}": tags[TAG_RAY_CLUSTER_NAME]} if TAG_RAY_CLUSTER_NAME in tags else {}


def s3_request(method: str, target: str) -> Request:
    """What a request to S3 asks IAM for.

    Args:
        target: path and query, ``/bucket/key?uploads``.
    """
    path, _, query = target.partition("?")
    bucket, _, key = path.lstrip("/").partition("/")
    if not key and "delete" not in query:
        action = {"GET": "s3:ListBucket", "HEAD": "s3:ListBucket", "PUT": "s3:CreateBucket"}[method]
        return action, f"arn:aws:s3:::{bucket}", {}
    aborted = "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject"
    written = "s3:DeleteObject" if "delete" in query.split("&") else "s3:PutObject"
    action = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "POST": written, "DELETE": aborted}[
        method
    ]
    return action, f"arn:aws:s3:::{bucket}/{key}", {}
