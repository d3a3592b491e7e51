"""Which blobs lie elsewhere, in Redis: one string each beside their holds. See hold.lua."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any

from offload.digest import Digest, parse_digest
from offload.stores.capabilities import LISTED_HOLDS
from offload.stores.checks import check_ttl, names_holder
from offload.stores.places import RESERVED, Place
from offload.stores.redis.client import RedisClient, escaped, script

__all__ = ("KEYS", "RedisPlaces", "milliseconds")

KEYS = 1000
"""Blobs that one run of a script looks at: about a millisecond of the server's time."""


class RedisPlaces:
    """The account that a Redis keeps as the first of several tiers."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        # In a Cluster the part in braces chooses the slot: what other keys say about a blob
        # stands beside it. (While that slot moves to another node, scripts have to wait.)
        self._blob, self._holds, self._place = (
            f"{client.prefix}:{what}:{{" for what in ("blob", "holds", "place")
        )

    def hold(
        self, digests: Sequence[Digest], ttl: float, holder: str
    ) -> dict[Digest, Place | None]:
        return self._held(digests, ttl, holder, "")

    def reserve(
        self, digests: Sequence[Digest], ttl: float, name: str
    ) -> dict[Digest, Place | None]:
        return self._held(digests, ttl, name, milliseconds(min(ttl, RESERVED)))

    def note(
        self, promised: Mapping[Digest, float], note: str, *, life: float, name: str
    ) -> dict[Digest, float]:
        asked = {digest: milliseconds(left) for digest, left in promised.items()}
        begins = (self._blob, self._holds, self._place)
        calls = [
            (
                [f"{begin}{digest}}}" for digest in group for begin in begins],
                (note, milliseconds(life), name, *map(asked.__getitem__, group)),
            )
            for group in self._groups(list(asked))
        ]
        noted = chain.from_iterable(self._client.run_script(script("note"), calls))
        return {
            digest: left / 1000
            for digest, left in zip(asked, noted, strict=True)
            if left > asked[digest]
        }

    def promise(self, promised: Mapping[Digest, tuple[Place, float]]) -> set[Digest]:
        answers: list[Any] = []
        calls = [
            (
                [f"{self._place}{digest}}}" for digest in group],
                [
                    word
                    for place, left in map(promised.__getitem__, group)
                    for word in (place.note, milliseconds(left))
                ],
            )
            for group in self._groups(list(promised))
        ]
        for answer in self._client.run_script(script("promise"), calls):
            answers += answer
        return {digest for digest, done in zip(promised, answers, strict=True) if not done}

    def find(self, digests: Sequence[Digest]) -> dict[Digest, Place | None]:
        return {
            digest: None if answer == 0 else _place(*answer)
            for digest, answer in self._run("where", digests, ()).items()
            if answer != 1
        }

    def forget(self, places: Mapping[Digest, Place]) -> None:
        calls = [
            (
                [f"{begin}{d}}}" for d in group for begin in (self._place, self._holds)],
                [places[digest].note for digest in group],
            )
            for group in self._groups(list(places))
        ]
        self._client.run_script(script("forget"), calls)

    def noted(self) -> Iterator[list[Digest]]:
        for keys in self._client.keys(self._place):
            yield list(filter(None, (self._digest(key) for key in keys)))

    def _digest(self, key: str) -> Digest | None:
        with suppress(ValueError):
            return parse_digest(key[len(self._place) : -1])
        return None  # others wrote it

    # -- for blobs as well

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        """Do as `BlobStore.release`."""
        self._client.run_script(
            script("release"), self._calls(digests, (holder, milliseconds(grace)))
        )

    def holders(self, digest: Digest) -> dict[str, float]:
        """Do as `BlobStore.holders`."""
        ((seconds, micros), found) = self._client.run(
            [("TIME",), ("ZRANGE", f"{self._holds}{digest}}}", 0, -1, "WITHSCORES")]
        )
        return _of_holders(found, int(seconds) + int(micros) / 1e6)

    def longest_holds(self, digests: Sequence[Digest]) -> list[Mapping[str, float]]:
        """Do as `HoldTracking.longest_holds`."""
        holds: list[Mapping[str, float]] = []
        for at in range(0, len(digests), KEYS):
            (seconds, micros), *answers = self._client.run(
                [
                    ("TIME",),
                    *(
                        ("ZREVRANGE", f"{self._holds}{digest}}}", 0, LISTED_HOLDS, "WITHSCORES")
                        for digest in digests[at : at + KEYS]
                    ),
                ]
            )
            now = int(seconds) + int(micros) / 1e6
            holds += [
                dict(islice(_of_holders(each, now).items(), LISTED_HOLDS)) for each in answers
            ]
        return holds

    def count_holders(self, digests: Sequence[Digest]) -> list[int]:
        """Do as `HoldTracking.count_holders`. Names of who is about to store a blob count, too."""
        counts = self._run("held", digests, ())
        return [counts[digest] for digest in digests]

    def held_by(self, digests: Sequence[Digest], name: str) -> set[Digest]:
        """Do as `HoldTracking.held_by`.

        The holders of a blob are read some at a time: they may be many, and no other client
        should wait.
        """
        found: set[Digest] = set()
        pattern = f"*{escaped(name)}*"
        for at in range(0, len(digests), KEYS):
            cursors: dict[Digest, Any] = dict.fromkeys(digests[at : at + KEYS], 0)
            while cursors:
                scans = [
                    ("ZSCAN", f"{self._holds}{digest}}}", cursor, "MATCH", pattern, "COUNT", KEYS)
                    for digest, cursor in cursors.items()
                ]
                (seconds, micros), *answers = self._client.run([("TIME",), *scans])
                now = int(seconds) * 1000 + int(micros) // 1000
                pairs = zip(list(cursors), answers, strict=True)
                for digest, (cursor, holds) in pairs:
                    if any(
                        until > now and names_holder(each, name) for each, until in _holds(holds)
                    ):
                        found.add(digest)
                    if digest in found or not int(cursor):
                        del cursors[digest]
                    else:
                        cursors[digest] = cursor
        return found

    def delete_unheld(self, digests: Sequence[Digest]) -> set[Digest]:
        """Do as `HoldTracking.drop`."""
        return {digest for digest, stays in self._run("drop", digests, ()).items() if stays}

    def _held(
        self, digests: Sequence[Digest], ttl: float, name: str, reserved: int | str
    ) -> dict[Digest, Place | None]:
        answers = self._run("hold", digests, (milliseconds(ttl), name, reserved))
        return {
            digest: None if answer == 0 else _place(answer[0], answer[1], ttl * 1000, ttl * 1000)
            for digest, answer in answers.items()
            if answer != 1
        }

    def _run(self, name: str, digests: Sequence[Digest], args: Sequence[Any]) -> dict[Digest, Any]:
        """Run a script about blobs; return what it answers about each."""
        asked = list(dict.fromkeys(digests))
        answers = self._client.run_script(script(name), self._calls(asked, args))
        return dict(zip(asked, chain.from_iterable(answers), strict=True))

    def _calls(
        self, digests: Sequence[Digest], args: Sequence[Any]
    ) -> list[tuple[list[str], Sequence[Any]]]:
        begins = (self._blob, self._holds, self._place)
        return [
            ([f"{begin}{digest}}}" for digest in group for begin in begins], args)
            for group in self._groups(list(dict.fromkeys(digests)))
        ]

    def _groups(self, digests: Sequence[Digest]) -> list[Sequence[Digest]]:
        """Return digests in groups for one run of a script each."""
        if not digests:
            return []
        size = KEYS if self._client.many_keys else 1
        return [digests[at : at + size] for at in range(0, len(digests), size)]


def _place(note: bytes, promised: float, life: float, held: float) -> Place:
    left = math.inf if promised < 0 else promised / 1000  # an operator made it permanent
    return Place(note.decode("utf-8", "replace"), left, life / 1000, held / 1000)


def _of_holders(answer: Sequence[Any], now: float) -> dict[str, float]:
    """Return holders and the seconds that are left of their holds, in the order of *answer*."""
    return {
        holder: until / 1000 - now
        for holder, until in _holds(answer)
        if until / 1000 > now and not holder.startswith("@")  # notes of our own: see hold.lua
    }


def _holds(answer: Sequence[Any]) -> Iterator[tuple[str, float]]:
    """Yield holder and milliseconds, as ZSCAN tells them: a Cluster's client has paired them."""
    paired = bool(answer) and isinstance(answer[0], tuple)
    for holder, until in answer if paired else zip(answer[::2], answer[1::2], strict=True):
        yield holder.decode("utf-8", "replace"), float(until)


def milliseconds(ttl: float) -> int:
    """Return *ttl* seconds as Redis takes them; raises ValueError if not positive."""
    return math.ceil(check_ttl(ttl) * 1000)
