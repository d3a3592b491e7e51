"""Where the keys that sign references come from."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from blake3 import blake3

from offload.errors import StoreError
from offload.ref import Keys, fingerprint
from offload.stores.protocols import PointerStore

__all__ = ("fingerprints", "kept_keys", "keys_from_secrets", "keys_from_store")

_CONTEXT = "offload 2026 reference signing key"
_POINTER = "keys/ref"
_BYTES = 32


def keys_from_secrets(given: Sequence[str]) -> Keys:
    """Return keys derived from ``offload_secret`` (BLAKE3's key derivation mode)."""
    derived = [blake3(s.encode(), derive_key_context=_CONTEXT).digest() for s in given]
    return Keys(derived, secret=True)


def keys_from_store(pointers: PointerStore, own: bytes | None = None) -> Keys:
    """Return the store's own random key; the first caller provisions it.

    Any number may call at once: compare-and-swap lets one of them set it. *own* is the
    key to provision, for a process that has had one before the store lost it.
    """
    key = pointers.read(_POINTER)
    while key is None:
        pointers.swap(_POINTER, None, own or secrets.token_bytes(_BYTES))
        key = pointers.read(_POINTER)
    return _checked(key)


def kept_keys(pointers: PointerStore) -> Keys | None:
    """Return the store's own key; None where nobody has provisioned it yet."""
    key = pointers.read(_POINTER)
    return None if key is None else _checked(key)


def fingerprints(keys: Keys) -> list[str]:
    """Return what tells keys apart and reveals none of them."""
    return [fingerprint(key) for key in keys.keys]


def _checked(key: bytes) -> Keys:
    if len(key) != _BYTES:
        raise StoreError(
            f"the pointer {_POINTER} holds {len(key)} bytes, which is no signing key: delete it, "
            "and the next process makes a new one (references that exist become invalid)"
        )
    return Keys([key])
