"""The policy on which versions a process may load; reading and writing versions under it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from offload.classes.keys import Signer, VerifyKey, signer, verify_keys
from offload.classes.scope import describe_task
from offload.classes.versions import (
    LATEST,
    ClassVersion,
    PointerNames,
    Record,
    Signature,
    Storage,
    StoredVersion,
    check_hash,
    label,
)
from offload.encryption.keys import Keyring
from offload.errors import (
    CodeRefused,
    ConfigurationError,
    OffloadError,
    UnknownClass,
    VersionMissing,
)
from offload.metrics.counters import Counters
from offload.settings.checks import check_patterns, one_of, refuse
from offload.stores.protocols import Store

logger = logging.getLogger(__name__)

OFF, SIGNED, TRUSTED = "off", "signed", "trusted"
_ATTEMPTS = 20  # attempts to set a pointer that other processes set, too


class Policy:
    """Decides whether a version may be loaded.

    In mode ``signed``, a signature covers the content of a name and hash, and which version is the
    latest. It doesn't prove that no newer version exists: anyone who can write to the store can
    restore an older signed pointer.

    Args:
        mode: ``off`` loads nothing; ``signed`` loads what one of *keys* signed; ``trusted`` loads
            everything in the store.
        keys: verify keys, as in `offload.classes.keys`.
        allow: `fnmatch` patterns of names, optionally followed by ``@`` and a hash prefix of at
            least 12 digits. Nothing else is loaded. Empty allows all names.
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
            refuse("offload_code", mode, one_of((OFF, SIGNED, TRUSTED)))
        self.mode = mode
        self._given = tuple(keys)
        self._allow = check_patterns("offload_code_allow", allow)
        self._clock = clock
        if mode == SIGNED and not self._given:
            raise ConfigurationError(
                "offload_code is 'signed', but no key verifies signatures: set offload_verify_keys"
            )

    @cached_property
    def keys(self) -> dict[str, VerifyKey]:
        """The verify keys by ID. Raises ConfigurationError if one is invalid."""
        return verify_keys(self._given)

    def check_name(self, name: str, code_hash: str | None) -> None:
        """Raise CodeRefused if this version may not be loaded, no matter who signed it."""
        what = label((name, code_hash)) if code_hash else name
        if self.mode == OFF:
            raise CodeRefused(
                f"{what} is not loaded: this process loads no code from stores "
                "(offload_code is 'off'); to change that, set it to 'signed' or 'trusted'"
            )
        if self._allow and not any(_matches(each, name, code_hash) for each in self._allow):
            raise CodeRefused(
                f"{what} is not loaded: no pattern of offload_code_allow allows it; "
                "add one if this code may run here"
            )

    def check(self, record: Record) -> str:
        """Return the name of the key that signed *record*; "" if the mode needs no signature.

        Raises CodeRefused if the version may not be loaded.
        """
        self.check_name(record.class_name, record.hash)
        if self.mode == TRUSTED:
            return self.signed_by(record) or ""
        return self.check_signature(record)

    def check_signature(self, record: Record) -> str:
        """Return the name of the key that signed *record*.

        Raises CodeRefused if there is no valid signature by one of the verify keys.
        """
        what = f"{record.purpose} of {label(record.pair)}"
        if record.signature is None:
            raise CodeRefused(
                f"{what} is not signed, but must be: push it where offload_signing_key is set"
            )
        key = self.keys.get(record.signature.key)
        if key is None:
            raise CodeRefused(
                f"{what} is signed by key {record.signature.key[:16]}, which is not among "
                f"offload_verify_keys ({', '.join(self.keys) or 'empty'}): add it if you trust it, "
                "or push with a listed key"
            )
        if key.is_expired(self._clock()):
            raise CodeRefused(
                f"{what} is signed by key {key.name}, which has expired: push it with a newer one"
            )
        if not self._is_good(key, record):
            raise CodeRefused(
                f"{what} was altered, as the signature by key {key.name} is wrong: find out who "
                "writes to the store, and push it again"
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
        """Return the name of the key that signed *record*, even if it has expired.

        Return None if the key is unknown or the signature is wrong.
        """
        key = self.keys.get(record.signature.key) if record.signature else None
        return key.name if key is not None and self._is_good(key, record) else None

    @staticmethod
    def _is_good(key: VerifyKey, record: Record) -> bool:
        assert record.signature is not None  # noqa: S101 (for the type checker: callers checked)
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
        store: contains the versions.
        policy: decides which versions may be loaded.
        signing_key: signs pushed versions; None doesn't sign them.
        ship_source: whether to push source, and to build from source what another Python pushed.
        retrying: calls an idempotent function, and retries while the store is unavailable.
        app: the Celery app that loaded code refers to; None for the current one.
        keyring: encrypts pushed code; None without encryption.
    """

    store: Store
    policy: Policy
    signing_key: str | None = field(default=None, repr=False)
    ship_source: bool = False
    retrying: Callable[[Callable[[], Any]], Any] = lambda call: call()
    app: Any = None
    keyring: Keyring | None = None

    @cached_property
    def signer(self) -> Signer | None:
        """The signing key. Raises ConfigurationError if it is invalid."""
        return None if self.signing_key is None else signer(self.signing_key)


class Versions:
    """Reads records and versions as the policy allows, and signs what it writes.

    It counts and logs refusals, and their errors name the store.

    Args:
        make_config: returns the configuration; called on first use.
        counters: counts refusals.
        clock: returns seconds since 1970.
    """

    def __init__(
        self,
        make_config: Callable[[], RegistryConfig],
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        self._make_config = make_config
        self.counters = counters
        self.clock = clock

    @cached_property
    def config(self) -> RegistryConfig:
        return self._make_config()

    @property
    def policy(self) -> Policy:
        return self.config.policy

    @cached_property
    def storage(self) -> Storage:
        config = self.config
        return Storage(config.store.pointers, config.retrying, config.keyring)

    @property
    def url(self) -> str:
        return self.config.store.url

    def stored(self, name: str, code_hash: str) -> StoredVersion:
        """Return a version as stored, without verifying its signature.

        Raises UnknownClass, VersionMissing; CodeRefused if its content doesn't match its record.
        """
        names = PointerNames(name)
        with self.counting_refusals():
            [stored] = self.storage.get([(names.name, check_hash(code_hash))])
        if stored is None:
            raise self.missing_error(names, f"version {code_hash[:12]}")
        return stored

    def check_name(self, name: str, code_hash: str | None) -> None:
        """Raise CodeRefused if the policy excludes this version, no matter who signed it."""
        with self.counting_refusals():
            self.policy.check_name(name, code_hash)

    def read_trusted(self, pairs: list[ClassVersion]) -> list[tuple[StoredVersion, str]]:
        """Return versions that may be loaded, with the key that signed each; run no code.

        Raises CodeRefused if one may not be loaded.
        """
        with self.counting_refusals():
            for pair in pairs:
                self.policy.check_name(*pair)
            found = self.storage.get(pairs)
        trusted = []
        for pair, stored in zip(pairs, found, strict=True):
            if stored is None:
                raise self.missing_error(PointerNames(pair[0]), f"version {pair[1][:12]}")
            with self.counting_refusals():
                trusted.append((stored, self.policy.check(stored.record)))
        return trusted

    def read_latest(self, names: PointerNames, content: bytes) -> Record:
        record = self.parse_pointer(content, names, names.latest, LATEST)
        self.check_signed(record)
        return record

    def parse_pointer(
        self, content: bytes, names: PointerNames, pointer: str, purpose: str
    ) -> Record:
        with self.counting_refusals():
            record = Record.from_bytes(content, pointer)
            if record.class_name != names.name or record.purpose != purpose:
                raise CodeRefused(
                    f"{pointer} contains {record.purpose} of {label(record.pair)}: "
                    f"another record was moved there; find out who writes to the store, and "
                    f"push {names.name} again"
                )
        return record

    def check_signed(self, record: Record) -> None:
        """In mode ``signed``, raise CodeRefused unless a trusted key signed the record."""
        if self.policy.mode == SIGNED:
            with self.counting_refusals():
                self.policy.check_signature(record)

    def is_trusted(self, record: Record) -> bool:
        """Return whether to rely on a record: in mode ``signed``, whether a known key signed it."""
        return self.policy.mode != SIGNED or self.policy.signed_by(record) is not None

    def sign(self, record: Record) -> Record:
        record = replace(record, signature=None)
        signer = self.config.signer
        if signer is None:
            if self.policy.mode == SIGNED:
                raise ConfigurationError(
                    f"{record.class_name} cannot be pushed: offload_code is 'signed', and there is "
                    "no offload_signing_key"
                )
            return record
        self.policy.check_signer(signer.id)
        value = signer.sign(record.signed_bytes).hex()
        return replace(record, signature=Signature(signer.id, value))

    def set_pointer(
        self, pointer: str, record: Record, purpose: str, current: bytes | None = None
    ) -> None:
        """Set a pointer to a version. Raises OffloadError if others keep changing it."""
        new = self.sign(replace(record, purpose=purpose, created=self.clock()))
        for _ in range(_ATTEMPTS):
            if self.storage.swap(pointer, current, new.to_bytes()):
                return
            [current] = self.storage.read([pointer])
        raise OffloadError(
            f"{pointer} was changed by other processes during {_ATTEMPTS} attempts to set it",
            store=self.url,
        )

    @contextmanager
    def counting_refusals(self) -> Iterator[None]:
        """Within this context, count and log CodeRefused, and add the store to the error."""
        try:
            yield
        except CodeRefused as exc:
            url = self.url
            self.counters.add(classes_refused=1)
            logger.warning("refused, from %s%s: %s", url, describe_task(), exc)
            raise CodeRefused(f"{exc} (in {url})", digest=exc.digest, store=url) from exc

    def missing_error(self, names: PointerNames, what: str) -> OffloadError:
        if any(True for _ in self.storage.names(names.folder)):
            return VersionMissing(
                f"{self.url} has no {what} of {names.name}; it has others",
                store=self.url,
            )
        return UnknownClass(
            f"{self.url} has no class or function {names.name!r}: push it first",
            store=self.url,
        )
