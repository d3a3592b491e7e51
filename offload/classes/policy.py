"""Policy: which versions a process may load."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from offload.classes.keys import Signer, VerifyKey, signer, verify_keys
from offload.classes.versions import Record
from offload.errors import CodeRefused, ConfigurationError
from offload.settings.checks import check_patterns, refuse
from offload.stores.protocols import Store

__all__ = ("OFF", "SIGNED", "TRUSTED", "Policy", "RegistryConfig")

OFF, SIGNED, TRUSTED = "off", "signed", "trusted"


class Policy:
    """Decides whether a version may be loaded.

    In mode ``signed``, a signature covers the content of a name and hash, and which version is the
    latest. It doesn't prove that no newer version exists: anyone who can write to the store can
    restore an older signed pointer.

    Args:
        mode: ``off``: load nothing; ``signed``: load what one of *keys* signed; ``trusted``: load
            everything in the store.
        allow: `fnmatch` patterns of names, optionally followed by ``@`` and a hash prefix of 12
            digits or more. Nothing else is loaded. Empty: all names.
        clock: returns seconds since 1970.

    Raises ConfigurationError for an invalid mode or pattern, and for ``signed`` without keys.
    """

    def __init__(
        self,
        mode: str = OFF,
        *,
        keys: Iterable[str | Mapping[str, Any]] = (),
        allow: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        if mode not in (OFF, SIGNED, TRUSTED):
            refuse("offload_code", mode, f"one of {OFF}, {SIGNED}, {TRUSTED}")
        self.mode = mode
        self._given = tuple(keys)
        self._allow = check_patterns("offload_code_allow", allow)
        self._clock = clock
        self._keys: dict[str, VerifyKey] | None = None
        if mode == SIGNED and not self._given:
            raise ConfigurationError(
                "offload_code is 'signed', but no key verifies signatures: set offload_verify_keys"
            )

    @property
    def keys(self) -> dict[str, VerifyKey]:
        """The verify keys by id. Raises ConfigurationError if one is invalid."""
        if self._keys is None:
            self._keys = verify_keys(self._given)
        return self._keys

    def check_name(self, name: str, code_hash: str | None) -> None:
        """Raise CodeRefused if this version may not be loaded, regardless of its signature."""
        what = f"{name}@{code_hash[:12]}" if code_hash else name
        if self.mode == OFF:
            raise CodeRefused(
                f"{what} is not loaded: this process loads no code from stores "
                "(offload_code is 'off'); its operator may set it to 'signed' or 'trusted'"
            )
        if self._allow and not any(_matches(each, name, code_hash) for each in self._allow):
            raise CodeRefused(
                f"{what} is not loaded: no pattern of offload_code_allow allows it; "
                "add one if it is to run here"
            )

    def check(self, record: Record) -> str:
        """Return the name of the key that signed *record*, or "" if none has to; raises
        CodeRefused.
        """
        self.check_name(record.class_name, record.hash)
        if self.mode == TRUSTED:
            return self.signed_by(record) or ""
        return self.check_signature(record)

    def check_signature(self, record: Record) -> str:
        """Return the name of the key that signed *record*; raises CodeRefused if it isn't
        accepted.
        """
        what = f"{record.purpose} of {record.class_name}@{record.hash[:12]}"
        if record.signature is None:
            raise CodeRefused(
                f"{what} is not signed, and has to be: push it where offload_signing_key is set"
            )
        key = self.keys.get(record.signature.key)
        if key is None:
            raise CodeRefused(
                f"{what} is signed by key {record.signature.key[:16]}, which is not among "
                f"offload_verify_keys ({', '.join(self.keys) or 'empty'}): add it if it is to be "
                "trusted, or push with a key that is"
            )
        if key.is_expired(self._clock()):
            raise CodeRefused(
                f"{what} is signed by key {key.name}, which has expired: push it with a newer one"
            )
        if not self._is_good(key, record):
            raise CodeRefused(
                f"{what}: the signature by key {key.name} is wrong, so it was altered: find out "
                "who writes to the store, and push it again"
            )
        return key.name

    def check_signer(self, key_id: str) -> None:
        """Raise ConfigurationError if this signing key has expired."""
        key = self.keys.get(key_id)
        if key is not None and key.is_expired(self._clock()):
            raise ConfigurationError(
                f"offload_signing_key is {key.name}, which has expired (offload_verify_keys): set "
                "a newer one"
            )

    def signed_by(self, record: Record) -> str | None:
        """Return the name of the key that signed *record*, even if it has expired; None if the
        key is unknown or the signature is wrong.
        """
        key = self.keys.get(record.signature.key) if record.signature else None
        return key.name if key is not None and self._is_good(key, record) else None

    @staticmethod
    def _is_good(key: VerifyKey, record: Record) -> bool:
        assert record.signature is not None  # noqa: S101 (for the type checker: callers looked)
        try:
            value = bytes.fromhex(record.signature.value)
        except ValueError:
            return False
        return key.verifier.verify(value, record.signed_bytes)


def _matches(pattern: str, name: str, code_hash: str | None) -> bool:
    names, _, pinned = pattern.partition("@")
    if not fnmatchcase(name, names):
        return False
    return not pinned or code_hash is None or code_hash.startswith(pinned)


@dataclass(frozen=True)
class RegistryConfig:
    """Configuration of a class registry.

    Attributes:
        store: holds the versions.
        policy: decides which versions may be loaded.
        signing_key: signs pushed versions; None: versions aren't signed.
        ship_source: push source, and build from source on other Python versions.
        retrying: calls an idempotent function, and retries while the store is unavailable.
        app: the Celery app that loaded code refers to; None: the current one.
    """

    store: Store
    policy: Policy
    signing_key: str | None = field(default=None, repr=False)
    ship_source: bool = False
    retrying: Callable[[Callable[[], Any]], Any] = lambda call: call()
    app: Any = None

    @cached_property
    def signer(self) -> Signer | None:
        """The key that signs. Raises ConfigurationError if it is invalid."""
        return None if self.signing_key is None else signer(self.signing_key)
