"""What the operator of a process lets run in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from offload.errors import CodeRefused
from offload.registry.keys import VerifyKey, verify_keys
from offload.registry.record import Record

__all__ = ("OFF", "SIGNED", "TRUSTED", "Policy")

OFF, SIGNED, TRUSTED = "off", "signed", "trusted"


class Policy:
    """Says of each version whether it may be loaded.

    Args:
        mode: ``off``: no code; ``signed``: what one of *keys* signed; ``trusted``: everything
            that is in the store.
        allow: patterns of names as `fnmatch` has them, each maybe with ``@`` and the begin of
            a hash (12 digits or more); nothing else may be loaded. Empty: all names.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        mode: str = OFF,
        *,
        keys: Iterable[str | Mapping[str, Any]] = (),
        allow: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.mode = mode
        self._given = tuple(keys)
        self._allow = tuple(allow)
        self._clock = clock
        self._keys: dict[str, VerifyKey] | None = None

    @property
    def keys(self) -> dict[str, VerifyKey]:
        """The keys that verify, by id. Raises ConfigurationError if one is none."""
        if self._keys is None:
            self._keys = verify_keys(self._given)
        return self._keys

    def check_name(self, name: str, code_hash: str | None) -> None:
        """Raise CodeRefused if this version may not be loaded, whoever signed it."""
        what = f"{name}@{code_hash[:12]}" if code_hash else name
        if self.mode == OFF:
            raise CodeRefused(
                f"{what} is not loaded: this process takes no code from a store "
                "(offload_code is 'off'); its operator may set it to 'signed' or 'trusted'"
            )
        if self._allow and not any(_matches(each, name, code_hash) for each in self._allow):
            raise CodeRefused(f"{what} is not loaded: no pattern of offload_code_allow allows it")

    def check(self, record: Record) -> str:
        """Return who signed *record* ("" if nobody has to); raises CodeRefused."""
        self.check_name(record.class_name, record.hash)
        if self.mode == TRUSTED:
            return self.signed_by(record) or ""
        what = f"{record.purpose} of {record.class_name}@{record.hash[:12]}"
        if record.signature is None:
            raise CodeRefused(f"{what} is not signed, and offload_code is 'signed'")
        key = self.keys.get(record.signature.key)
        if key is None:
            raise CodeRefused(
                f"{what} is signed by key {record.signature.key[:16]}, which is not among "
                f"offload_verify_keys ({', '.join(self.keys) or 'empty'})"
            )
        if key.is_expired(self._clock()):
            raise CodeRefused(f"{what} is signed by key {key.name}, which has expired")
        if not self._is_good(key, record):
            raise CodeRefused(f"{what}: the signature by key {key.name} is wrong; it was altered")
        return key.name

    def signed_by(self, record: Record) -> str | None:
        """Return the name of the key that signed *record*, also if it has expired; None if it is
        not among ours, or the signature is wrong.
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
