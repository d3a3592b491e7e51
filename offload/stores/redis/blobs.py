"""Blobs in Redis: one string each, under its own expiry, and a sorted set of who holds it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from offload.digest import Buffer, Digest, parse_digest
from offload.errors import BlobMissing, IntegrityError, StoreError
from offload.stores.capabilities import BlobPeek
from offload.stores.checks import check_holder, check_limit
from offload.stores.places import elsewhere
from offload.stores.protocols import PUT, BlobInfo, Parts
from offload.stores.redis.client import RedisClient, script
from offload.stores.redis.packer import Bulk
from offload.stores.redis.places import KEYS, RedisPlaces, milliseconds

__all__ = ("RedisBlobs",)

WINDOW = 17 << 20
"""Bytes under way in one round trip, up or down (or one blob, if that is more)."""
MANY = 256
"""Blobs under way in one round trip."""
LARGEST = 512 << 20
"""Bytes that a Redis string can hold."""


class RedisBlobs:
    tracks_holds = True

    def __init__(self, client: RedisClient, places: RedisPlaces) -> None:
        self._client = client
        self._places = places
        self._begin = f"{client.prefix}:blob:{{"

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        return set(self._places.hold(digests, ttl, check_holder(holder)))

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        self._places.release(digests, check_holder(holder), grace)

    def holders(self, digest: Digest) -> dict[str, float]:
        return self._places.holders(digest)

    def count_holders(self, digests: Sequence[Digest]) -> list[int]:
        return self._places.count_holders(digests)

    def longest_holds(self, digests: Sequence[Digest]) -> list[Mapping[str, float]]:
        return self._places.longest_holds(digests)

    def held_by(self, digests: Sequence[Digest], name: str) -> set[Digest]:
        return self._places.held_by(digests, name)

    def delete_unheld(self, digests: Sequence[Digest]) -> set[Digest]:
        return self._places.delete_unheld(digests)

    def put(
        self,
        blobs: Mapping[Digest, Parts],
        ttl: float,
        *,
        value_size: int | None = None,  # noqa: ARG002
    ) -> None:
        life = milliseconds(ttl)
        batch: dict[Digest, Bulk] = {}
        size = 0
        for digest, parts in blobs.items():
            bulk = Bulk(parts)
            if bulk.size > LARGEST:
                raise StoreError(
                    f"{digest} has {bulk.size} bytes; {self._client.url} holds up to {LARGEST}",
                    digest=digest,
                    store=self._client.url,
                )
            if batch and (size + bulk.size > WINDOW or len(batch) == MANY):
                self._put(batch, life)
                batch, size = {}, 0
            batch[digest] = bulk
            size += bulk.size
        self._put(batch, life)

    def _put(self, batch: dict[Digest, Bulk], life: int) -> None:
        while batch:
            answers = self._client.run(
                [
                    ("SET", self._key(digest), bulk, "NX", "PX", life)
                    for digest, bulk in batch.items()
                ]
            )
            # What was there already is made to live on; it may have expired just before.
            old = [digest for digest, stored in zip(batch, answers, strict=True) if not stored]
            again = self._gone(old, life)
            batch = {digest: bulk for digest, bulk in batch.items() if digest in again}

    def _gone(self, digests: Sequence[Digest], life: int) -> set[Digest]:
        """Make blobs live for *life* milliseconds at least; return those that are gone."""
        calls = [((self._key(digest),), (life,)) for digest in digests]
        answers = self._client.run_script(script("prolong"), calls)
        return {d for d, is_there in zip(digests, answers, strict=True) if not is_there}

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        check_limit(limit)
        at_once = min(max(WINDOW // max(limit, 1), 1), MANY)
        for batch in _batches(digests, at_once):
            # One byte over the limit is enough to know.
            contents: list[Buffer] = self._client.run(
                [("GETRANGE", self._key(digest), 0, limit) for digest in batch]
            )
            self._check(batch, contents, limit)
            contents.reverse()
            while contents:
                yield contents.pop()  # nothing here keeps what the caller has finished with

    def _check(self, batch: Sequence[Digest], contents: Sequence[Buffer], limit: int) -> None:
        """Raise the error of the first blob that is too large or not there.

        GETRANGE says the same of an empty blob as of none.
        """
        empty = [digest for digest, content in zip(batch, contents, strict=True) if not content]
        there = self._client.run([("EXISTS", self._key(digest)) for digest in empty])
        gone = {digest for digest, is_there in zip(empty, there, strict=True) if not is_there}
        url = self._client.url
        places = self._places.find(list(gone))
        for digest, content in zip(batch, contents, strict=True):
            if digest in gone:
                place = places.get(digest)
                if place is not None and place.life:
                    raise elsewhere(digest, place.tier, url)
                raise BlobMissing(
                    f"{url} has no {digest}: it expired, or was deleted or evicted",
                    digest=digest,
                    store=url,
                )
            if len(content) > limit:
                raise IntegrityError(
                    f"{digest} in {url} is larger than the limit of {limit} bytes",
                    digest=digest,
                    store=url,
                )

    def delete(self, digests: Iterable[Digest]) -> None:
        for batch in _batches(list(digests), KEYS):
            self._client.run([("UNLINK", self._key(digest)) for digest in batch])

    def scan(self) -> Iterator[BlobInfo]:
        for keys in self._client.keys(self._begin):
            commands = [(name, key) for key in keys for name in ("STRLEN", "PTTL")]
            answers = iter(self._client.run(commands))
            for key, size, left in zip(keys, answers, answers, strict=False):
                digest = self._digest(key)
                if left != -2 and digest is not None:
                    yield BlobInfo(digest, size, _seconds(left))

    def peek(self, digests: Sequence[Digest], size: int) -> list[BlobPeek | None]:
        check_limit(size)
        found: list[BlobPeek | None] = []
        for batch in _batches(digests, min(max(WINDOW // max(size, 1), 1), MANY)):
            keys = map(self._key, batch)
            commands: list[tuple[Any, ...]] = []
            for key in keys:
                commands += [("STRLEN", key), ("PTTL", key), ("GETRANGE", key, 0, size)]
            answers = iter(self._client.run(commands))
            found += [
                None if left == -2 else BlobPeek(length, _seconds(left), bytes(begin[:size]))
                for length, left, begin in zip(answers, answers, answers, strict=True)
            ]
        return found

    def find(self, begin: str) -> Iterator[Digest]:
        for keys in self._client.keys(self._begin + begin):
            yield from filter(None, map(self._digest, keys))

    def _digest(self, key: str) -> Digest | None:
        """Return whose key this is; None for one that others wrote."""
        with suppress(ValueError):
            return parse_digest(key[len(self._begin) : -1])
        return None

    def _key(self, digest: Digest) -> str:
        return f"{self._begin}{digest}}}"


def _seconds(left: int) -> float:
    return math.inf if left < 0 else left / 1000  # an operator made it permanent


def _batches(items: Sequence[Digest], size: int) -> list[Sequence[Digest]]:
    return [items[at : at + size] for at in range(0, len(items), size)]
