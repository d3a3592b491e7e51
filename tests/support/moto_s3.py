"""S3 within this process, by a clock that stands until it is moved."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime, timezone
from unittest.mock import patch

import boto3
from moto import mock_aws

from offload.stores.s3.store import S3Store


@contextmanager
def moto_s3(clock, **options):
    def stamp():
        return datetime.fromtimestamp(clock(), timezone.utc).replace(tzinfo=None)

    with mock_aws(), patch("moto.s3.models.utcnow", stamp):
        session = boto3.session.Session("key", "secret", region_name="us-east-1")
        client = session.client("s3")
        client.create_bucket(Bucket="bucket")
        yield S3Store(
            lambda *, records: client,
            bucket="bucket",
            url="s3://bucket/offload",
            threads=1,  # moto is not safe among them
            clock=clock,
            sleep=lambda seconds: None,
            **{"ahead": 0, **options},
        )
