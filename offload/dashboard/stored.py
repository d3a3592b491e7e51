"""What is in the store, as pages ask for it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from offload.catalog.description import told_content, told_preview
from offload.catalog.holding import held_by
from offload.catalog.refreshed import Kept, Refreshed
from offload.catalog.sharing import Sharing
from offload.catalog.snapshot import LIMIT, Snapshot, take
from offload.content.looking import content_of
from offload.dashboard.recent import Recent
from offload.digest import Digest
from offload.errors import OffloadError, StoreUnavailable
from offload.hooks.app import Offload
from offload.stores.base import Store
from offload.stores.processes import PerProcess

__all__ = ("Stored",)

_FIRST = 0.15  # seconds that a page waits for the first look at a store
_SHARED_EVERY = 300.0
_CONTENT = 60.0  # seconds for which what a blob has is shown again: it never changes
_NAMES = 8  # holders of whom it is known what they hold


class Stored:
    """Looks at all blobs in the background while pages ask for them, and at single ones."""

    def __init__(self, hook: Offload) -> None:
        self._hook = hook
        self._blobs = Refreshed(lambda: take(hook.store))
        self._shared = Refreshed(lambda: Sharing(hook.store, LIMIT), every=_SHARED_EVERY)
        self._contents: Recent[Mapping[str, Any]] = Recent(self._content, _CONTENT)
        self._found: PerProcess[_Found] = PerProcess(_Found)

    @property
    def store(self) -> Store:
        return self._hook.store

    def blobs(self) -> Kept[Snapshot]:
        """Return the newest snapshot, after a moment's waiting for the first."""
        return self._blobs.look(_FIRST)

    def shared(self) -> Kept[Sharing]:
        """Return in how many values chunks are: some KiB are read of each blob for that."""
        return self._shared.look()

    def changed(self) -> None:
        """Have all blobs looked at again: some were removed."""
        self._blobs.outdate()

    def held_by(self, snapshot: Snapshot, name: str) -> list[int]:
        """Return the places of what is held in this name; once for each snapshot."""
        return self._found.get().held_by(self.store, snapshot, name)

    def content(self, digest: Digest) -> Mapping[str, Any]:
        """Return what a blob has: as ``told_content``, and its ``preview``.

        Raises BlobMissing, IntegrityError, StoreUnavailable.
        """
        return self._contents.get(digest)

    def _content(self, digest: Digest) -> Mapping[str, Any]:
        content = content_of(self.store, digest)
        told = told_content(content)
        if content.manifest is None:
            return told
        try:
            return {**told, "preview": told_preview(content)}
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
