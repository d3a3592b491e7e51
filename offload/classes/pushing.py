"""Push versions to a store: dependencies first, and only missing ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from offload.classes.hashing.identity import python_tag
from offload.classes.pickling import dump
from offload.classes.policy import SIGNED
from offload.classes.scope import Scope
from offload.classes.source import source_of
from offload.classes.trusted import Versions, shown
from offload.classes.versions import CLASS, FUNCTION, LATEST, ClassVersion, Names, Record, Stored
from offload.digest import digest_of
from offload.errors import CodeRefused

__all__ = ("Pushing",)

logger = logging.getLogger(__name__)


class Pushing:
    """Writes versions.

    Args:
        pair_of: returns the name and hash of a class or function of this process.
        scope: returns the scope of what ships by value.
    """

    def __init__(
        self, versions: Versions, pair_of: Callable[[Any], ClassVersion], scope: Callable[[], Scope]
    ) -> None:
        self._versions = versions
        self._pair_of = pair_of
        self._scope = scope

    def push_all(self, objs: Sequence[Any]) -> dict[str, str]:
        """Make all classes the latest version; return the hashes of those that changed, by name."""
        pushed: dict[str, str] = {}
        pairs = [self._pair_of(obj) for obj in objs]
        names = [Names(name) for name, _ in pairs]
        asked = [each.latest for each in names]
        signing = (
            self._versions.config.policy.mode == SIGNED or self._versions.config.signer is not None
        )
        if signing:
            asked += [each.version(pair[1]) for each, pair in zip(names, pairs, strict=True)]
        found = self._versions.storage.read(asked)
        latests, versions = found[: len(objs)], found[len(objs) :] or [None] * len(objs)
        for obj, pair, each, latest, version in zip(
            objs, pairs, names, latests, versions, strict=True
        ):
            if not self._is_latest(obj, pair, each, latest) or (
                signing and self._recorded(obj, pair, version) is None
            ):
                self._versions.point(each.latest, self.persist(obj, pair), LATEST, latest)
                pushed[pair[0]] = pair[1]
        return pushed

    def push(self, obj: Any, pair: ClassVersion) -> Record:
        record = self.persist(obj, pair)
        names = Names(pair[0])
        [latest] = self._versions.storage.read([names.latest])
        if not self._is_latest(obj, pair, names, latest):
            self._versions.point(names.latest, record, LATEST, latest)
        return record

    def persist(self, obj: Any, pair: ClassVersion) -> Record:
        """Store a version and those it needs, unless stored already; return the first one's
        record.
        """
        records: dict[ClassVersion, Record] = {}
        made: list[tuple[Stored, bytes | None]] = []
        asked = {pair: obj}
        while asked:
            contents = self._versions.storage.read(Names(name).version(h) for name, h in asked)
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

    def _good(self, obj: Any, pair: ClassVersion, content: bytes | None) -> Record | None:
        """Return the record of an intact stored version; None if it is missing or damaged."""
        record = self._recorded(obj, pair, content)
        if record is None or content is None:
            return None
        try:
            return self._versions.storage.stored(Names(pair[0]), pair[1], content).record
        except CodeRefused as exc:
            self._warn(str(exc))
            return None

    def _recorded(self, obj: Any, pair: ClassVersion, content: bytes | None) -> Record | None:
        """Return the same as `_good`, but check the record only, not the content."""
        if content is None:
            return None
        try:
            record = self._versions.storage.record(Names(pair[0]), pair[1], content)
            lack = self._lack(obj, record)
        except CodeRefused as exc:
            lack = str(exc)
        if lack:
            self._warn(lack)
            return None
        return record

    def _warn(self, why: str) -> None:
        logger.warning("replacing the version in %s: %s", self._versions.url, why)

    def _lack(self, obj: Any, record: Record) -> str:
        """Return why a stored record has to be replaced; "" if it doesn't."""
        known = (
            record.signature is None or record.signature.key in self._versions.config.policy.keys
        )
        if self._versions.config.policy.mode == SIGNED or (
            self._versions.config.signer is not None and known
        ):
            try:
                self._versions.config.policy.check_signature(record)
            except CodeRefused as exc:
                return str(exc)
        if self._versions.config.ship_source and not record.source:
            scope = self._scope().including(obj.__module__)
            if source_of(obj, scope, self._pair_of):
                return f"{shown(record)} is without its source"
        return ""

    def _put(self, stored: Stored, instead: bytes | None) -> Record:
        """Store a version; return the record in the store, which may be another process's."""
        record = stored.record
        if self._versions.storage.put(stored, instead):
            self._versions.counters.add(classes_pushed=1)
            logger.info("pushed %s to %s", shown(record), self._versions.url)
            return record
        there = self._versions.stored(*record.pair)
        self._versions.check_there(there.record)
        return there.record

    def _is_latest(self, obj: Any, pair: ClassVersion, names: Names, content: bytes | None) -> bool:
        if content is None:
            return False
        try:
            record = self._versions.pointed(content, names, names.latest, LATEST)
        except CodeRefused as exc:
            logger.warning("replacing the latest version: %s", exc)
            return False
        return record.hash == pair[1] and not self._lack(obj, record)

    def _dumped(self, obj: Any, pair: ClassVersion) -> tuple[Stored, dict[ClassVersion, Any]]:
        needed: dict[ClassVersion, Any] = {}

        def pair_of(other: Any) -> ClassVersion:
            its = self._pair_of(other)
            needed[its] = other
            return its

        scope = self._scope().including(obj.__module__)
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
            modules=tuple(sorted(self._scope().modules)),
            needs=tuple(needed),
            source=digest_of([source]) if source else "",
            source_size=len(source),
        )
        return Stored(self._versions.signed(record), content, source), needed
