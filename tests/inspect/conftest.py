"""Stores with many blobs, written without a round trip for each."""

from __future__ import annotations

import os
import time

import pytest

from offload.stores import open_store
from tests.support.servers import redis_client


def write_blobs(server, prefix, count, *, held=2, seconds=3600.0):
    """Write *count* small blobs to a Redis and hold every *held*-th; return their digests."""
    digests = [f"b3:{os.urandom(32).hex()}" for _ in range(count)]
    until = int((time.time() + seconds) * 1000)
    with redis_client(server) as client:
        for begin in range(0, count, 5000):
            pipeline = client.pipeline(transaction=False)
            for at, digest in enumerate(digests[begin : begin + 5000], begin):
                content = b"\x00" + b"x" * (at % 400)
                pipeline.set(f"{prefix}:blob:{{{digest}}}", content, px=int(seconds * 1000) + at)
                if at % held == 0:
                    pipeline.zadd(f"{prefix}:holds:{{{digest}}}", {f"task:id-{at}+ab": until})
            pipeline.execute()
    return digests


def remove_blobs(client, prefix, digests):
    """Remove the blobs, because other tests scan all keys of the server."""
    for begin in range(0, len(digests), 5000):
        some = digests[begin : begin + 5000]
        kinds = ("blob", "holds")
        client.unlink(*[f"{prefix}:{kind}:{{{digest}}}" for kind in kinds for digest in some])


@pytest.fixture
def many(redis):
    """Return a function that returns a store with so many blobs, and their digests."""
    written = []

    def make(count, **options):
        prefix = f"catalog-{os.getpid()}-{os.urandom(4).hex()}"
        digests = write_blobs(redis, prefix, count, **options)
        written.append((prefix, digests))
        return open_store(f"{redis.url}?prefix={prefix}"), digests

    yield make
    with redis_client(redis) as client:
        for prefix, digests in written:
            remove_blobs(client, prefix, digests)
