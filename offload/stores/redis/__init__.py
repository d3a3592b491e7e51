"""A store in Redis or Valkey: standalone, TLS, Sentinel, Cluster; server 6.2 or later."""

from __future__ import annotations

from offload.stores.redis.connect import open_redis
from offload.stores.redis.store import RedisStore

__all__ = ("RedisStore", "open_redis")
