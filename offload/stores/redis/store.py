"""`RedisStore`: blobs, and its pointers, leases, and sums, through one client."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from offload.errors import StoreUnavailable
from offload.stores.capabilities import Claim
from offload.stores.checks import check_name, check_owner, check_value
from offload.stores.protocols import LeaseInfo, SweepItem
from offload.stores.redis.blobs import RedisBlobs, milliseconds
from offload.stores.redis.client import RedisClient, script
from offload.stores.sums import FIELDS, KEPT, SPANS, BatchSource, CounterBatch, Span

REMEMBER = 86_400_000
"""Milliseconds to keep the last fencing number of a lease that has ended: longer than the server's
clock is ever set back."""
_TIME = "return redis.call('TIME')"  # a script runs on the server that has the key


class RedisStore:
    """A store that sends its commands through *client*.

    The connections of its redis-py clients must use `redis_internals.PACKER` and
    answer in bytes. `offload.stores.redis.connect.open_redis` sets that up.

    Keys are ``<prefix>:blob:{<digest>}``, ``<prefix>:holds:{<digest>}``,
    ``<prefix>:place:{<digest>}``, ``<prefix>:pointer:<name>``, ``<prefix>:lease:<name>``,
    ``<prefix>:{stats}…``.
    """

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self.url = client.url
        self.blobs = RedisBlobs(client)
        self.pointers = RedisPointers(client)
        self.leases = RedisLeases(client)
        self.sums = RedisSums(client)

    def sweep(self, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Do nothing: the server deletes what has expired."""
        return iter(())

    def close(self) -> None:
        """Close this process's connections; the next call opens new ones."""
        self.client.close()


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


_NOTICE = 1000  # milliseconds during which a release can wake a client that starts to wait
_BLOCK = 2.0  # maximum seconds of a blocking command: less than any sensible socket timeout
_LEAST = 0.01  # seconds; Redis before 7 treats less than a millisecond as no limit


class RedisLeases:
    """Leases by the server's clock. A release wakes a waiting client."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._prefix = f"{client.prefix}:lease:"
        self._pointers = f"{client.prefix}:pointer:"

    @property
    def can_claim(self) -> bool:
        """Whether a script may use a lease and a pointer, which a Cluster doesn't allow."""
        return self._client.many_keys

    def claim(self, name: str, owner: str, ttl: float) -> Callable[[], Claim]:
        keys = (self._pointers + check_name(name), self._prefix + name)
        args = (check_owner(owner), milliseconds(ttl), REMEMBER)
        finish = self._client.start_script(script("claim"), keys, args)

        def claimed() -> Claim:
            value, fence, left = (*finish(), None, None)[:3]
            return Claim(value, fence, (left or 0) / 1000)

        return claimed

    def settle(
        self, name: str, owner: str, expected: bytes | None, value: bytes, ttl: float
    ) -> Callable[[], int | None]:
        keys, args = self._settling(name, owner, expected, value, ttl)
        return self._client.start_script(script("settle"), keys, args)

    def settle_later(
        self, name: str, owner: str, value: bytes, ttl: float, answered: Callable[[object], None]
    ) -> bool:
        keys, args = self._settling(name, owner, None, value, ttl)
        return self._client.defer_script(script("settle"), keys, args, answered)

    def _settling(
        self, name: str, owner: str, expected: bytes | None, value: bytes, ttl: float
    ) -> tuple[Sequence[str], Sequence[Any]]:
        """Return the keys and arguments of the script that settles."""
        keys = (self._pointers + name, self._prefix + name, self._released(name))
        was = ("0", b"") if expected is None else ("1", expected)
        return keys, (owner, *was, check_value(value), milliseconds(ttl), _NOTICE)

    def acquire(self, name: str, owner: str, ttl: float) -> int | None:
        args = (check_owner(owner), milliseconds(ttl), REMEMBER)
        call = ((self._prefix + check_name(name),), args)
        fence: int | None = self._client.run_script(script("acquire"), [call])[0]
        return fence

    def renew(self, name: str, owner: str, ttl: float) -> bool:
        return self._set_life(name, owner, milliseconds(ttl))

    def release(self, name: str, owner: str) -> bool:
        return self._set_life(name, owner, 0)

    def read(self, name: str) -> LeaseInfo | None:
        key = self._prefix + check_name(name)
        (owner, fence), life = self._client.run([("HMGET", key, "owner", "fence"), ("PTTL", key)])
        if owner is None or life <= REMEMBER:
            return None
        return LeaseInfo(owner.decode(), int(fence), (life - REMEMBER) / 1000)

    def names(self, prefix: str = "") -> Iterator[str]:
        for keys in self._client.keys(self._prefix + prefix, kind="hash"):
            for key in keys:
                with suppress(ValueError):  # others wrote it
                    yield check_name(key[len(self._prefix) :])

    def wait_for_release(self, name: str, timeout: float) -> None:
        """Return when the lease may have been released, or after *timeout* seconds."""
        key = self._released(check_name(name))
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                if self._client.wait_for(key, max(min(left, _BLOCK), _LEAST)):
                    return
            except StoreUnavailable:  # it can't block, or the server is down; the next call raises
                time.sleep(max(deadline - time.monotonic(), 0))

    def notify(self, name: str) -> None:
        key = self._released(check_name(name))
        self._client.run([("RPUSH", key, "1"), ("PEXPIRE", key, _NOTICE)])

    def _set_life(self, name: str, owner: str, life: int) -> bool:
        keys = (self._prefix + check_name(name), self._released(name))
        args = (check_owner(owner), life, REMEMBER, _NOTICE)
        return bool(self._client.run_script(script("renew"), [(keys, args)])[0])

    def _released(self, name: str) -> str:
        """Return the key of the list that a release adds to, in the slot of the lease's key."""
        return f"{self._client.prefix}:released:{{{self._prefix}{name}}}"


class RedisSums:
    """Numbers that a script on the server adds.

    A hash has the total, and others have each minute, hour, and day.
    """

    piggybacks = True

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        # In a Cluster, the part in braces determines the slot.
        self._key = f"{client.prefix}:{{stats}}"

    def piggyback(self, source: BatchSource) -> None:
        self._client.piggyback(source, self._command)

    def add(self, batch: CounterBatch) -> None:
        self._client.run_script(script("count"), [((self._key,), self._arguments(batch))])

    def end(self) -> None:
        """Do nothing, because everything has been written."""

    def _command(self, batch: CounterBatch) -> tuple[str | int, ...]:
        """Return the command that adds *batch*, for a server that may not know the script."""
        return ("EVAL", script("count").text, 1, self._key, *self._arguments(batch))

    @staticmethod
    def _arguments(batch: CounterBatch) -> tuple[str | int, ...]:
        total, series = _flat(batch.total), _flat(batch.series)
        return (batch.process, batch.number, FIELDS, len(total), *total, *series)

    def total(self) -> dict[str, int]:
        return _amounts(self._client.run([("HGETALL", self._key)])[0])

    def series(self, span: Span, since: float | None = None) -> dict[int, dict[str, int]]:
        # Compute the keys from the server's time: searching them would scan all keys.
        [(now, _)] = self._client.run([("EVAL", _TIME, 1, self._key)])
        seconds = SPANS[span]
        last = int(now) // seconds
        number = math.ceil((KEPT[span] if since is None else since) / seconds) + 1
        begins = [at * seconds for at in range(last - number + 1, last + 1)]
        answers = self._client.run([("HGETALL", f"{self._key}:{span}:{begin}") for begin in begins])
        read = zip(begins, map(_amounts, answers), strict=True)
        return {begin: counts for begin, counts in read if counts}

    def clear(self) -> None:
        keys = [key for some in self._client.keys(f"{self._key}:", kind="hash") for key in some]
        self._client.run([("UNLINK", key) for key in (self._key, *keys)])


def _flat(amounts: Mapping[str, int]) -> list[str | int]:
    return [part for pair in amounts.items() for part in pair]


def _amounts(answer: object) -> dict[str, int]:
    """Return a hash's numbers, ignoring other values, which offload didn't write."""
    pairs = answer.items() if isinstance(answer, dict) else _pairs(answer)
    found: dict[str, int] = {}
    for name, amount in pairs:
        try:
            found[name.decode("utf-8", "replace")] = int(amount)
        except ValueError:
            continue
    return found


def _pairs(answer: object) -> list[tuple[bytes, bytes]]:
    flat = list(answer) if isinstance(answer, (list, tuple)) else []
    return list(zip(flat[::2], flat[1::2], strict=True))
