"""Diagnose a store by its kind: its server, bucket, or folder."""

from __future__ import annotations

import math
from collections.abc import Iterator

from offload.doctor import file, fsspec, redis
from offload.doctor.lifecycle import lifecycle_rule
from offload.doctor.server import Capacity
from offload.inspect.findings import Finding
from offload.stores.file.store import FileStore
from offload.stores.fsspec.store import FsspecStore
from offload.stores.memory import MemoryStore
from offload.stores.protocols import Store
from offload.stores.redis.store import RedisStore

__all__ = ("capacity_of", "diagnose")


def diagnose(store: Store, *, longest: float) -> Iterator[Finding]:
    """Check the server, bucket, or folder of *store* and its configuration; change nothing.

    Yields nothing for a store of another kind.

    Args:
        longest: seconds for which the app may keep something; infinite if unlimited.

    Raises StoreError if the server refuses, StoreUnavailable if it is unavailable.
    """
    if isinstance(store, RedisStore):
        yield from redis.diagnose(store.client)
    elif isinstance(store, FileStore):
        yield from file.diagnose(store.disk)
    elif isinstance(store, FsspecStore):
        yield from fsspec.diagnose(store)
    elif type(store) is MemoryStore:
        yield Finding(
            "warning",
            "it is this process's own memory: worker processes can't see what a publisher stores",
            "set offload_store to Redis, S3, or a shared folder; memory stores are for tests",
        )
    elif store.url.startswith("s3://"):
        from offload.doctor import s3  # needs boto3
        from offload.stores.s3.store import S3Store

        if isinstance(store, S3Store):
            rule = lifecycle_rule(store, longest) if math.isfinite(longest) else None
            yield from s3.diagnose(store.client, store.conditions, rule)


def capacity_of(store: Store) -> Iterator[Capacity]:
    """Yield how much each server of *store* holds and may hold; nothing if unknown.

    One round trip per server.
    """
    if isinstance(store, RedisStore):
        yield from redis.capacity(store.client)
    elif isinstance(store, FileStore):
        yield from file.capacity(store.disk)
