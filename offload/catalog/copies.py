"""LocalCopies: records and their content in a folder of this machine.

They survive restarts and outages of the store. The folder is a store in files, private to its
owner: content is compared with its digests whenever it is read, and records with their signature.
Unless ``offload_secret`` is set, the key that verifies them is in the folder, too.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from offload.catalog.lifetime import named_blobs
from offload.catalog.names import RECORDS, name_pointer, record_pointer
from offload.catalog.pointers import CatalogPointers, State
from offload.catalog.records import Record, write_record
from offload.content.encoding import MAX_OVERHEAD, read_blob
from offload.content.manifest import CHUNK, root_limit
from offload.content.store import ContentStore
from offload.digest import Digest
from offload.encryption.keys import Keyring
from offload.errors import BlobMissing, IntegrityError, StoreError
from offload.metrics.counters import Counters
from offload.ref import Ref
from offload.serializers.choose import Registry
from offload.settings import Settings
from offload.stores.file import FileStore
from offload.stores.protocols import FOREVER, Store

logger = logging.getLogger(__name__)

_KEY = "keys/ref"  # pointer of the key that signs references, if no secret does
_USED = "used"  # folder of files whose mtime is when a record was used
_STATES = 10_000  # maximum number of states whose copies a process remembers


def content_in(
    folder: Path,
    url: str,
    serializers: Registry,
    settings: Settings,
    keyring: Keyring | None = None,
) -> tuple[FileStore, ContentStore]:
    """Return a file store in *folder* for copies of the store at *url*, and its content store.

    Several stores may share a folder.

    Args:
        keyring: the encryption keys of *settings*, if they are loaded already.
    """
    root = folder / blake2b(url.encode(), digest_size=10).hexdigest()
    store = FileStore(root, skew=0.0, lock_timeout=60.0)
    return store, ContentStore(store, serializers, settings, Counters(), keyring=keyring)


def copy_blobs(
    source: ContentStore,
    target: Store,
    digests: Sequence[Digest],
    missing: Collection[Digest],
    ttl: float,
    size: int,
) -> None:
    """Copy the *missing* chunks of a value of *size* bytes, and its root; verify each.

    They stay encrypted if they are. The root is stored last: it never exists without what it lists.

    Args:
        digests: of the root, and of all chunks.

    Raises BlobMissing, IntegrityError, StoreUnavailable, StoreError.
    """
    root, *chunks = digests
    absent = [chunk for chunk in chunks if chunk in missing]
    for wanted, limit in ((absent, 2 * CHUNK), ([root], root_limit(size))):
        blobs = source.store.blobs.get(wanted, limit + MAX_OVERHEAD)
        for digest, stored in zip(wanted, blobs, strict=True):
            where = f"{digest} in {source.store.url}"
            read_blob(stored, digest, limit, where, source.cipher)  # which verifies it
            target.blobs.put({digest: [stored]}, ttl, value_size=size)


class MirroredPointers(CatalogPointers):
    """Pointers in a store; the states of names are copied locally when they are read."""

    def __init__(self, content: ContentStore, bucket: str, copies: LocalCopies) -> None:
        super().__init__(content, bucket)
        self._copies = copies

    def states(self, names: Sequence[str]) -> dict[str, State | Exception]:
        found = super().states(names)
        for name, state in found.items():
            if not isinstance(state, Exception):
                self._copies.keep_state(self.bucket, name, state[0], self.content)
        return found


class LocalCopies:
    """Copies of the records of one store, and of their content.

    Safe to use from several processes at once: a copy that another process evicts is missing, and
    is fetched again.

    Args:
        store, content: have the copies; see `content_in`.
        limit: maximum bytes of content; the least recently used is evicted first.
    """

    def __init__(self, store: FileStore, content: ContentStore, limit: int) -> None:
        self.store = store
        self.content = content
        self.limit = limit
        self._pointers = store.pointers
        self._states: dict[str, bytes | None] = {}

    def keep_state(self, bucket: str, name: str, value: bytes | None, remote: ContentStore) -> None:
        """Copy a name's state, just read from the store."""
        pointer = name_pointer(bucket, name)
        if self._states.get(pointer, b"") == value:
            return
        with suppress(StoreError):  # such as on a full disk: copies are optional
            self._keep_key(remote)
            self._set(pointer, value)
            if len(self._states) >= _STATES:
                self._states.clear()
            self._states[pointer] = value

    def load(self, record: Record, remote: ContentStore) -> Any:
        """Return the value of a *record* in the store, which keeps a copy of it.

        Raises what reading from the store raises.
        """
        ref = remote.open(record.ref)
        if record.size > self.limit or ref.digest is None:
            return remote.reader.get(ref)
        own: Ref[Any] = replace(ref, resolve=self.content.reader.get)
        pointer = record_pointer(record.bucket, record.name, record.key)
        value = write_record(record, pointer, remote.signing.keys)
        try:
            was_copied = self._pointers.read(pointer) == value
            found = self._read(record, own) if was_copied else None
            if found is not None:
                remote.counters.object_hit()
                self._note_use(pointer)
                return found[0]
            self._fetch(record, ref, remote, every=was_copied)
            found = self._read(record, own)
            if found is None:  # a chunk that it shares with another value was damaged
                self._fetch(record, ref, remote, every=True)
                found = (self.content.reader.get(own),)
            self._keep_key(remote)
            self._set(pointer, value)
            self._note_use(pointer)
        except StoreError as exc:
            if exc.store != self.store.url:
                raise
            logger.warning("local copies can't be used: %s", exc)  # such as on a full disk
            return remote.reader.get(ref)
        return found[0]

    def _read(self, record: Record, own: Ref[Any]) -> tuple[Any] | None:
        """Return the value in the folder; None if a part of it is missing or damaged."""
        try:
            return (self.content.reader.get(own),)
        except (BlobMissing, IntegrityError) as exc:
            logger.warning("fetching %s again: its local copy: %s", record.label, exc)
            return None

    def _fetch(self, record: Record, ref: Ref[Any], remote: ContentStore, *, every: bool) -> None:
        """Copy the missing blobs of a value, or *every* blob."""
        digests = remote.retrying(lambda: remote.holds.digests(ref))
        if every:
            self.store.blobs.delete(digests)
        self._make_room(record.size)
        missing = self.store.blobs.hold(digests, FOREVER)
        if missing:
            remote.retrying(
                lambda: copy_blobs(remote, self.store, digests, missing, FOREVER, record.size)
            )

    # -- the folder

    def _keep_key(self, remote: ContentStore) -> None:
        keys = remote.signing.keys
        if not keys.secret:
            self._set(_KEY, keys.keys[0])

    def _set(self, pointer: str, value: bytes | None) -> None:
        while (before := self._pointers.read(pointer)) != value:
            if self._pointers.swap(pointer, before, value):
                return

    def _note_use(self, pointer: str) -> None:
        path = self._use_file(pointer)
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.touch(mode=0o600)

    def _use_file(self, pointer: str) -> Path:
        name = blake2b(pointer.encode(), digest_size=20).hexdigest()
        return self.store.disk.root / _USED / name

    def _last_use(self, pointer: str) -> float:
        with suppress(OSError):
            return self._use_file(pointer).stat().st_mtime
        return 0.0

    def _make_room(self, needed: int) -> None:
        """Evict what was used least recently, until *needed* more bytes fit."""
        sizes = {info.digest: info.size for info in self.store.blobs.scan()}
        if sum(sizes.values()) + needed <= self.limit:
            return
        pointers = sorted(self._pointers.names(RECORDS), key=self._last_use)
        while True:
            stay = named_blobs(self.store, sizes)
            self.store.blobs.delete(sizes.keys() - stay)
            sizes = {digest: size for digest, size in sizes.items() if digest in stay}
            if sum(sizes.values()) + needed <= self.limit or not pointers:
                return
            pointer = pointers.pop(0)
            self._set(pointer, None)
            self._use_file(pointer).unlink(missing_ok=True)
