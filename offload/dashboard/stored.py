"""What is in the store, as pages ask for it."""

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
from offload.inspect.blobs import Sharing, describe_kind, is_ref
from offload.inspect.content import read_content, summarize_blobs
from offload.inspect.snapshot import LIMIT, Snapshot, held_by, take_snapshot
from offload.inspect.tasks import describe_task
from offload.inspect.values import describe, describe_content, describe_preview
from offload.stores.processes import PerProcess
from offload.stores.protocols import Store

__all__ = ("Kind", "Stored")

_FIRST = 0.15  # seconds that a page waits for the first look at a store
_SHARED_EVERY = 300.0
_CONTENT = 60.0  # seconds for which what a blob has is shown again: it never changes
_KINDS = 30.0  # seconds for which it is not read again what the blobs of a page are
_DESCRIBED = 30.0  # seconds for which what was looked up is shown again
_NAMES = 8  # holders of whom it is known what they hold
_REFS = 100  # references that are remembered
_AT_ONCE = 8  # lookups, of the 40 threads that answer requests
_PATIENCE = 1.0  # seconds that a lookup waits for its turn


@dataclass(frozen=True)
class Kind:
    """What a blob seems to be.

    Attributes:
        text: for people.
        part: whether it may be a part of other values.
        age: seconds since it was written or prolonged; None where that is not known.
    """

    text: str
    part: bool
    age: float | None


class Stored:
    """Looks at all blobs in the background while pages ask for them, and at single ones."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._blobs = BackgroundRefresh(lambda: take_snapshot(runtime.store))
        self._shared = BackgroundRefresh(lambda: Sharing(runtime.store, LIMIT), every=_SHARED_EVERY)
        self._contents: TTLCache[Mapping[str, Any]] = TTLCache(self._content, _CONTENT)
        self._described: TTLCache[Mapping[str, Any]] = TTLCache(self._describe, _DESCRIBED)
        self._kinds: TTLCache[list[Kind | None]] = TTLCache(self._glance, _KINDS)
        self._turns = PerProcess(lambda: threading.BoundedSemaphore(_AT_ONCE))
        self._refs: dict[str, str] = {}
        self._found: PerProcess[_Found] = PerProcess(_Found)

    @property
    def store(self) -> Store:
        return self._runtime.store

    def blobs(self) -> Refreshed[Snapshot]:
        """Return the newest snapshot, after a moment's waiting for the first."""
        return self._blobs.get(_FIRST)

    def shared(self) -> Refreshed[Sharing]:
        """Return in how many values chunks are: some KiB are read of each blob for that."""
        return self._shared.get()

    def changed(self) -> None:
        """Have all blobs looked at again: some were removed."""
        self._blobs.invalidate()

    def held_by(self, snapshot: Snapshot, name: str) -> list[int]:
        """Return the places of what is held in this name; once for each snapshot."""
        return self._found.get().held_by(self.store, snapshot, name)

    def kinds(self, digests: Sequence[Digest]) -> list[Kind | None]:
        """Return what the blobs of a page seem to be; None for those that are not there any more.

        Raises StoreUnavailable.
        """
        return self._kinds.get(*digests)

    def _glance(self, *digests: Digest) -> list[Kind | None]:
        return [
            None
            if seen is None
            else Kind(describe_kind(seen), part=seen.root is None, age=seen.seen.age)
            for seen in summarize_blobs(self.store, digests)
        ]

    def content(self, digest: Digest) -> Mapping[str, Any]:
        """Return what a blob has: as ``describe_content``, and its ``preview``.

        Raises BlobMissing, IntegrityError, StoreUnavailable.
        """
        return self._contents.get(digest)

    def described(self, what: str) -> Mapping[str, Any]:
        """Return what a reference or a task is; raises what `describe` raises.

        Of a task that goes on it is asked anew each time; what does not change any more is shown
        again for some time, as its value is read for that. A result backend may hang for minutes:
        few threads wait for it, and further ones raise StoreUnavailable soon.
        """
        turns = self._turns.get()
        if not turns.acquire(timeout=_PATIENCE):
            raise StoreUnavailable("what others look up is not answered yet: this comes after it")
        try:
            return self._looked_up(what)
        finally:
            turns.release()

    def _looked_up(self, what: str) -> Mapping[str, Any]:
        if not is_ref(what):
            told = describe_task(self._runtime, what)
            if told["state"] not in READY_STATES:
                told.pop("result_ref", None)
                return {"what": "task", **told}
        return self._described.get(what)

    def remember(self, ref: str) -> str:
        """Return by which name the text of a reference can be had again for some time: whoever has
        the text may use it, so it is not to stand in addresses, which browsers and proxies keep.
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
        content = read_content(self.store, digest)
        told = describe_content(content)
        if content.manifest is None:
            return told
        try:
            return {**told, "preview": describe_preview(content)}
        except StoreUnavailable:
            raise
        except OffloadError as exc:  # a chunk is missing: the manifest says of what
            return {**told, "broken": str(exc)}


class _Found:
    """What was found in one snapshot; asking for it takes seconds at 100,000 blobs."""

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
