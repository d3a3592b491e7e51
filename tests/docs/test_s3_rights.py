"""The rights on the page about S3 are enough, and each is necessary."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote

import boto3
import pytest
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count

from offload.digest import digest_of
from offload.errors import OffloadError
from offload.gc import sweep
from offload.stores import open_store

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "s3.md").read_text()
POLICY = json.loads(re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0])
ACTIONS = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket")
ROOT_KEYS = {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
SETUP = 4  # requests to create the bucket and the user, which aren't checked


@set_initial_no_auth_action_count(SETUP)
def use_store(policy: dict[str, object]) -> None:
    """Do what publishers, workers, and sweeps do, as a user with this policy only."""
    with mock_aws():
        boto3.client("s3", "us-east-1", **ROOT_KEYS).create_bucket(Bucket="shop-values")
        iam = boto3.client("iam", "us-east-1", **ROOT_KEYS)
        iam.create_user(UserName="app")
        iam.put_user_policy(UserName="app", PolicyName="app", PolicyDocument=json.dumps(policy))
        made = iam.create_access_key(UserName="app")["AccessKey"]
        keys = f"{made['AccessKeyId']}:{quote(made['SecretAccessKey'], safe='')}"
        options = "region=us-east-1&max_attempts=1&threads=1"  # moto isn't thread-safe
        store = open_store(f"s3://{keys}@shop-values/offload?{options}")
        digest = digest_of([b"content"])
        assert store.blobs.hold([digest], 60) == {digest}
        store.blobs.put({digest: [b"content"]}, 60)
        assert store.blobs.hold([digest], 7200) == set()  # copied onto itself, to live longer
        assert bytes(next(iter(store.blobs.get([digest], 1000)))) == b"content"
        assert [blob.digest for blob in store.blobs.scan()] == [digest]
        assert store.pointers.swap("name", None, b"one")
        assert store.pointers.swap("name", b"one", None)
        assert store.leases.acquire("lock", "me", 60) is not None
        assert store.leases.release("lock", "me")
        sweep(store)  # not `blobs.delete`: moto refuses deletions of several objects to all users
        store.close()


def without(action: str) -> dict[str, object]:
    """Return the policy on the page, without one action."""
    kept = [
        {**each, "Action": [name for name in listed(each) if name != action]}
        for each in POLICY["Statement"]
        if listed(each) != [action]
    ]
    return {**POLICY, "Statement": kept}


def listed(statement: dict[str, object]) -> list[str]:
    actions = statement["Action"]
    return [actions] if isinstance(actions, str) else list(actions)


def test_the_rights_on_the_page_are_enough() -> None:
    """A user with the documented policy can do everything that an app does with its store."""
    use_store(POLICY)


@pytest.mark.parametrize("action", ACTIONS)
def test_each_right_is_necessary(action: str) -> None:
    """Without any one of the documented actions, something is refused, by an error of offload."""
    assert action in {name for each in POLICY["Statement"] for name in listed(each)}
    with pytest.raises(OffloadError):
        use_store(without(action))
