"""Blobs in Redis: one string each, under its own expiry, and a sorted set of who holds it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from offload.digest import Buffer, Digest, parse_digest
from offload.errors import BlobMissing, IntegrityError, StoreError
from offload.stores.base import PUT, BlobInfo, Parts
from offload.stores.checks import check_holder, check_limit, check_ttl
from offload.stores.redis.link import Link, script
from offload.stores.redis.packer import Bulk

__all__ = ("RedisBlobs",)

GRACE = "grace"
"""Who holds a blob that lies elsewhere while its grace lasts."""

WINDOW = 17 << 20
"""Bytes under way in one round trip, up or down (or one blob, if that is more)."""
MANY = 256
"""Blobs under way in one round trip."""
KEYS = 1000
"""Blobs that one run of a script looks at: about a millisecond of the server's time."""
LARGEST = 512 << 20
"""Bytes that a Redis string can hold."""


class RedisBlobs:
    keeps_holds = True

    def __init__(self, link: Link) -> None:
        self._link = link
        # In a Cluster the part in braces chooses the slot: what other keys say about a blob
        # stands beside it. (While that slot moves to another node, `hold` has to wait.)
        self._begin = f"{link.prefix}:blob:{{"
        self._holds = f"{link.prefix}:holds:{{"
        self._place = f"{link.prefix}:place:{{"

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        found = self._hold(digests, ttl, holder)
        return {digest for digest, answer in found.items() if answer != 1}

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        args = (check_holder(holder), _milliseconds(grace), GRACE)
        calls = [(keys, args) for _, keys in self._keys(digests)]
        self._link.run_script(script("release"), calls)

    def holders(self, digest: Digest) -> dict[str, float]:
        found, (seconds, micros) = self._link.run(
            [("ZRANGE", f"{self._holds}{digest}}}", 0, -1, "WITHSCORES"), ("TIME",)]
        )
        now = int(seconds) + int(micros) / 1e6
        pairs = zip(found[::2], found[1::2], strict=True)
        holds = {name.decode("utf-8", "replace"): float(end) / 1000 - now for name, end in pairs}
        return {holder: left for holder, left in holds.items() if left > 0}

    def put(
        self,
        blobs: Mapping[Digest, Parts],
        ttl: float,
        *,
        value_size: int | None = None,  # noqa: ARG002
    ) -> None:
        life = _milliseconds(ttl)
        batch: dict[Digest, Bulk] = {}
        size = 0
        for digest, parts in blobs.items():
            bulk = Bulk(parts)
            if bulk.size > LARGEST:
                raise StoreError(
                    f"{digest} has {bulk.size} bytes; {self._link.url} holds up to {LARGEST}",
                    digest=digest,
                    store=self._link.url,
                )
            if batch and (size + bulk.size > WINDOW or len(batch) == MANY):
                self._put(batch, life)
                batch, size = {}, 0
            batch[digest] = bulk
            size += bulk.size
        self._put(batch, life)

    def _put(self, batch: dict[Digest, Bulk], life: int) -> None:
        while batch:
            answers = self._link.run(
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
        answers = self._link.run_script(script("prolong"), calls)
        return {d for d, is_there in zip(digests, answers, strict=True) if not is_there}

    def _hold(self, digests: Sequence[Digest], ttl: float, holder: str) -> dict[Digest, Any]:
        args = (_milliseconds(ttl), check_holder(holder))
        groups = list(self._keys(digests))
        answers = self._link.run_script(script("hold"), [(keys, args) for _, keys in groups])
        asked = chain.from_iterable(group for group, _ in groups)
        return dict(zip(asked, chain.from_iterable(answers), strict=True))

    def _keys(self, digests: Sequence[Digest]) -> Iterator[tuple[Sequence[Digest], list[str]]]:
        """Yield digests in groups for one run of a script each, with their keys."""
        for group in _batches(list(dict.fromkeys(digests)), KEYS if self._link.many_keys else 1):
            begins = (self._begin, self._holds, self._place)
            yield group, [f"{begin}{digest}}}" for digest in group for begin in begins]

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        check_limit(limit)
        at_once = min(max(WINDOW // max(limit, 1), 1), MANY)
        for batch in _batches(digests, at_once):
            # One byte over the limit is enough to know.
            contents: list[Buffer] = self._link.run(
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
        there = self._link.run([("EXISTS", self._key(digest)) for digest in empty])
        gone = {digest for digest, is_there in zip(empty, there, strict=True) if not is_there}
        url = self._link.url
        for digest, content in zip(batch, contents, strict=True):
            if digest in gone:
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
            self._link.run([("UNLINK", self._key(digest)) for digest in batch])

    def scan(self) -> Iterator[BlobInfo]:
        for keys in self._link.keys(self._begin):
            commands = [(name, key) for key in keys for name in ("STRLEN", "PTTL")]
            answers = iter(self._link.run(commands))
            for key, size, left in zip(keys, answers, answers, strict=False):
                if left != -2:
                    digest = parse_digest(key[len(self._begin) : -1])
                    yield BlobInfo(digest, size, math.inf if left < 0 else left / 1000)

    def _key(self, digest: Digest) -> str:
        return f"{self._begin}{digest}}}"


def _milliseconds(ttl: float) -> int:
    return math.ceil(check_ttl(ttl) * 1000)


def _batches(items: Sequence[Digest], size: int) -> list[Sequence[Digest]]:
    return [items[at : at + size] for at in range(0, len(items), size)]
