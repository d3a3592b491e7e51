"""Blobs and values of a store, read and cached for pages."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery.states import READY_STATES

from offload.dashboard.caching import BackgroundRefresh, Refreshed, TTLCache
from offload.digest import Digest, digest_of
from offload.errors import OffloadError, StoreUnavailable
from offload.hooks.runtime import Runtime
from offload.inspect.blobs import Row, Sharing, describe_kind, holders_of, is_ref
from offload.inspect.content import read_content, summarize_blobs
from offload.inspect.snapshot import LIMIT, Snapshot, held_by, take_snapshot
from offload.inspect.value_list import ValueList, describe_holders, list_values
from offload.inspect.values import (
    describe,
    describe_content,
    describe_preview,
    describe_task,
)
from offload.stores.processes import PerProcess
from offload.stores.protocols import Store

_FIRST = 0.15  # seconds that a page waits for the first snapshot
_SHARED_EVERY = 300.0
_CONTENT = 60.0  # seconds to cache the description of a blob, which never changes
_KINDS = 30.0  # seconds to cache the types of a page's blobs
_DESCRIBED = 30.0  # seconds to cache a lookup
_MOST_NAMED = 100  # maximum number of a value's holders that are read
_NAMES = 8  # holders whose blobs are cached
_REFS = 100  # references to remember
_AT_ONCE = 8  # concurrent lookups, using this many of the 40 threads that serve requests
_PATIENCE = 1.0  # seconds that a lookup waits for a free slot


@dataclass(frozen=True)
class Kind:
    """The probable type of a blob.

    Attributes:
        text: its name, shown to people.
        part: whether it may be a chunk.
        age: seconds since the blob was written or its expiry extended; None if unknown.
    """

    text: str
    part: bool
    age: float | None


class Stored:
    """Scans blobs in the background while pages request them, and describes single ones."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._blobs = BackgroundRefresh(lambda: take_snapshot(runtime.store))
        self._values: BackgroundRefresh[ValueList] = BackgroundRefresh(self._list)
        self._listed: PerProcess[list[ValueList]] = PerProcess(list)
        self._shared = BackgroundRefresh(
            lambda: Sharing(runtime.store, LIMIT, cipher=runtime.content.cipher),
            every=_SHARED_EVERY,
        )
        self._contents: TTLCache[Mapping[str, Any]] = TTLCache(self._content, _CONTENT)
        self._described: TTLCache[Mapping[str, Any]] = TTLCache(self._describe, _DESCRIBED)
        self._kinds: TTLCache[list[Kind | None]] = TTLCache(self._glance, _KINDS)
        self._users: TTLCache[Mapping[Digest, str]] = TTLCache(self._name_users, _KINDS)
        self._turns = PerProcess(lambda: threading.BoundedSemaphore(_AT_ONCE))
        self._refs: dict[str, str] = {}
        self._found: PerProcess[_Found] = PerProcess(_Found)

    @property
    def store(self) -> Store:
        return self._runtime.store

    def blobs(self) -> Refreshed[Snapshot]:
        """Return the newest snapshot, waiting a moment for the first."""
        return self._blobs.get(_FIRST)

    def values(self) -> Refreshed[ValueList]:
        """Return the newest list of values, waiting a moment for the first."""
        return self._values.get(_FIRST)

    def _list(self) -> ValueList:
        """List the values; keep the list so that the next scan reads only new blobs."""
        listed = self._listed.get()
        found = list_values(
            self.store,
            take_snapshot(self.store),
            listed[0] if listed else None,
            cipher=self._runtime.content.cipher,
        )
        listed[:] = [found]
        return found

    def users(self, rows: Sequence[Row]) -> Mapping[Digest, str]:
        """Describe the holders of each blob; "" if it has none. Cached for `_KINDS` seconds.

        Raises StoreUnavailable.
        """
        return self._users.get(*((row.digest, row.holders or 0) for row in rows))

    def _name_users(self, *blobs: tuple[Digest, int]) -> Mapping[Digest, str]:
        found = {}
        for digest, count in blobs:
            if count > _MOST_NAMED:
                found[digest] = f"{count:,} holders"
            elif count:
                found[digest] = describe_holders(holders_of(self.store, digest) or ())
        return found

    def shared(self) -> Refreshed[Sharing]:
        """Return how many values contain each chunk. Counting reads a few KiB of each blob."""
        return self._shared.get()

    def changed(self) -> None:
        """Refresh the snapshot, because blobs were removed."""
        self._blobs.invalidate()
        self._values.invalidate()

    def held_by(self, snapshot: Snapshot, name: str) -> list[int]:
        """Return the indexes in *snapshot* of the blobs held by *name*; cached per snapshot."""
        return self._found.get().held_by(self.store, snapshot, name)

    def kinds(self, digests: Sequence[Digest]) -> list[Kind | None]:
        """Return the probable type of each blob; None if it is no longer stored.

        Raises StoreUnavailable.
        """
        return self._kinds.get(*digests)

    def _glance(self, *digests: Digest) -> list[Kind | None]:
        return [
            None
            if seen is None
            else Kind(describe_kind(seen), part=seen.root is None, age=seen.seen.age)
            for seen in summarize_blobs(self.store, digests, self._runtime.content.cipher)
        ]

    def content(self, digest: Digest) -> Mapping[str, Any]:
        """Return the description of a blob by ``describe_content``, and its ``preview``.

        Raises BlobMissing, IntegrityError, StoreUnavailable.
        """
        return self._contents.get(digest)

    def described(self, what: str) -> Mapping[str, Any]:
        """Describe a reference or a task. Raises what `describe` raises, and StoreUnavailable.

        Descriptions are cached because they read the value, except those of unfinished tasks. A
        result backend may hang for minutes, so only `_AT_ONCE` threads wait for it; further
        lookups raise StoreUnavailable after `_PATIENCE` seconds.
        """
        turns = self._turns.get()
        if not turns.acquire(timeout=_PATIENCE):
            raise StoreUnavailable("too many lookups are waiting for a reply: try again later")
        try:
            return self._looked_up(what)
        finally:
            turns.release()

    def _looked_up(self, what: str) -> Mapping[str, Any]:
        if not is_ref(what):
            described = describe_task(self._runtime, what)
            if described["state"] not in READY_STATES:
                described.pop("result_ref", None)
                return {"what": "task", **described}
        return self._described.get(what)

    def remember(self, ref: str) -> str:
        """Remember a reference for a while, and return a name for it.

        Anyone with the text of a reference can use it, so it must not appear in addresses, which
        browsers and proxies record.
        """
        name = digest_of([ref.encode("utf-8", "replace")])[3:35]
        while len(self._refs) >= _REFS:
            self._refs.pop(next(iter(self._refs)), None)
        self._refs[name] = ref
        return name

    def remembered(self, name: str) -> str | None:
        return self._refs.get(name)

    def _describe(self, what: str) -> Mapping[str, Any]:
        return describe(self._runtime, what)

    def _content(self, digest: Digest) -> Mapping[str, Any]:
        content = read_content(self.store, digest, cipher=self._runtime.content.cipher)
        described = describe_content(content)
        if content.manifest is None:
            return described
        try:
            return {**described, "preview": describe_preview(content)}
        except StoreUnavailable:
            raise
        except OffloadError as exc:  # a chunk may be missing although the manifest is readable
            return {**described, "broken": str(exc)}


class _Found:
    """Cache of blobs by holder for one snapshot: a query takes seconds for 100,000 blobs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._places: dict[str, list[int]] = {}

    def held_by(self, store: Store, snapshot: Snapshot, name: str) -> list[int]:
        with self._lock:
            if self._snapshot is not snapshot:
                self._snapshot, self._places = snapshot, {}
            found = self._places.get(name)
            if found is None:
                found = held_by(store, snapshot, name)
                while len(self._places) >= _NAMES:
                    del self._places[next(iter(self._places))]
                self._places[name] = found
            return found
