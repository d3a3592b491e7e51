"""Blobs in Redis: one string per blob, with its own expiry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from offload.digest import Buffer, Digest, parse_digest
from offload.errors import StoreError
from offload.stores.capabilities import BlobPeek
from offload.stores.checks import check_limit
from offload.stores.errors import missing_error, size_error, tier_not_configured
from offload.stores.protocols import BlobInfo, Parts
from offload.stores.redis.client import RedisClient, script
from offload.stores.redis.holds import BATCH, RedisHolds, milliseconds
from offload.stores.redis.packer import Bulk

__all__ = ("RedisBlobs",)

WINDOW = 17 << 20
"""Bytes per round trip, up or down (or one blob, if that is more)."""
MANY = 256
"""Blobs per round trip."""
LARGEST = 512 << 20
"""Bytes that a Redis string can hold."""


class RedisBlobs(RedisHolds):
    def __init__(self, client: RedisClient) -> None:
        super().__init__(client)
        self._prefix = f"{client.prefix}:blob:{{"
        self._key = self._scripts.blob_key

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
            # Extend those that exist; one may expire just before, and is stored after all.
            old = [digest for digest, stored in zip(batch, answers, strict=True) if not stored]
            batch = {digest: batch[digest] for digest in self._extend(old, life)}

    def _extend(self, digests: Sequence[Digest], life: int) -> list[Digest]:
        """Keep blobs at least *life* milliseconds; return those that don't exist."""
        calls = [((self._key(digest),), (life,)) for digest in digests]
        exist = self._client.run_script(script("prolong"), calls)
        return [digest for digest, exists in zip(digests, exist, strict=True) if not exists]

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        check_limit(limit)
        for batch in _batches(digests, _per_round_trip(limit)):
            # One byte over the limit is enough to know.
            contents: list[Buffer] = self._client.run(
                [("GETRANGE", self._key(digest), 0, limit) for digest in batch]
            )
            self._check(batch, contents, limit)
            contents.reverse()
            while contents:
                yield contents.pop()  # keeps no reference to what the caller has finished with

    def _check(self, batch: Sequence[Digest], contents: Sequence[Buffer], limit: int) -> None:
        """Raise the error of the first blob that is too large or missing.

        GETRANGE returns the same for an empty blob and a missing one.
        """
        empty = [digest for digest, content in zip(batch, contents, strict=True) if not content]
        exists = self._client.run([("EXISTS", self._key(digest)) for digest in empty])
        missing = [digest for digest, found in zip(empty, exists, strict=True) if not found]
        tiers = self._tiers(missing)
        for digest, content in zip(batch, contents, strict=True):
            if digest in tiers:
                raise tier_not_configured(digest, tiers[digest], self._client.url)
            if digest in missing:
                why = "it expired, or was deleted or evicted"
                raise missing_error(digest, self._client.url, why)
            if len(content) > limit:
                raise size_error(digest, self._client.url, limit)

    def _tiers(self, digests: Sequence[Digest]) -> dict[Digest, str]:
        """Return the tiers of blobs that are recorded to live in another store."""
        return {
            digest: answer[0].decode("utf-8", "replace").partition(" ")[2]
            for digest, answer in self._scripts.run("where", digests).items()
            if answer not in (0, 1) and answer[2]
        }

    def delete(self, digests: Iterable[Digest]) -> None:
        for batch in _batches(list(digests), BATCH):
            self._client.run([("UNLINK", self._key(digest)) for digest in batch])

    def scan(self) -> Iterator[BlobInfo]:
        for keys in self._client.keys(self._prefix):
            commands = [(name, key) for key in keys for name in ("STRLEN", "PTTL")]
            answers = iter(self._client.run(commands))
            for key, size, left in zip(keys, answers, answers, strict=False):
                digest = self._digest(key)
                if left != -2 and digest is not None:
                    yield BlobInfo(digest, size, _seconds(left))

    def peek(self, digests: Sequence[Digest], size: int) -> list[BlobPeek | None]:
        check_limit(size)
        found: list[BlobPeek | None] = []
        for batch in _batches(digests, _per_round_trip(size)):
            commands: list[tuple[Any, ...]] = []
            for key in map(self._key, batch):
                commands += [("STRLEN", key), ("PTTL", key), ("GETRANGE", key, 0, size)]
            answers = iter(self._client.run(commands))
            found += [
                None if left == -2 else BlobPeek(length, _seconds(left), bytes(prefix[:size]))
                for length, left, prefix in zip(answers, answers, answers, strict=True)
            ]
        return found

    def find(self, prefix: str) -> Iterator[Digest]:
        for keys in self._client.keys(self._prefix + prefix):
            yield from filter(None, map(self._digest, keys))

    def _digest(self, key: str) -> Digest | None:
        """Return the digest in a blob's key; None for other keys."""
        with suppress(ValueError):
            return parse_digest(key[len(self._prefix) : -1])
        return None


def _seconds(left: int) -> float:
    return math.inf if left < 0 else left / 1000  # an operator made it permanent


def _per_round_trip(size: int) -> int:
    return min(max(WINDOW // max(size, 1), 1), MANY)


def _batches(items: Sequence[Digest], size: int) -> list[Sequence[Digest]]:
    return [items[at : at + size] for at in range(0, len(items), size)]
