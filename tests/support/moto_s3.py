"""S3 within this process, with a clock that stands still until it is moved."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cache
from unittest.mock import patch

import boto3
from moto import mock_aws
from moto.s3.models import S3Backend

from offload.stores.capabilities import UNNAMED
from offload.stores.s3.client import S3Client
from offload.stores.s3.store import S3Store


@cache
def session():
    """Return one session for all tests: creating one takes longer than most tests."""
    return boto3.session.Session("key", "secret", region_name="us-east-1")


@cache
def handlers():
    """Return the handler of each URL of S3, which moto determines again for each request."""
    with mock_aws():
        return S3Backend("us-east-1", "123456789012").urls


@contextmanager
def moto_bucket(clock):
    """Yield a client of S3 with an empty bucket ``bucket`` whose dates come from *clock*."""

    def stamp():
        return datetime.fromtimestamp(clock(), timezone.utc).replace(tzinfo=None)

    with (
        mock_aws(),
        patch("moto.s3.models.utcnow", stamp),
        patch.object(S3Backend, "urls", handlers()),
    ):
        client = session().client("s3")
        client.create_bucket(Bucket="bucket")
        yield client


@contextmanager
def moto_s3(clock, *, skew=60.0, ahead=0.0, unnamed=UNNAMED):
    """Yield a store on a bucket of its own."""
    with moto_bucket(clock) as bucket:
        client = S3Client(
            lambda *, records: bucket,
            bucket="bucket",
            url="s3://bucket/offload",
            threads=1,  # moto is not thread-safe
            clock=clock,
            sleep=lambda seconds: None,
        )
        yield S3Store(client, skew=skew, ahead=ahead, unnamed=unnamed)
