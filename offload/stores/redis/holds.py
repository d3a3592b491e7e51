"""Holds in Redis: a sorted set of holders beside each blob. ``hold.lua`` describes the keys."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from offload.digest import Digest
from offload.stores.capabilities import LISTED_HOLDS
from offload.stores.checks import check_holder, check_ttl, names_holder
from offload.stores.protocols import PUT
from offload.stores.redis.client import RedisClient, escaped, script

__all__ = ("BATCH", "BlobScripts", "RedisHolds", "milliseconds")

BATCH = 1000
"""Blobs per run of a script: about a millisecond of the server's time."""


class BlobScripts:
    """Run scripts about many blobs.

    In a Cluster, the part of a key in braces chooses its slot, so a blob's keys share one.
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
        """Run a script that takes three keys per blob; return its answer for each blob.

        One round trip.
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
        if not digests:
            return []
        size = BATCH if self.client.many_keys else 1
        return [digests[at : at + size] for at in range(0, len(digests), size)]


class RedisHolds:
    """Holds of blobs; implements `HoldTracking`."""

    tracks_holds = True

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._scripts = BlobScripts(client)

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        check_holder(holder)
        answers = self._scripts.run("hold", digests, milliseconds(ttl), holder, "")
        return {digest for digest, answer in answers.items() if answer != 1}

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        args = check_holder(holder), milliseconds(grace)
        groups = self._scripts.groups(list(dict.fromkeys(digests)))
        calls = [(self._scripts.keys(group), args) for group in groups]
        self._client.run_script(script("release"), calls)

    def holders(self, digest: Digest) -> dict[str, float]:
        (now, found) = self._client.run(
            [("TIME",), ("ZRANGE", self._scripts.holds_key(digest), 0, -1, "WITHSCORES")]
        )
        return _live(found, _seconds_of(now))

    def longest_holds(self, digests: Sequence[Digest]) -> list[Mapping[str, float]]:
        holds: list[Mapping[str, float]] = []
        for at in range(0, len(digests), BATCH):
            keys = map(self._scripts.holds_key, digests[at : at + BATCH])
            # One more than is returned: the life of a blob in a lower tier is among them.
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
        """Return the blobs held by *name*, reading some holders of a blob at a time.

        They may be many, and other clients shouldn't have to wait.
        """
        found: set[Digest] = set()
        pattern = f"*{escaped(name)}*"
        for at in range(0, len(digests), BATCH):
            cursors: dict[Digest, Any] = dict.fromkeys(digests[at : at + BATCH], 0)
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

    def delete_unheld(self, digests: Sequence[Digest]) -> set[Digest]:
        return {d for d, stays in self._scripts.run("drop", digests).items() if stays}


def _seconds_of(time: Sequence[bytes]) -> float:
    return int(time[0]) + int(time[1]) / 1e6


def _live(answer: Sequence[Any], now: float) -> dict[str, float]:
    """Return the holders in *answer* and the seconds left of their holds, in its order.

    Leaves out the store's own entries (``@…``).
    """
    return {
        holder: until / 1000 - now
        for holder, until in _pairs(answer)
        if until / 1000 > now and not holder.startswith("@")
    }


def _pairs(answer: Sequence[Any]) -> Iterator[tuple[str, float]]:
    """Yield holder and milliseconds; a Cluster's client has paired them already."""
    paired = bool(answer) and isinstance(answer[0], tuple)
    for holder, until in answer if paired else zip(answer[::2], answer[1::2], strict=True):
        yield holder.decode("utf-8", "replace"), float(until)


def milliseconds(ttl: float) -> int:
    """Return *ttl* seconds in milliseconds, rounded up; raises ValueError if not positive."""
    return math.ceil(check_ttl(ttl) * 1000)
