"""Pointers and leases in Redis: a string per pointer, a hash per lease."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from offload.stores.checks import check_name, check_owner, check_value
from offload.stores.redis.client import RedisClient, script
from offload.stores.redis.holds import milliseconds

__all__ = ("RedisLeases", "RedisPointers")

REMEMBER = 86_400_000
"""Milliseconds for which an ended lease keeps its last fencing number: longer than any step of
the server's clock backwards."""


class RedisPointers:
    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._prefix = f"{client.prefix}:pointer:"

    def read(self, name: str) -> bytes | None:
        return self.read_all([name])[0]

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        return self._client.run([("GET", self._prefix + check_name(name)) for name in names])

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        key = self._prefix + check_name(name)
        args = (
            *(("0", b"") if expected is None else ("1", expected)),
            *(("0", b"") if value is None else ("1", check_value(value))),
        )
        return bool(self._client.run_script(script("swap"), [((key,), args)])[0])

    def names(self, prefix: str = "") -> Iterator[str]:
        for keys in self._client.keys(self._prefix + prefix):
            for key in keys:
                with suppress(ValueError):  # others wrote it
                    yield check_name(key[len(self._prefix) :])


class RedisLeases:
    """Leases by the server's clock."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def acquire(self, name: str, owner: str, ttl: float) -> int | None:
        return self._run("acquire", name, owner, milliseconds(ttl))

    def renew(self, name: str, owner: str, ttl: float) -> bool:
        return bool(self._run("renew", name, owner, milliseconds(ttl)))

    def release(self, name: str, owner: str) -> bool:
        return bool(self._run("renew", name, owner, 0))

    def _run(self, script_name: str, name: str, owner: str, life: int) -> int | None:
        key = f"{self._client.prefix}:lease:{check_name(name)}"
        args = (check_owner(owner), life, REMEMBER)
        answer: int | None = self._client.run_script(script(script_name), [((key,), args)])[0]
        return answer
