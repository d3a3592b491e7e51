"""A Redis store without a server, for fast tests."""

from __future__ import annotations

import fakeredis

from offload.stores.redis.client import RedisClient
from offload.stores.redis.redis_internals import PACKER
from offload.stores.redis.store import RedisStore


def fake_redis() -> RedisStore:
    """Return a store on a fake server of its own."""
    server = fakeredis.FakeServer()

    def connect() -> fakeredis.FakeRedis:
        client = fakeredis.FakeRedis(server=server, protocol=2)
        client.connection_pool.connection_kwargs["command_packer"] = PACKER
        return client

    return RedisStore(RedisClient(connect, "redis://fake"))
