"""ContentStore: values by content, as four parts that work on one store."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from offload.content.cache import NodeCache
from offload.content.digest_cache import KnownBlobs
from offload.content.get import Reader
from offload.content.holds import Hold, Holds, holder
from offload.content.put import Writer
from offload.content.retrying import Retrying
from offload.content.signing import SigningKeys
from offload.content.through import WriteThrough
from offload.encryption.keys import Keyring, keyring_of
from offload.errors import ConfigurationError
from offload.metrics.counters import Counters
from offload.ref import Ref
from offload.serializers.choose import Registry
from offload.settings import Settings
from offload.stores.protocols import Store

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher


T = TypeVar("T")


class ContentStore:
    """Stores values by content and returns them by reference.

    Thread-safe. After a fork the store opens new clients; everything else here is safe to
    inherit.

    Args:
        cache: asked for large values before the store.
        keyring: the keys of *settings*, if they are loaded already.
        clock: returns seconds since 1970.
        sleep: waits that many seconds between attempts.

    Attributes:
        writer: serializes values and stores them.
        reader: fetches values and decodes them.
        holds: extends and releases holds.
        signing: the keys of references.
        counters: count what happens in this process.
        retrying: repeats calls while the store is unavailable.
        cache: the node cache; None if there is none.
        cipher: encrypts and decrypts blobs; None without encryption.
    """

    def __init__(
        self,
        store: Store,
        serializers: Registry,
        settings: Settings,
        counters: Counters,
        *,
        cache: NodeCache | None = None,
        keyring: Keyring | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        retrying = Retrying(
            settings.retry, on_retry=lambda: counters.add(store_retries=1), sleep=sleep
        )
        known = KnownBlobs()
        keyring = keyring or keyring_of(settings)
        self.cipher = _cipher(keyring)
        self.store = store
        self.cache = cache
        self.counters = counters
        self.serializers = serializers
        self.now = clock
        self.retrying = retrying
        self.signing = SigningKeys(store, settings.secret, counters, retrying, clock, keyring)
        if cache is not None:
            cache.cipher = self.cipher
        self.reader = Reader(
            store,
            serializers,
            counters,
            max_size=settings.max_size,
            known=known,
            cache=cache,
            cipher=self.cipher,
            retrying=retrying,
            clock=clock,
        )
        self.holds = Holds(store, self.reader, known, retrying, clock)
        self.writer = Writer(
            store,
            serializers,
            settings,
            counters,
            signing=self.signing,
            holds=self.holds,
            resolve=self.reader.get,
            through=WriteThrough(cache, counters, settings.cache_write),
            cipher=self.cipher,
            retrying=retrying,
            clock=clock,
        )

    def open(self, wire: str) -> Ref[Any]:
        """Verify *wire* and return its reference, bound to this store; see `SigningKeys.open`."""
        return self.signing.open(wire, self.reader.get)

    def opened(self, ref: Ref[T]) -> Ref[T]:
        """Return *ref* bound to this store; verifies it unless this store did or created it."""
        return ref if ref.resolve == self.reader.get else self.open(ref.wire)


def _cipher(keyring: Keyring | None) -> BlobCipher | None:
    if keyring is None:
        return None
    from offload.encryption.blobs import BlobCipher  # needs the package cryptography

    return BlobCipher(keyring)


_FOLDER = "pins/"
_FOREVER = 100 * 365 * 86400.0
_UNNAMED = 3600.0  # seconds of a hold before a pointer names it, in case its owner dies


class Pins:
    """The pins in a content store.

    Names are 1 to 190 characters of ``A-Z a-z 0-9 . _ - /``; others raise ValueError.

    Args:
        grace: seconds that a value is kept after its pin is removed.
    """

    def __init__(self, content: ContentStore, grace: float) -> None:
        self._content = content
        self._pointers = content.store.pointers
        self._grace = grace

    def pin(self, ref: Ref[Any], name: str) -> None:
        """Pin the value of *ref* as *name*, replacing any pin of this name.

        Raises BlobMissing if the value is missing, ConfigurationError if the store doesn't track
        holds.
        """
        if not self._content.store.blobs.tracks_holds:
            raise ConfigurationError(
                f"{self._content.store.url} deletes values only by age, so they can't be "
                'pinned: put a Redis before it, as in store=["redis://…", "s3://…"]',
                store=self._content.store.url,
            )
        pointer, pin = _FOLDER + name, f"{ref.wire} {secrets.token_hex(6)}".encode()
        owner = _owner(name, pin)
        self._content.holds.add([ref], Hold(_UNNAMED, owner))
        while True:
            before = self._pointers.read(pointer)
            if self._pointers.swap(pointer, before, pin):
                break
        self._content.holds.add([ref], Hold(_FOREVER, owner))
        if before is not None:
            self._release(name, before)
        if self._pointers.read(pointer) != pin:  # removed before it was held forever
            self._release(name, pin)

    def replace(self, name: str, before: Ref[Any], after: Ref[Any]) -> bool:
        """Pin *after* as *name* if *before* is what is pinned now; return whether it was."""
        pointer, pin = _FOLDER + name, f"{after.wire} {secrets.token_hex(6)}".encode()
        owner, old = _owner(name, pin), self._pointers.read(pointer)
        if old is None or old.decode().partition(" ")[0] != before.wire:
            return False
        self._content.holds.add([after], Hold(_FOREVER, owner))
        if not self._pointers.swap(pointer, old, pin):
            self._release(name, pin)
            return False
        self._release(name, old)
        return True

    def unpin(self, name: str) -> bool:
        """Remove the pin; return whether there was one."""
        pointer = _FOLDER + name
        while (before := self._pointers.read(pointer)) is not None:
            if self._pointers.swap(pointer, before, None):
                self._release(name, before)
                return True
        return False

    def find(self, name: str) -> Ref[Any] | None:
        """Return the reference pinned as *name*, or None."""
        pin = self._pointers.read(_FOLDER + name)
        return None if pin is None else self._ref(pin)

    def names(self) -> Iterator[str]:
        """Yield the names of all pins."""
        for name in self._pointers.names(_FOLDER):
            yield name[len(_FOLDER) :]

    def _ref(self, pin: bytes) -> Ref[Any]:
        return self._content.open(pin.decode().partition(" ")[0])

    def _release(self, name: str, pin: bytes) -> None:
        self._content.holds.release([self._ref(pin)], _owner(name, pin), self._grace)


def _owner(name: str, pin: bytes) -> str:
    return holder("pin", f"{name}+{pin.decode().partition(' ')[2]}")
