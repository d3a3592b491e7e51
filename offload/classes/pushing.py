"""Push versions to a store: dependencies first, and only missing ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from offload.classes.hashing import python_tag
from offload.classes.pickling import dump
from offload.classes.policy import SIGNED, Versions
from offload.classes.scope import AUTO, MANUAL, Registrations
from offload.classes.source import source_of
from offload.classes.versions import (
    CLASS,
    FUNCTION,
    LATEST,
    ClassVersion,
    PointerNames,
    Record,
    StoredVersion,
    describe,
    label,
)
from offload.digest import digest_of
from offload.errors import CodeRefused, StoreUnavailable, VersionMissing

logger = logging.getLogger(__name__)

_RECHECK = 60.0  # seconds to assume that a stored version is still stored


class Pusher:
    """Writes versions, and records what this process ships.

    Args:
        versions: reads and signs records.
        registrations: objects registered here, and when to push them.
        pair_of: returns the name and hash of a class or function in this process.

    Attributes:
        stored: versions that this process shipped, with the time of the last check that they are
            stored.
        needs: versions that these need, directly or indirectly.
        needed_names: the names of *needs*.
    """

    def __init__(
        self,
        versions: Versions,
        registrations: Registrations,
        pair_of: Callable[[Any], ClassVersion],
    ) -> None:
        self._versions = versions
        self._registrations = registrations
        self._pair_of = pair_of
        self.stored: dict[ClassVersion, float] = {}
        self.needs: set[ClassVersion] = set()
        self.needed_names: set[str] = set()
        self._without_source: dict[ClassVersion, Any] = {}  # the objects that were pushed

    def ship(self, obj: Any, pair: ClassVersion) -> None:
        """Ensure that a version to be sent is stored; push it if its registration allows."""
        now = self._versions.clock()
        before = self.stored.get(pair)
        # An object from a notebook cell that was run again may have source now.
        is_other = self._without_source.get(pair, obj) is not obj
        if before is None or is_other or not 0 <= now - before < _RECHECK:
            try:
                self._ship(obj, pair, first=before is None)
            except StoreUnavailable:
                if before is None:
                    raise
                return  # it was stored at the last check; the next call checks again
            self.stored[pair] = now

    def _ship(self, obj: Any, pair: ClassVersion, *, first: bool) -> None:
        push = self._registrations.push_of(obj)
        if push == MANUAL:
            record = self._check_pushed(pair)
        elif push == AUTO and first:
            record = self.push(obj, pair)
        else:  # pushing again would undo pushes and rollbacks by other processes
            record = self.persist(obj, pair)
        self._without_source.pop(pair, None)
        if self._versions.config.ship_source and not record.source:
            self._without_source[pair] = obj
        self._add_needs(record)

    def _check_pushed(self, pair: ClassVersion) -> Record:
        with self._versions.counting_refusals():
            [there] = self._versions.storage.get([pair])
        if there is None:
            raise VersionMissing(
                f"{label(pair)} was not pushed to {self._versions.url}, and is "
                "registered with push='manual': run celery offload classes push, or "
                "registry.push(…)",
                store=self._versions.url,
            )
        self._versions.check_signed(there.record)
        return there.record

    def _add_needs(self, record: Record) -> None:
        """Record the versions that a shipped one needs, directly or indirectly, if trusted."""
        asked = [need for need in record.needs if need not in self.needs]
        while asked:
            found = self._versions.storage.read_records(
                PointerNames(name).version(h) for name, h in asked
            )
            self.needed_names.update(name for name, _ in asked)
            self.needs.update(asked)
            further = {
                need: None
                for each in found
                if each is not None and self._versions.is_trusted(each)
                for need in each.needs
            }
            asked = [need for need in further if need not in self.needs]

    def push_all(self, objs: Sequence[Any]) -> dict[str, str]:
        """Make *objs* the latest versions; return the hashes of those that changed, by name."""
        pushed: dict[str, str] = {}
        pairs = [self._pair_of(obj) for obj in objs]
        names = [PointerNames(name) for name, _ in pairs]
        asked = [each.latest for each in names]
        signing = self._versions.policy.mode == SIGNED or self._versions.config.signer is not None
        if signing:
            asked += [each.version(pair[1]) for each, pair in zip(names, pairs, strict=True)]
        found = self._versions.storage.read(asked)
        latests, versions = found[: len(objs)], found[len(objs) :] or [None] * len(objs)
        for obj, pair, each, latest, version in zip(
            objs, pairs, names, latests, versions, strict=True
        ):
            if not self._is_latest(obj, pair, each, latest) or (
                signing and self._good(obj, pair, version, whole=False) is None
            ):
                self._versions.set_pointer(each.latest, self.persist(obj, pair), LATEST, latest)
                pushed[pair[0]] = pair[1]
        return pushed

    def push(self, obj: Any, pair: ClassVersion) -> Record:
        record = self.persist(obj, pair)
        names = PointerNames(pair[0])
        [latest] = self._versions.storage.read([names.latest])
        if not self._is_latest(obj, pair, names, latest):
            self._versions.set_pointer(names.latest, record, LATEST, latest)
        return record

    def persist(self, obj: Any, pair: ClassVersion) -> Record:
        """Store a version and those it needs, unless already stored; return its record."""
        records: dict[ClassVersion, Record] = {}
        made: list[tuple[StoredVersion, bytes | None]] = []
        asked = {pair: obj}
        while asked:
            contents = self._versions.storage.read(
                PointerNames(name).version(h) for name, h in asked
            )
            needed: dict[ClassVersion, Any] = {}
            for (its, each), content in zip(asked.items(), contents, strict=True):
                there = self._good(each, its, content)
                if there is None:
                    stored, needs = self._dumped(each, its)
                    made.append((stored, content))
                    needed |= needs
                records[its] = there or stored.record
            asked = {its: each for its, each in needed.items() if its not in records}
        for stored, content in reversed(made):
            records[stored.record.pair] = self._put(stored, content)
        return records[pair]

    def _good(
        self, obj: Any, pair: ClassVersion, content: bytes | None, *, whole: bool = True
    ) -> Record | None:
        """Return the record of an intact stored version; None if it is missing or damaged.

        With *whole* false, this checks only the record.
        """
        if content is None:
            return None
        names = PointerNames(pair[0])
        try:
            record = self._versions.storage.record(names, pair[1], content)
            lack = self._lack(obj, record)
            if whole and not lack:
                self._versions.storage.stored(names, pair[1], content)
        except CodeRefused as exc:
            lack = str(exc)
        if not lack:
            return record
        logger.warning("replacing the version in %s: %s", self._versions.url, lack)
        return None

    def _lack(self, obj: Any, record: Record) -> str:
        """Return why a stored record must be replaced; "" if it needn't be."""
        known = record.signature is None or record.signature.key in self._versions.policy.keys
        if self._versions.policy.mode == SIGNED or (
            self._versions.config.signer is not None and known
        ):
            try:
                self._versions.policy.check_signature(record)
            except CodeRefused as exc:
                return str(exc)
        if self._versions.config.ship_source and not record.source:
            scope = self._registrations.scope.including(obj.__module__)
            if source_of(obj, scope, self._pair_of):
                return f"{describe(record)} has no source"
        return ""

    def _put(self, stored: StoredVersion, replaced: bytes | None) -> Record:
        """Store a version; return the stored record, which another process may have written."""
        record = stored.record
        if self._versions.storage.put(stored, replaced):
            self._versions.counters.add(classes_pushed=1)
            logger.info("pushed %s to %s", describe(record), self._versions.url)
            return record
        there = self._versions.stored(*record.pair)
        self._versions.check_signed(there.record)
        return there.record

    def _is_latest(
        self, obj: Any, pair: ClassVersion, names: PointerNames, content: bytes | None
    ) -> bool:
        if content is None:
            return False
        try:
            record = self._versions.parse_pointer(content, names, names.latest, LATEST)
        except CodeRefused as exc:
            logger.warning("replacing the latest version: %s", exc)
            return False
        return record.hash == pair[1] and not self._lack(obj, record)

    def _dumped(
        self, obj: Any, pair: ClassVersion
    ) -> tuple[StoredVersion, dict[ClassVersion, Any]]:
        needed: dict[ClassVersion, Any] = {}

        def pair_of(other: Any) -> ClassVersion:
            its = self._pair_of(other)
            needed[its] = other
            return its

        scope = self._registrations.scope.including(obj.__module__)
        content = dump(obj, pair, scope, pair_of)
        source = source_of(obj, scope, pair_of) if self._versions.config.ship_source else b""
        record = Record(
            class_name=pair[0],
            hash=pair[1],
            digest=digest_of([content]),
            size=len(content),
            python=python_tag(),
            kind=CLASS if isinstance(obj, type) else FUNCTION,
            created=self._versions.clock(),
            modules=tuple(sorted(self._registrations.scope.modules)),
            needs=tuple(needed),
            source=digest_of([source]) if source else "",
            source_size=len(source),
        )
        return StoredVersion(self._versions.sign(record), content, source), needed
