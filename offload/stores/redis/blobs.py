"""Blobs in Redis: a string per blob, which expires, and a sorted set of its holders.

``hold.lua`` describes the keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain, islice
from typing import Any, TypeVar

from offload.digest import Buffer, Digest, parse_digest
from offload.errors import StoreError
from offload.stores.capabilities import LISTED_HOLDS, BlobPeek, Wanted
from offload.stores.checks import (
    check_holder,
    check_limit,
    check_ttl,
    missing_error,
    names_holder,
    size_error,
    tier_not_configured,
)
from offload.stores.protocols import PUT, BlobInfo, Parts
from offload.stores.redis.client import RedisClient, escaped, script
from offload.stores.redis.redis_internals import Bulk

T = TypeVar("T")

WINDOW = 17 << 20
"""Maximum bytes per round trip, up or down (or one blob, if that is larger)."""
MANY = 256
"""Maximum number of blobs per round trip."""
LARGEST = 512 << 20
"""Maximum bytes of a Redis string."""
UNHELD = 10.0
"""Maximum seconds that a blob lives between being stored and being held."""
DEFERRED = 100
"""Maximum number of blobs whose release may wait for another request, which it slows down."""
BATCH = 1000
"""Maximum number of blobs per run of a script, which then takes the server about a millisecond."""


class RedisBlobs:
    """Blobs and holds, with all optional abilities in `capabilities` that concern them."""

    tracks_holds = True

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._scripts = BlobScripts(client)
        self._prefix = f"{client.prefix}:blob:{{"
        self._key = self._scripts.blob_key

    # -- holding

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        check_holder(holder)
        answers = self._scripts.run("hold", digests, milliseconds(ttl), holder, "")
        return {digest for digest, answer in answers.items() if answer != 1}

    def hold_and_put(self, blobs: Mapping[Digest, Wanted], holder: str) -> set[Digest]:
        check_holder(holder)
        by_life: dict[int, list[Digest]] = {}
        for digest, wanted in blobs.items():
            by_life.setdefault(milliseconds(wanted.ttl), []).append(digest)
        sent = {digest: wanted for digest, wanted in blobs.items() if wanted.parts is not None}
        # Store first, then hold. In the other order, another process could store the blob in
        # between, with a shorter life. If this process dies in between, the blob just expires.
        sets = [
            ("SET", self._key(d), Bulk(w.parts or ()), "NX", "PX", milliseconds(min(w.ttl, UNHELD)))
            for d, w in sent.items()
        ]
        groups = [
            (life, group)
            for life, digests in by_life.items()
            for group in self._scripts.groups(digests)
        ]
        calls = [(self._scripts.keys(group), (life, holder, "")) for life, group in groups]
        answers = self._client.run_script(script("hold"), calls, after=sets)
        new = {d for d, stored in zip(sent, answers[: len(sets)], strict=True) if stored}
        held = zip(
            chain.from_iterable(group for _, group in groups),
            chain.from_iterable(answers[len(sets) :]),
            strict=True,
        )
        missing = {digest for digest, answer in held if answer != 1}
        for digest in missing & sent.keys():  # SET NX found it, but it expired before the hold
            self.put({digest: sent[digest].parts or ()}, sent[digest].ttl)
        return new | missing

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        args = check_holder(holder), milliseconds(grace)
        groups = self._scripts.groups(list(dict.fromkeys(digests)))
        calls = [(self._scripts.keys(group), args) for group in groups]
        self._client.run_script(script("release"), calls)

    def release_later(self, digests: Sequence[Digest], holder: str, grace: float) -> bool:
        if len(digests) > DEFERRED:
            return False
        keys = self._scripts.keys(list(dict.fromkeys(digests)))
        args = check_holder(holder), milliseconds(grace)
        return self._client.defer_script(script("release"), keys, args)

    def release_deferred(self) -> int:
        return self._client.run_deferred()

    def holders(self, digest: Digest) -> dict[str, float]:
        (now, found) = self._client.run(
            [("TIME",), ("ZRANGE", self._scripts.holds_key(digest), 0, -1, "WITHSCORES")]
        )
        return _live(found, _seconds_of(now))

    def longest_holds(self, digests: Sequence[Digest]) -> list[Mapping[str, float]]:
        holds: list[Mapping[str, float]] = []
        for batch in _batches(digests, BATCH):
            keys = map(self._scripts.holds_key, batch)
            # Read one more than is returned: the life of a blob in a lower tier is among them.
            ranges = [("ZREVRANGE", key, 0, LISTED_HOLDS, "WITHSCORES") for key in keys]
            now, *answers = self._client.run([("TIME",), *ranges])
            live = (_live(answer, _seconds_of(now)).items() for answer in answers)
            holds += [dict(islice(items, LISTED_HOLDS)) for items in live]
        return holds

    def count_holders(self, digests: Sequence[Digest]) -> list[int]:
        """Return the number of holders of each blob, including writers that are storing it."""
        counts = self._scripts.run("held", digests)
        return [counts[digest] for digest in digests]

    def held_by(self, digests: Sequence[Digest], name: str) -> set[Digest]:
        """Return the blobs held by *name*.

        Reads a limited number of holders at a time: a blob may have many, and other clients
        shouldn't have to wait.
        """
        found: set[Digest] = set()
        pattern = f"*{escaped(name)}*"
        for batch in _batches(digests, BATCH):
            cursors: dict[Digest, Any] = dict.fromkeys(batch, 0)
            while cursors:
                scans = [
                    ("ZSCAN", self._scripts.holds_key(d), cursor, "MATCH", pattern, "COUNT", BATCH)
                    for d, cursor in cursors.items()
                ]
                now, *answers = self._client.run([("TIME",), *scans])
                for digest, (cursor, holds) in zip(list(cursors), answers, strict=True):
                    live = _live(holds, _seconds_of(now))
                    if any(names_holder(holder, name) for holder in live):
                        found.add(digest)
                    if digest in found or not int(cursor):
                        del cursors[digest]
                    else:
                        cursors[digest] = cursor
        return found

    def long_holds(self, least: float) -> Iterator[tuple[Digest, str, float]]:
        (time,) = self._client.run([("TIME",)])
        now = _seconds_of(time)
        score = f"{(now + least) * 1000:.0f}"
        prefix = f"{self._client.prefix}:holds:{{"
        for keys in self._client.keys(prefix, kind="zset"):
            for batch in _batches(keys, BATCH):
                ranges = [("ZRANGE", key, score, "+inf", "BYSCORE", "WITHSCORES") for key in batch]
                for key, answer in zip(batch, self._client.run(ranges), strict=True):
                    with suppress(ValueError):  # not a key of the store
                        digest = parse_digest(key[len(prefix) : -1])
                        for holder, left in _live(answer, now).items():
                            yield digest, holder, left

    def delete_unheld(self, digests: Sequence[Digest]) -> set[Digest]:
        return {d for d, stays in self._scripts.run("drop", digests).items() if stays}

    # -- storing and reading

    def put(
        self, blobs: Mapping[Digest, Parts], ttl: float, *, value_size: int | None = None
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
            # Extend those that exist. One may have expired since: then store it after all.
            old = [digest for digest, stored in zip(batch, answers, strict=True) if not stored]
            missing = self._extend(old, life) if old else ()
            batch = {digest: batch[digest] for digest in missing}

    def _extend(self, digests: Sequence[Digest], life: int) -> list[Digest]:
        """Keep blobs for at least *life* milliseconds; return those that don't exist."""
        calls = [((self._key(digest),), (life,)) for digest in digests]
        exist = self._client.run_script(script("prolong"), calls)
        return [digest for digest, exists in zip(digests, exist, strict=True) if not exists]

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        check_limit(limit)
        for batch in _batches(digests, _per_round_trip(limit)):
            # Reading one byte over the limit is enough to notice an excess.
            contents: list[Buffer] = self._client.run(
                [("GETRANGE", self._key(digest), 0, limit) for digest in batch]
            )
            self._check(batch, contents, limit)
            contents.reverse()
            while contents:
                yield contents.pop()  # don't keep a reference to what the caller no longer needs

    def _check(self, batch: Sequence[Digest], contents: Sequence[Buffer], limit: int) -> None:
        """Raise the error of the first blob that is too large or missing.

        GETRANGE returns the same for an empty blob and a missing one.
        """
        empty = [digest for digest, content in zip(batch, contents, strict=True) if not content]
        missing: list[Digest] = []
        if empty:
            exists = self._client.run([("EXISTS", self._key(digest)) for digest in empty])
            missing = [digest for digest, found in zip(empty, exists, strict=True) if not found]
        tiers = self._tiers(missing) if missing else {}
        for digest, content in zip(batch, contents, strict=True):
            if digest in tiers:
                raise tier_not_configured(digest, tiers[digest], self._client.url)
            if digest in missing:
                why = "it expired, or was deleted or evicted"
                raise missing_error(digest, self._client.url, why)
            if len(content) > limit:
                raise size_error(digest, self._client.url, limit)

    def _tiers(self, digests: Sequence[Digest]) -> dict[Digest, str]:
        """Return the tiers of blobs that, according to the tier index, are in another store."""
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


class BlobScripts:
    """Runs scripts on many blobs.

    In a Cluster, the part of a key in braces determines the slot, so all keys of a blob share one.
    """

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self._prefixes = [f"{client.prefix}:{kind}:{{" for kind in ("blob", "holds", "place")]

    def blob_key(self, digest: Digest) -> str:
        return f"{self._prefixes[0]}{digest}}}"

    def holds_key(self, digest: Digest) -> str:
        return f"{self._prefixes[1]}{digest}}}"

    def location_key(self, digest: Digest) -> str:
        return f"{self._prefixes[2]}{digest}}}"

    def run(self, name: str, digests: Sequence[Digest], *args: Any) -> dict[Digest, Any]:
        """Run a script that takes three keys per blob; return its result for each blob.

        Takes one round trip.
        """
        asked = list(dict.fromkeys(digests))
        calls = [(self.keys(group), args) for group in self.groups(asked)]
        answers = self.client.run_script(script(name), calls)
        return dict(zip(asked, chain.from_iterable(answers), strict=True))

    def keys(self, digests: Sequence[Digest]) -> list[str]:
        """Return the blob, holds, and location keys of each blob."""
        return [f"{prefix}{digest}}}" for digest in digests for prefix in self._prefixes]

    def groups(self, digests: Sequence[Digest]) -> list[Sequence[Digest]]:
        """Split digests into groups for one run of a script each."""
        if len(digests) < 2:  # most values are one blob
            return [digests] if digests else []
        return _batches(digests, BATCH if self.client.many_keys else 1)


def _seconds_of(time: Sequence[bytes]) -> float:
    return int(time[0]) + int(time[1]) / 1e6


def _live(answer: Sequence[Any], now: float) -> dict[str, float]:
    """Return the holders in *answer*, in order, with seconds left.

    Omits the store's own entries (``@…``).
    """
    return {
        holder: until / 1000 - now
        for holder, until in _pairs(answer)
        if until / 1000 > now and not holder.startswith("@")
    }


def _pairs(answer: Sequence[Any]) -> Iterator[tuple[str, float]]:
    """Yield pairs of holder and milliseconds; a Cluster's client returns pairs already."""
    paired = bool(answer) and isinstance(answer[0], tuple)
    for holder, until in answer if paired else zip(answer[::2], answer[1::2], strict=True):
        yield holder.decode("utf-8", "replace"), float(until)


@lru_cache(256)
def milliseconds(ttl: float) -> int:
    """Convert *ttl* seconds to milliseconds, rounding up. Raises ValueError if not positive."""
    return math.ceil(check_ttl(ttl) * 1000)


def _seconds(left: int) -> float:
    return math.inf if left < 0 else left / 1000  # negative: an operator made the key permanent


def _per_round_trip(size: int) -> int:
    return min(max(WINDOW // max(size, 1), 1), MANY)


def _batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[at : at + size] for at in range(0, len(items), size)]
