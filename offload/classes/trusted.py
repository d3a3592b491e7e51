"""Read versions that may be loaded, and sign versions and pointers that are written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

from celery import current_task

from offload.classes import apps
from offload.classes.policy import SIGNED, RegistryConfig
from offload.classes.versions import (
    LATEST,
    ClassVersion,
    Names,
    Record,
    Signature,
    Storage,
    Stored,
    check_hash,
)
from offload.errors import (
    CodeRefused,
    ConfigurationError,
    OffloadError,
    UnknownClass,
    VersionMissing,
)
from offload.metrics.counters import Counters

__all__ = ("Versions", "for_task", "shown")

logger = logging.getLogger(__name__)

_TURNS = 20


class Versions:
    """Reads records and versions as *config* allows, and signs those it writes.

    Refusals are counted and logged, and their errors name the store.

    Args:
        clock: returns seconds since 1970.
    """

    def __init__(
        self, config: RegistryConfig, counters: Counters, clock: Callable[[], float]
    ) -> None:
        self.config = config
        self.counters = counters
        self.clock = clock

    @cached_property
    def storage(self) -> Storage:
        return Storage(self.config.store.pointers, self.config.retrying)

    @property
    def url(self) -> str:
        return self.config.store.url

    def stored(self, name: str, code_hash: str) -> Stored:
        """Return a version as stored. Trust isn't checked.

        Raises UnknownClass, VersionMissing; CodeRefused if its content doesn't match its record.
        """
        names = Names(name)
        with self.refusing():
            [stored] = self.storage.get([(names.name, check_hash(code_hash))])
        if stored is None:
            raise self.missing(names, f"version {code_hash[:12]}")
        return stored

    def check_name(self, pair: ClassVersion) -> None:
        """Raise CodeRefused if the policy excludes this version, regardless of its signature."""
        with self.refusing():
            self.config.policy.check_name(*pair)

    def trusted_one(self, pair: ClassVersion) -> Stored:
        """Return a version that may be loaded, without running its code."""
        [(stored, _by)] = self.trusted([pair])
        return stored

    def trusted(self, pairs: list[ClassVersion]) -> list[tuple[Stored, str]]:
        """Return versions that may be loaded, and the key that signed each, without running
        code.
        """
        with self.refusing():
            for pair in pairs:
                self.config.policy.check_name(*pair)
            found = self.storage.get(pairs)
        trusted = []
        for pair, stored in zip(pairs, found, strict=True):
            if stored is None:
                raise self.missing(Names(pair[0]), f"version {pair[1][:12]}")
            with self.refusing():
                trusted.append((stored, self.config.policy.check(stored.record)))
        return trusted

    def read_latest(self, names: Names, content: bytes) -> Record:
        record = self.pointed(content, names, names.latest, LATEST)
        self.check_there(record)
        return record

    def pointed(self, content: bytes, names: Names, pointer: str, purpose: str) -> Record:
        with self.refusing():
            record = Record.from_bytes(content, pointer)
            if record.class_name != names.name or record.purpose != purpose:
                raise CodeRefused(
                    f"{pointer} holds {record.purpose} of {record.class_name}@{record.hash[:12]}: "
                    f"another record was moved there; find out who writes to the store, and "
                    f"push {names.name} again"
                )
        return record

    def check_there(self, record: Record) -> None:
        """Raise CodeRefused in mode ``signed`` if no trusted key signed a record."""
        if self.config.policy.mode == SIGNED:
            with self.refusing():
                self.config.policy.check_signature(record)

    def is_believed(self, record: Record) -> bool:
        """Return whether a record may be relied on: in mode ``signed``, a known key signed it."""
        return self.config.policy.mode != SIGNED or self.config.policy.signed_by(record) is not None

    def signed(self, record: Record) -> Record:
        record = replace(record, signature=None)
        signer = self.config.signer
        if signer is None:
            if self.config.policy.mode == SIGNED:
                raise ConfigurationError(
                    f"{record.class_name} cannot be pushed: offload_code is 'signed', and there is "
                    "no offload_signing_key"
                )
            return record
        self.config.policy.check_signer(signer.id)
        value = signer.sign(record.signed_bytes).hex()
        return replace(record, signature=Signature(signer.id, value))

    def point(
        self, pointer: str, record: Record, purpose: str, current: bytes | None = None
    ) -> None:
        """Set a pointer to a version, by compare-and-swap."""
        new = self.signed(replace(record, purpose=purpose, created=self.clock()))
        for _ in range(_TURNS):
            if self.storage.swap(pointer, current, new.to_bytes()):
                return
            [current] = self.storage.read([pointer])
        raise OffloadError(
            f"{pointer} kept changing: {_TURNS} attempts to set it failed",
            store=self.url,
        )

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Count and log CodeRefused raised within this, and add the store to the error."""
        try:
            yield
        except CodeRefused as exc:
            url = self.url
            self.counters.add(classes_refused=1)
            logger.warning("refused, from %s%s: %s", url, for_task(), exc)
            raise CodeRefused(f"{exc} (in {url})", digest=exc.digest, store=url) from exc

    def missing(self, names: Names, what: str) -> OffloadError:
        if any(True for _ in self.storage.names(names.folder)):
            return VersionMissing(
                f"{self.url} has no {what} of {names.name}; it has others",
                store=self.url,
            )
        return UnknownClass(
            f"{self.url} has no class or function {names.name!r}: push it first",
            store=self.url,
        )


def shown(record: Record) -> str:
    """Describe a record for people."""
    return f"{record.kind} {record.class_name}@{record.hash[:12]}"


def for_task() -> str:
    """Return which task code is loaded for, as part of a log line; "" if for none."""
    if apps.for_task.get():
        return f" for task {apps.for_task.get()}"
    return f" for task {current_task.name}[{current_task.request.id}]" if current_task else ""
