"""Pointers in Redis: one string each, without an expiry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from offload.stores.checks import check_name, check_value
from offload.stores.redis.client import RedisClient, script

__all__ = ("RedisPointers",)


class RedisPointers:
    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._begin = f"{client.prefix}:pointer:"

    def read(self, name: str) -> bytes | None:
        value: bytes | None = self._client.run([("GET", self._begin + check_name(name))])[0]
        return value

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        commands = [("GET", self._begin + check_name(name)) for name in names]
        return self._client.run(commands) if commands else []

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        key = self._begin + check_name(name)
        args = (
            *(("0", b"") if expected is None else ("1", expected)),
            *(("0", b"") if value is None else ("1", check_value(value))),
        )
        return bool(self._client.run_script(script("swap"), [((key,), args)])[0])

    def names(self, prefix: str = "") -> Iterator[str]:
        for keys in self._client.keys(self._begin + prefix):
            for key in keys:
                with suppress(ValueError):  # others wrote it
                    yield check_name(key[len(self._begin) :])
