"""Add numbers in Redis: a hash for the total, and one for each minute, hour, and day."""

from __future__ import annotations

import math
from collections.abc import Mapping

from offload.stores.redis.client import RedisClient, script
from offload.stores.sums import FIELDS, KEPT, SPANS, BatchSource, CounterBatch, Span

__all__ = ("RedisSums",)

_TIME = "return redis.call('TIME')"  # as a script, it is asked of the server that has the key


class RedisSums:
    """Numbers that the server adds, by a script."""

    piggybacks = True

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        # In a Cluster the part in braces chooses the slot.
        self._key = f"{client.prefix}:{{stats}}"

    def piggyback(self, source: BatchSource) -> None:
        self._client.piggyback(_Commands(source, self))

    def add(self, batch: CounterBatch) -> None:
        self._client.run_script(script("count"), [((self._key,), self.arguments(batch))])

    def end(self) -> None:
        """Do nothing: everything has been written."""

    def command(self, batch: CounterBatch) -> tuple[str | int, ...]:
        """Return the command that adds *batch*, to a server that may not know the script."""
        return ("EVAL", script("count").text, 1, self._key, *self.arguments(batch))

    @staticmethod
    def arguments(batch: CounterBatch) -> tuple[str | int, ...]:
        total, series = _flat(batch.total), _flat(batch.series)
        return (batch.process, batch.number, FIELDS, len(total), *total, *series)

    def total(self) -> dict[str, int]:
        return _read(self._client.run([("HGETALL", self._key)])[0])

    def series(self, span: Span, since: float | None = None) -> dict[int, dict[str, int]]:
        # Keys are computed from the server's time; a search would scan all keys.
        [(now, _)] = self._client.run([("EVAL", _TIME, 1, self._key)])
        seconds = SPANS[span]
        last = int(now) // seconds
        number = math.ceil((KEPT[span] if since is None else since) / seconds) + 1
        begins = [at * seconds for at in range(last - number + 1, last + 1)]
        answers = self._client.run([("HGETALL", f"{self._key}:{span}:{begin}") for begin in begins])
        read = zip(begins, map(_read, answers), strict=True)
        return {begin: counts for begin, counts in read if counts}

    def clear(self) -> None:
        keys = [key for some in self._client.keys(f"{self._key}:", kind="hash") for key in some]
        self._client.run([("UNLINK", key) for key in (self._key, *keys)])


class _Commands:
    """Turns batches into commands."""

    def __init__(self, source: BatchSource, sums: RedisSums) -> None:
        self._source = source
        self._sums = sums

    def next_batch(self) -> tuple[CounterBatch, tuple[str | int, ...]] | None:
        batch = self._source.next_batch()
        return None if batch is None else (batch, self._sums.command(batch))

    def requeue(self, batch: CounterBatch) -> None:
        self._source.requeue(batch)


def _flat(amounts: Mapping[str, int]) -> list[str | int]:
    return [part for pair in amounts.items() for part in pair]


def _read(answer: object) -> dict[str, int]:
    """Return a hash, without values that are not numbers (others wrote them)."""
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
