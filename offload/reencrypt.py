"""Encrypt what a store keeps with the first encryption key, instead of an older one or none.

Names of blobs depend on the key. So a value is copied under new names, what refers to it is
changed by compare-and-swap, and only then are the old blobs released. That is done for everything
without an expiry: catalogs, pins, and shipped classes. Messages, results, and remembered results
keep the old names until they expire. `Report.others` counts the blobs under each older key; when
there are none, the key can be removed.

If a run is interrupted, the next one continues: what was moved isn't read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from offload.catalog.names import BUCKETS, NAMES, RECORDS, object_of
from offload.catalog.pointers import CatalogPointers
from offload.catalog.records import read_record, seal, unseal, write_record
from offload.classes.versions import FOLDER, Storage, versions_in
from offload.content.encoding import MAX_OVERHEAD, decode
from offload.content.manifest import CHUNK, Manifest, read_root, rewrite_chunks, root_limit
from offload.content.store import ContentStore, Pins
from offload.digest import Buffer, Digest
from offload.encryption.blobs import BlobCipher, key_id_of_blob
from offload.encryption.keys import EncryptionKey
from offload.errors import ConfigurationError, IntegrityError, OffloadError
from offload.ref import Ref
from offload.stores.capabilities import blob_inspection_of
from offload.stores.protocols import FOREVER, Store

PLAIN = "none"
"""Stands for a key id where data isn't encrypted."""

_SETTLING = 3600.0  # seconds that copied blobs live until something names them
_PREFIX = 16  # stored bytes that identify a blob's key
_PAGE = 500
_FAILURES = 20  # that a report lists


@dataclass
class Under:
    """The blobs under one key.

    Attributes:
        count, size: how many, and their stored bytes.
        ttl: seconds after which the last of them expires, unless something extends it.
    """

    count: int = 0
    size: int = 0
    ttl: float = 0.0


@dataclass
class Report:
    """Result of `reencrypt`.

    Attributes:
        key: id of the first key.
        moved: how many of each kind were moved: ``record``, ``pin``, ``class``, and ``state``.
        keys: the blobs by the id of their key; `PLAIN` if they aren't encrypted.
        failures: what couldn't be moved, and why; the first 20.
        failed: how many.
    """

    key: str
    moved: Counter[str] = field(default_factory=Counter)
    keys: dict[str, Under] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    failed: int = 0

    @property
    def others(self) -> dict[str, Under]:
        """The blobs under other keys than the first."""
        return {key: under for key, under in self.keys.items() if key != self.key}

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "key": self.key,
            "moved": dict(self.moved),
            "failed": self.failed,
            "failures": self.failures,
            "keys": {key: vars(under) for key, under in sorted(self.keys.items())},
            "done": not self.failed and not self.others,
        }


def reencrypt(
    content: ContentStore,
    *,
    grace: float,
    dry_run: bool = False,
    seen: Callable[[str], None] = lambda _: None,
) -> Report:
    """Move everything without an expiry to the first key, and count the blobs under other keys.

    Reads and writes one chunk at a time.

    Args:
        grace: seconds for which old blobs live once nothing names them.
        dry_run: only count.
        seen: called with the name of each pointer that was read.

    Raises ConfigurationError without keys, StoreUnavailable, KeyUnavailable.
    """
    if content.cipher is None:
        raise ConfigurationError("there is no key to encrypt with: set offload_encryption_keys")
    key = content.cipher.keyring.current
    report = Report(key.id)
    if not dry_run:
        mover = _Mover(content, content.cipher, key, grace)
        for kind, name, move in mover.all():
            seen(name)
            try:
                report.moved[kind] += move(name)
            except OffloadError as exc:
                report.failed += 1
                if len(report.failures) < _FAILURES:
                    report.failures.append(f"{name}: {exc}")
    report.keys = count_by_key(content.store)
    return report


def count_by_key(store: Store, most: int | None = None) -> dict[str, Under]:
    """Count blobs by the id of their key, or `PLAIN`; no more than *most* of them.

    Raises StoreUnavailable, StoreError; ConfigurationError if the store can't be inspected.
    """
    found: dict[str, Under] = {}
    inspection = blob_inspection_of(store)
    infos = islice(store.blobs.scan(), most)
    while page := list(islice(infos, _PAGE)):
        peeks = inspection.peek([info.digest for info in page], _PREFIX)
        for info, peek in zip(page, peeks, strict=True):
            if peek is not None:
                under = found.setdefault(key_id_of_blob(peek.prefix) or PLAIN, Under())
                under.count += 1
                under.size += info.size
                under.ttl = max(under.ttl, info.ttl)
    return found


class _Mover:
    def __init__(
        self, content: ContentStore, cipher: BlobCipher, key: EncryptionKey, grace: float
    ) -> None:
        self._content = content
        self._cipher = cipher
        self._key = key
        self._grace = grace
        self._pointers = content.store.pointers
        self._blobs = content.store.blobs
        self._pins = Pins(content, grace)
        self._classes = Storage(self._pointers, content.retrying, cipher.keyring)

    def all(self) -> Iterator[tuple[str, str, Callable[[str], bool]]]:
        """Yield kind and name of each thing to be moved, and what moves it."""
        for name in self._pointers.names(RECORDS):
            yield "record", name, self._record
        for prefix in (NAMES, BUCKETS):
            for name in self._pointers.names(prefix):
                yield "state", name, self._state
        for name in self._pins.names() if self._blobs.tracks_holds else ():
            yield "pin", name, self._pin
        for name in self._pointers.names(FOLDER):
            if versions_in([name]):
                yield "class", name, self._class

    def _record(self, pointer: str) -> bool:
        place, before = object_of(pointer), self._pointers.read(pointer)
        if place is None or before is None:
            return False
        catalog = CatalogPointers(self._content, place.bucket)
        record = catalog.parse(lambda keys: read_record(pointer, before, keys, place))
        ref = self._content.open(record.ref)
        new = self._moved(ref, record.holder)
        moved = replace(record, ref=new.wire, digest=new.digest)
        after = write_record(moved, pointer, self._content.signing.keys)
        if after == before or not self._pointers.swap(pointer, before, after):
            return False
        self._release(ref, new, record.holder)
        return True

    def _state(self, pointer: str) -> bool:
        before = self._pointers.read(pointer)
        if before is None:
            return False
        catalog = CatalogPointers(self._content, pointer.split("/")[1])
        data = catalog.parse(lambda keys: unseal(pointer, before, keys))
        after = seal(pointer, data, self._content.signing.keys)
        return after != before and self._pointers.swap(pointer, before, after)

    def _pin(self, name: str) -> bool:
        ref = self._pins.find(name)
        if ref is None:
            return False
        new = self._moved(ref, None)
        return new.wire != ref.wire and self._pins.replace(name, ref, new)

    def _class(self, pointer: str) -> bool:
        before = self._pointers.read(pointer)
        if before is None:
            return False
        [record] = self._classes.read_records([pointer])
        if record is None or key_id_of_blob(before) == self._key.id:
            return False
        [stored] = self._classes.get([record.pair])
        return stored is not None and self._classes.put(stored, before)

    # -- values

    def _moved(self, ref: Ref[Any], holder: str | None) -> Ref[Any]:
        """Return a reference to the value of *ref* under the first key, signed by it, too."""
        data, digest = ref.data, ref.digest
        if data is not None:
            data = self._cipher.seal_inline(self._cipher.open_inline(data, repr(ref)))
        elif digest is not None:
            digest = self._copied(ref, digest, holder)
        moved = replace(ref, digest=digest, data=data)
        return self._content.signing.resign(moved, self._content.reader.get)

    def _copied(self, ref: Ref[Any], digest: Digest, holder: str | None) -> Digest:
        where = f"{ref!r} in {self._content.store.url}"
        (stored,) = self._blobs.get([digest], root_limit(ref.size) + MAX_OVERHEAD)
        if key_id_of_blob(bytes(memoryview(stored)[:_PREFIX])) == self._key.id:
            return digest
        ttl = _SETTLING if self._blobs.tracks_holds else FOREVER
        inner = self._verified(stored, digest, root_limit(ref.size), where)
        root = decode(inner, root_limit(ref.size), where)
        manifest = read_root(root, size=ref.size, where=where)
        names = list(self._copied_chunks(manifest, ttl, ref, where))
        root = memoryview(rewrite_chunks(root, names)) if names else root
        new = self._key.digest_of([root])
        kind = bytes(memoryview(inner)[:1])
        parts: list[Buffer] = [kind, memoryview(inner)[1:]]
        if names:
            parts = list(self._content.writer.compress([root]))
        self._put(parts, new, ttl, ref.size)
        every = list(dict.fromkeys([new, *names]))
        is_held = holder is not None and self._blobs.tracks_holds
        if is_held and self._blobs.hold(every, FOREVER, str(holder)):
            raise IntegrityError(f"{where}: its copy is missing; run this again")
        return new

    def _copied_chunks(
        self, manifest: Manifest, ttl: float, ref: Ref[Any], where: str
    ) -> Iterator[Digest]:
        for chunk in manifest.chunks:
            (stored,) = self._blobs.get([chunk.digest], max(chunk.size, CHUNK) + MAX_OVERHEAD)
            inner = self._verified(stored, chunk.digest, chunk.size, where)
            plain = decode(inner, chunk.size, where)
            new = self._key.digest_of([plain])
            view = memoryview(inner)
            self._put([bytes(view[:1]), view[1:]], new, ttl, ref.size)
            yield new

    def _verified(self, stored: Buffer, digest: Digest, limit: int, where: str) -> Buffer:
        """Return a blob decrypted but still compressed."""
        inner = self._cipher.decrypt(stored, digest, where)
        if not self._cipher.matches(decode(inner, limit, where), digest):
            raise IntegrityError(f"{where} was altered: {digest} doesn't match", digest=digest)
        return inner

    def _put(self, parts: list[Buffer], digest: Digest, ttl: float, size: int) -> None:
        encrypted = self._cipher.encrypt(parts, digest, self._key)
        self._content.retrying(lambda: self._blobs.put({digest: encrypted}, ttl, value_size=size))

    def _release(self, old: Ref[Any], new: Ref[Any], holder: str) -> None:
        if old.digest != new.digest:
            self._content.holds.release([old], holder, self._grace)
