"""Keys that sign references: derived from ``offload_secret`` or the encryption keys, or the store's
own random key.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from blake3 import blake3

from offload.content.retrying import Retrying
from offload.encryption.keys import EncryptionKey, Keyring
from offload.errors import InvalidRef, KeyUnavailable, StoreError, UnsupportedVersion
from offload.metrics.counters import Counters
from offload.ref import ENCRYPTION, Keys, Ref, Resolve, claimed_digest, fingerprint
from offload.stores.protocols import PointerStore, Store

T = TypeVar("T")

_CONTEXT = "offload 2026 reference signing key"
_POINTER = "keys/ref"
_BYTES = 32
_MAX_AGE = 30.0  # seconds after which an upload reads the store's key again
_REREAD_INTERVAL = 1.0  # seconds between two reads of the key because a reference was refused
_RELOAD = 30.0  # seconds between two loads of encryption keys because of references
_MAX_KEYS = 4
_PURPOSE = "references"


class SigningKeys:
    """The keys with which a process signs and opens references.

    Each encryption key yields a signing key, and the first of these signs, unless there is a
    secret. The store's own key, which signed before there were encryption keys, still opens
    references unless encryption is required.

    Args:
        secret: ``offload_secret``; empty to use the encryption keys, or the key that the store
            keeps.
        clock: returns seconds since 1970.
        keyring: the encryption keys; None if there are none.

    Attributes:
        keyring: as given. It also seals what is private in signed records.
    """

    def __init__(
        self,
        store: Store,
        secret: Sequence[str],
        counters: Counters,
        retrying: Retrying,
        clock: Callable[[], float],
        keyring: Keyring | None = None,
    ) -> None:
        self._store = store
        self._secret = secret
        self.keyring = keyring
        self._counters = counters
        self._retrying = retrying
        self._clock = clock
        self._keys: Keys | None = None
        self._read_at = 0.0
        self._ring: Sequence[EncryptionKey] = ()
        self._ring_at = 0.0
        self._former: Sequence[bytes] = ()  # the store's own key, with encryption keys

    @property
    def keys(self) -> Keys:
        """The keys. The first access asks the store, unless a secret or encryption keys are set.

        Raises StoreUnavailable; KeyUnavailable if the encryption keys can't be loaded.
        """
        if self.keyring is not None:
            return self._derived(self.keyring)
        if self._keys is None:
            if self._secret:
                self._keys = keys_from_secrets(self._secret)
            else:
                self._keys = self._retrying(lambda: keys_from_store(self._store.pointers))
                self._read_at = self._clock()
        return self._keys

    def _derived(self, keyring: Keyring) -> Keys:
        ring = keyring.keys
        if self._keys is None or ring is not self._ring:
            own = keys_from_secrets(self._secret).keys
            derived = [key.derive(_PURPOSE) for key in ring]
            ids = [*[""] * len(own), *(key.id for key in ring)]
            self._keys = Keys([*own, *derived, *self._former], True, ids, keyring)
            self._ring = ring
        return self._keys

    @property
    def known(self) -> Keys | None:
        """The keys, or None if getting them takes a request."""
        is_loaded = self.keyring is not None and self.keyring.is_loaded
        return self.keys if self._secret or is_loaded else self._keys

    def refresh(self, max_age: float = _MAX_AGE) -> bool:
        """Read the store's key again if the last read is *max_age* seconds old.

        Returns whether the keys changed. An emptied store has lost its key; without this,
        processes that knew it and processes started later would refuse each other's references
        until a restart.

        Encryption keys don't get lost, so with them, this looks for others only if something was
        refused (then, *max_age* is shorter than the default).
        """
        if 0 <= self._clock() - self._read_at < max_age:
            return False
        if self.keyring is not None:
            return max_age < _MAX_AGE and self._find_more(self.keyring)
        if self._secret:
            return False
        old = self.keys
        pointers = self._store.pointers
        (key,) = self._retrying(lambda: keys_from_store(pointers, old.keys[0])).keys
        self._read_at = self._clock()
        if key == old.keys[0]:
            return False
        self._keys = Keys([key, *(k for k in old.keys if k != key)][:_MAX_KEYS])
        return True

    def _find_more(self, keyring: Keyring) -> bool:
        """Load the encryption keys again, and the key that the store has kept; return whether
        there are others now.
        """
        before, now = self.keys, self._clock()
        self._read_at = now
        if not keyring.is_fixed and not 0 <= now - self._ring_at < _RELOAD:
            self._ring_at = now
            keyring.load()
        if not (self._secret or keyring.required or self._former):
            former = self._retrying(lambda: stored_keys(self._store.pointers))
            if former is not None:
                self._former, self._keys = former.keys, None
        return self.keys.keys != before.keys

    def resign(self, ref: Ref[T], resolve: Resolve | None = None) -> Ref[T]:
        """Return a reference to what *ref* refers to, signed with the first key.

        Args:
            resolve: what its `Ref.get` calls.

        Raises StoreUnavailable, KeyUnavailable.
        """
        return self.keys.sign(
            digest=ref.digest,
            data=ref.data,
            size=ref.size,
            serializer=ref.serializer,
            type=ref.type,
            created=ref.created,
            until=ref.until,
            resolve=resolve,
        )

    def open(self, wire: str, resolve: Resolve) -> Ref[Any]:
        """Verify *wire* and return its reference; *resolve* is what its `Ref.get` calls.

        Raises:
            InvalidRef: *wire* isn't a reference of this app (counted).
            KeyUnavailable: it is signed with an encryption key that this process doesn't have.
            StoreUnavailable: the store's key is needed to decide and can't be read.
        """
        try:
            return self._open(wire, resolve)
        except InvalidRef as exc:
            self._counters.add(refs_refused=1)
            digest = exc.digest or claimed_digest(wire)
            said, url = f"{exc}; the store here is {self._store.url}", self._store.url
            raise type(exc)(said, exc.task, exc.argument, digest, url) from exc

    def _open(self, wire: str, resolve: Resolve) -> Ref[Any]:
        keys = self.keys
        try:
            return keys.open(wire, resolve)
        except UnsupportedVersion:
            raise
        except (InvalidRef, KeyUnavailable):
            # Raises StoreUnavailable during an outage: the reference may be valid.
            if self.refresh(_REREAD_INTERVAL):
                return self.keys.open(wire, resolve)
            raise


def keys_from_secrets(given: Sequence[str]) -> Keys:
    """Derive keys from ``offload_secret`` (BLAKE3's key derivation mode)."""
    derived = [blake3(s.encode(), derive_key_context=_CONTEXT).digest() for s in given]
    return Keys(derived, secret=True)


def keys_from_store(pointers: PointerStore, own: bytes | None = None) -> Keys:
    """Return the store's own random key; the first caller creates it.

    Any number of processes may call this at once: compare-and-swap lets one of them set the
    key. *own* is the key to set, for a process that knew one before the store lost it.
    """
    key = pointers.read(_POINTER)
    while key is None:
        pointers.swap(_POINTER, None, own or secrets.token_bytes(_BYTES))
        key = pointers.read(_POINTER)
    return _checked(key)


def stored_keys(pointers: PointerStore) -> Keys | None:
    """Return the store's own key, or None if it has none yet."""
    key = pointers.read(_POINTER)
    return None if key is None else _checked(key)


def fingerprints(keys: Keys) -> list[str]:
    """Return fingerprints, which identify keys without revealing them."""
    return [f"{ENCRYPTION}{each}" if each else fingerprint(key) for key, each in keys.with_ids()]


def _checked(key: bytes) -> Keys:
    if len(key) != _BYTES:
        raise StoreError(
            f"the pointer {_POINTER} holds {len(key)} bytes, which is not a signing key: delete "
            "it, and the next process creates a new one (existing references become invalid)"
        )
    return Keys([key])
