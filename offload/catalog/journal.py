"""Journal: saves that wait on this machine until the store is available.

An entry is a pointer ``journal/<number>`` in a store in files, written and flushed to disk after
the content that it names, and encrypted if that is. It is removed once the store has its record.
Its random number is the record's: a process that was killed in between finds by it that the save is
done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Any

from offload.catalog.copies import copy_blobs
from offload.catalog.records import GREATEST, Record, is_time, sealing
from offload.catalog.saving import OnConflict, upload_hold
from offload.content.holds import Hold
from offload.content.store import ContentStore
from offload.digest import Digest, parse_digest
from offload.encryption.keys import ID_BYTES, missing_key
from offload.errors import (
    BlobMissing,
    IntegrityError,
    KeyUnavailable,
    OffloadError,
    StoreError,
    StoreUnavailable,
    UnsupportedVersion,
)
from offload.ref import Ref
from offload.stores.file import FileStore
from offload.stores.protocols import FOREVER
from offload.text import human_size

_PURPOSE = "journal"  # of sealed entries, which get another name when they are refused
_SEALED = b"\x02\x80"  # start of one, see `offload.encryption.sealing`
_WAITING, _REFUSED = "journal/", "refused/"
_NUMBER = re.compile(r"[0-9]{12,}", re.ASCII)
_FORMAT = 1
_GRACE = 60.0  # seconds for which content stays that no record names
_ENTRIES = 10_000  # at most


@dataclass(frozen=True)
class Entry:
    """A save that waits.

    Attributes:
        key, shown: the version; None for the next number.
        tried: whether the store may have its record.
        nonce: of its record.
        digest, size, serializer, type: of its value.
    """

    bucket: str
    name: str
    key: str | None
    shown: str | None
    metadata: Any
    on_conflict: OnConflict
    overwrites: bool
    author: str
    created: float
    nonce: str
    tried: bool
    digest: str
    size: int
    serializer: str
    type: str

    @property
    def label(self) -> str:
        return self.name if self.shown is None else f"{self.name}@{self.shown}"


Commit = Callable[[Entry, Ref[Any]], "Record | Exception"]
"""Save the version of an entry, whose content the store has; return its record or the error."""


class Journal:
    """Saves of one machine that wait for one store, in their order.

    Args:
        store, content: where it is; see `offload.catalog.copies.content_in`.
        limit: maximum bytes of waiting content.
    """

    def __init__(self, store: FileStore, content: ContentStore, limit: int) -> None:
        self._store = store
        self._content = content
        self._pointers = store.pointers
        self._keyring = self._content.signing.keyring
        self._limit = limit

    def __len__(self) -> int:
        return len(self._names(_WAITING))

    def add(self, entry: Callable[[Ref[Any]], Entry], value: Any, serializer: str) -> Entry:
        """Add a save of *value*, whose *entry* is made from its reference; return it.

        Raises StoreUnavailable if the journal is full, SerializationError, ValueTooLarge.
        """
        payload = self._content.writer.serialize(value, serializer)
        with self._store.disk.lock("journal"):
            waiting = self._names(_WAITING)
            used = sum(info.size for info in self._store.blobs.scan())
            if len(waiting) >= _ENTRIES or used + payload.size > self._limit:
                raise StoreUnavailable(
                    f"the journal in {self._store.url} is full, with {len(waiting)} saves of "
                    f"{human_size(used)}: raise queue_size, or make the store available",
                    store=self._store.url,
                )
            ref = self._content.writer.put_payload(payload, hold=Hold(FOREVER))
            made = entry(ref)
            last = max(self._names(_WAITING) + self._names(_REFUSED), default=0)
            self._pointers.swap(_pointer(_WAITING, last + 1), None, self._written(made))
        return made

    def replay(
        self, remote: ContentStore, commit: Commit
    ) -> Iterator[tuple[str, Record | Exception]]:
        """Save all that waits in *remote*, in order; yield each ``name@version`` and its record,
        or why it was refused.

        A refused save leaves the queue, but stays in the folder until `discard`. One that fails
        with a plain StoreError stays in the queue.

        Raises StoreUnavailable if *remote* is unavailable again, or another process replays.
        """
        with self._store.disk.lock("replay"):
            for number in self._names(_WAITING):
                pointer = _pointer(_WAITING, number)
                value = self._pointers.read(pointer)
                if value is None:
                    continue
                label = pointer
                try:
                    entry = self._read(pointer, value)
                    label = entry.label
                    outcome = self._save(pointer, value, entry, remote, commit)
                except OffloadError as exc:
                    outcome = exc
                if isinstance(outcome, StoreUnavailable):
                    raise outcome
                # What a store says of this client, such as of its password, isn't about the save.
                if type(outcome) is not StoreError:
                    self._finish(number, refused=isinstance(outcome, Exception))
                yield label, outcome

    def discard(self) -> int:
        """Forget the saves that were refused; return how many."""
        with self._store.disk.lock("journal"):
            numbers = self._names(_REFUSED)
            for number in numbers:
                pointer = _pointer(_REFUSED, number)
                self._pointers.swap(pointer, self._pointers.read(pointer), None)
            self._drop_unneeded()
        return len(numbers)

    def _save(
        self, pointer: str, value: bytes, entry: Entry, remote: ContentStore, commit: Commit
    ) -> Record | Exception:
        local = _ref(entry)
        digests = self._content.holds.digests(local)
        store, hold = remote.store, upload_hold(remote.store, entry.nonce)
        missing = remote.retrying(lambda: store.blobs.hold(digests, hold.ttl, hold.holder))
        if missing:
            remote.retrying(
                lambda: copy_blobs(self._content, store, digests, missing, hold.ttl, entry.size)
            )
        if not entry.tried:
            self._pointers.swap(pointer, value, self._written(replace(entry, tried=True)))
        outcome = commit(entry, remote.signing.resign(local, remote.reader.get))
        with suppress(StoreError):  # it expires by itself
            store.blobs.release(digests, hold.holder, _GRACE)
        return outcome

    def _finish(self, number: int, *, refused: bool) -> None:
        """Remove an entry, and the content that no other entry names."""
        with self._store.disk.lock("journal"):
            waiting = _pointer(_WAITING, number)
            value = self._pointers.read(waiting)
            if refused:
                self._pointers.swap(_pointer(_REFUSED, number), None, value)
            self._pointers.swap(waiting, value, None)
            if not refused:
                self._drop_unneeded()

    def _drop_unneeded(self) -> None:
        needed: set[Digest] = set()
        for folder in (_WAITING, _REFUSED):
            for number in self._names(folder):
                pointer = _pointer(folder, number)
                value = self._pointers.read(pointer)
                if value is not None:
                    try:
                        entry = self._read(pointer, value)
                        needed.update(self._content.holds.digests(_ref(entry)))
                    except (BlobMissing, IntegrityError, KeyUnavailable):
                        return  # what it needs isn't known
        found = {info.digest for info in self._store.blobs.scan()}
        self._store.blobs.delete(found - needed)

    def _names(self, folder: str) -> list[int]:
        """Return the numbers of entries, in order; pointers of others are ignored."""
        found = (name[len(folder) :] for name in self._pointers.names(folder))
        return sorted(int(number) for number in found if _NUMBER.fullmatch(number))

    def _written(self, entry: Entry) -> bytes:
        text = json.dumps({"format": _FORMAT, **asdict(entry)}, ensure_ascii=False)
        written = f"{_checksum(text)} {text}".encode()
        ring = self._keyring
        return written if ring is None else sealing().seal(written, ring.current, _PURPOSE, "")

    def _read(self, pointer: str, value: bytes) -> Entry:
        """Return the entry in *value*.

        Raises IntegrityError, KeyUnavailable, UnsupportedVersion.
        """
        url = self._store.url
        if self._keyring is not None:
            value = sealing().open_sealed(value, self._keyring, _PURPOSE, "")
        elif value[: len(_SEALED)] == _SEALED:
            raise missing_key(value[2 : 2 + ID_BYTES].hex(), f"{pointer} in {url}", [])
        try:
            checksum, _, text = value.decode().partition(" ")
            data = json.loads(text)
            if data.pop("format") > _FORMAT:
                raise UnsupportedVersion(
                    f"{pointer} in {url} was written by a newer offload: upgrade offload here"
                )
            if checksum == _checksum(text):
                return _checked(Entry(**data))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        raise IntegrityError(f"{pointer} in {url} was altered: it can't be saved", store=url)


def _pointer(folder: str, number: int) -> str:
    return f"{folder}{number:012d}"


def _checked(entry: Entry) -> Entry:
    """Return *entry*; raises ValueError or TypeError unless its fields have their types."""
    parse_digest(entry.digest)
    texts = (entry.bucket, entry.name, entry.author, entry.nonce, entry.serializer, entry.type)
    optional = (entry.key, entry.shown)
    if not (
        all(type(text) is str for text in texts)
        and all(text is None or type(text) is str for text in optional)
        and type(entry.size) is int
        and 0 <= entry.size < GREATEST
        and is_time(entry.created)
    ):
        raise ValueError("not an entry")
    return entry


def _checksum(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _ref(entry: Entry) -> Ref[Any]:
    """Return an unsigned reference to the value of *entry*."""
    created, digest = entry.created, Digest(entry.digest)
    return Ref(digest, entry.size, entry.serializer, entry.type, created, created, wire="")
