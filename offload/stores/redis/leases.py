"""Leases in Redis, by the server's clock."""

from __future__ import annotations

import math

from offload.stores.checks import check_name, check_owner, check_ttl
from offload.stores.redis.client import RedisClient, script

__all__ = ("RedisLeases",)

REMEMBER = 86_400_000
"""Milliseconds for which a lease that ended keeps its last fencing number: longer than any
step of the server's clock backwards."""


class RedisLeases:
    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def acquire(self, name: str, owner: str, ttl: float) -> int | None:
        fence: int | None = self._run("acquire", name, owner, _milliseconds(ttl))
        return fence

    def renew(self, name: str, owner: str, ttl: float) -> bool:
        return bool(self._run("renew", name, owner, _milliseconds(ttl)))

    def release(self, name: str, owner: str) -> bool:
        return bool(self._run("renew", name, owner, 0))

    def _run(self, what: str, name: str, owner: str, life: int) -> int | None:
        key = f"{self._client.prefix}:lease:{check_name(name)}"
        args = (check_owner(owner), life, REMEMBER)
        answer: int | None = self._client.run_script(script(what), [((key,), args)])[0]
        return answer


def _milliseconds(ttl: float) -> int:
    return math.ceil(check_ttl(ttl) * 1000)
