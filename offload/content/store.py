"""ContentStore: values by content, as four parts that work on one store."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from offload.content.cache import NodeCache
from offload.content.digest_cache import KnownBlobs
from offload.content.get import Reader
from offload.content.holds import Holds
from offload.content.put import Writer
from offload.content.retrying import Retrying
from offload.content.signing import SigningKeys
from offload.content.through import WriteThrough
from offload.encryption.keys import Keyring, keyring_of
from offload.metrics.counters import Counters
from offload.ref import Ref
from offload.serializers.choose import Registry
from offload.settings import Settings
from offload.stores.protocols import Store

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher

__all__ = ("ContentStore",)

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
