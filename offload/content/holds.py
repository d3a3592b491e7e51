"""Holds: stated needs of stored values, each with a holder and an expiry."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from offload.content.digest_cache import KnownBlobs
from offload.content.encoding import MAX_OVERHEAD
from offload.content.get import Reader
from offload.content.manifest import ROOT_LIMIT, SINGLE
from offload.content.retrying import Retrying
from offload.digest import Digest
from offload.errors import BlobMissing
from offload.ref import Ref
from offload.stores.capabilities import DefersReleases, chunk_size_of
from offload.stores.protocols import FOREVER, PUT, Store

_MAX_NAME = 200  # bytes of a task id or pin name that a holder shows unhashed
_MARGIN = 1.25  # hold longer than needed, so that passing a Ref on soon costs no round trip
_SKEW = 60.0  # seconds by which publishers' clocks may differ


@dataclass(frozen=True)
class Hold:
    """A stated need.

    Attributes:
        ttl: seconds from now; `FOREVER` for blobs that a name in the store refers to.
        holder: who states it; holds by the default can't be released.
    """

    ttl: float
    holder: str = PUT


def holder(kind: str, name: object) -> str:
    """Return the holder of *kind* (``task``, ``result``, ``pin``) called *name*.

    *name* may be anything that Celery accepts as an id; long or unprintable ones are hashed.
    """
    shown = str(name)
    encoded = shown.encode("utf-8", "backslashreplace")
    if len(encoded) > _MAX_NAME or not shown.isprintable():
        shown = hashlib.blake2b(encoded, digest_size=20).hexdigest()
    return f"{kind}:{shown}"


def longest_ttl(ttl: float) -> float:
    """Return the longest hold, in seconds, requested for a need of *ttl* seconds."""
    return ttl * _MARGIN + _SKEW


class Holds:
    """Extends and releases holds on stored values.

    Args:
        reader: reads the manifests of values whose chunks aren't known.
        known: the blobs of values that this process stored or read.
        clock: returns seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        reader: Reader,
        known: KnownBlobs,
        retrying: Retrying,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._reader = reader
        self._known = known
        self._retrying = retrying
        self._clock = clock
        self._may_cut_small = chunk_size_of(store) is not None
        # `isinstance` with a protocol is slow, so it is checked once.
        self._deferring = store.blobs if isinstance(store.blobs, DefersReleases) else None

    def add(self, refs: Iterable[Ref[Any]], hold: Hold) -> bool:
        """Hold the values of *refs*, in one round trip, or none if they are held long enough.

        Returns whether there is something for the holder to release.

        Raises:
            BlobMissing: a value is no longer in the store.
            StoreUnavailable: also if a value is in a store that the app no longer uses.
        """
        refs = list(refs)
        needed = [ref for ref in refs if not self._is_held(ref, hold.ttl)]
        if not needed:
            return False
        if self._store.blobs.tracks_holds:  # in the same round trip, check the others
            needed += [ref for ref in refs if ref not in needed and self._knows_blobs(ref)]
        ttl = self.store_ttl(hold)
        found = [self._retrying(lambda ref=ref: self.digests(ref)) for ref in needed]  # type: ignore[misc]
        every = list(dict.fromkeys(chain.from_iterable(found)))
        missing = self._retrying(lambda: self._store.blobs.hold(every, ttl, hold.holder))
        until = self._clock() + ttl - _SKEW if self._is_sure(hold) and ttl < FOREVER else 0.0
        for ref, digests in zip(needed, found, strict=True):
            if gone := missing.intersection(digests):
                # Reading raises StoreUnavailable if the blob is in a store no longer in use.
                list(self._reader.fetch(ref, [min(gone)], ROOT_LIMIT + MAX_OVERHEAD))
                raise self._reader.missing_error(ref, min(gone))
            self._known.note(digests, until)
        return True

    def note(self, digests: list[Digest], hold: Hold, end: float) -> float:
        """Remember a value's blobs; return until when they are sure to live.

        *end* is when the store lets *hold* expire, both in seconds since 1970. What is held
        `FOREVER` isn't sure to live at all, because its name may be removed at any time.
        """
        until = end - _SKEW if end < FOREVER else self._clock()
        self._known.note(digests, until if self._is_sure(hold) else 0.0)
        return until

    def release(
        self, refs: Iterable[Ref[Any]], holder: str, grace: float, *, later: bool = False
    ) -> bool:
        """Release what *holder* holds of the values of *refs*; they expire *grace* seconds later.

        Makes one attempt: what isn't released expires when its hold does. Raises StoreError.

        Args:
            later: release with the process's next request, if the store can. Returns whether it
                will: `release_deferred` must then be called soon.
        """
        blobs = self._store.blobs
        if not blobs.tracks_holds:
            return False
        digests: list[Digest] = []
        for ref in refs:
            try:
                digests += self.digests(ref)
            except BlobMissing:  # nothing is left to release
                continue
        if not digests:
            return False
        if (
            later
            and self._deferring is not None
            and self._deferring.release_later(digests, holder, grace)
        ):
            return True
        blobs.release(digests, holder, grace)
        return False

    def release_deferred(self) -> int:
        """Release what no request has carried; return how many releases have failed for good.

        Raises StoreUnavailable; the next request carries them then.
        """
        return 0 if self._deferring is None else self._deferring.release_deferred()

    def digests(self, ref: Ref[Any]) -> list[Digest]:
        """Return the digests of all blobs of *ref*, its root first; reads its manifest if needed.

        Raises what reading does.
        """
        if ref.digest is None:
            return []
        _, digests = self._known.find(ref.digest)
        if not digests and ref.size < SINGLE and not self._may_cut_small:
            return [ref.digest]
        return digests or self._reader.read_digests(ref)

    def knows(self, root: Digest) -> bool:
        """Return whether this process stored or read the value named *root* recently."""
        return bool(self._known.find(root)[1])

    def store_ttl(self, hold: Hold) -> float:
        """Return the seconds for which to ask the store, so that *hold* lasts."""
        return longest_ttl(hold.ttl) if self._is_sure(hold) else hold.ttl + _SKEW

    def _knows_blobs(self, ref: Ref[Any]) -> bool:
        """Return whether `digests` needs no read."""
        if ref.digest is None:
            return False
        return ref.size < SINGLE or self.knows(ref.digest)

    def _is_held(self, ref: Ref[Any], ttl: float) -> bool:
        """Return whether *ref* is sure to live for *ttl* seconds."""
        if ref.digest is None:
            return True
        until, _ = self._known.find(ref.digest)
        if not self._store.blobs.tracks_holds:
            until = max(until, ref.until)
        return until >= self._clock() + ttl

    def _is_sure(self, hold: Hold) -> bool:
        """Return whether *hold* can't be released."""
        return hold.holder == PUT or not self._store.blobs.tracks_holds
