"""Versions in a store: pointers that are set once, and those that say which is meant.

``<hash>.pkl`` is the pickle, the source if there is one, the record as JSON, and the length of
that in four bytes (big endian). So it is there whole or not at all, and two who push the same
version at once cannot mix theirs. What does not fit into one pointer goes on in others, which
are written before, under names that their content decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from offload.digest import digest_of
from offload.errors import CodeRefused, SerializationError
from offload.registry.names import FOLDER, Names, versions_in
from offload.registry.record import VERSION, Record
from offload.stores.checks import MAX_POINTER
from offload.stores.protocols import PointerStore

__all__ = ("LARGEST", "Storage", "Stored")

LARGEST = 16 << 20
"""Bytes of the largest version."""
_LENGTH = 4


@dataclass(frozen=True)
class Stored:
    """A version as it is stored."""

    record: Record
    content: bytes
    source: bytes = b""

    def check(self) -> None:
        """Raise CodeRefused if the content is not that of the record."""
        record = self.record
        if digest_of([self.content]) != record.digest or (
            digest_of([self.source]) != record.source if record.source else self.source
        ):
            raise CodeRefused(
                f"{record.class_name}@{record.hash[:12]} was altered: its content is not what its "
                "record says; find out who writes to the store, and push it again",
                digest=record.digest,
            )


class Storage:
    """Args: *retrying* calls what may be called twice again while the store is away."""

    def __init__(
        self, pointers: PointerStore, retrying: Callable[[Callable[[], object]], object]
    ) -> None:
        self._pointers = pointers
        self._retrying = retrying

    def read(self, names: Iterable[str]) -> list[bytes | None]:
        """Return what pointers say. One round trip where the store can."""
        names = list(names)
        if not names:
            return []
        found: list[bytes | None] = self._retrying(lambda: self._pointers.read_all(names))  # type: ignore[assignment]
        return found

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        return self._pointers.swap(name, expected, value)

    def names(self, folder: str = FOLDER) -> list[str]:
        found: list[str] = self._retrying(lambda: list(self._pointers.names(folder)))  # type: ignore[assignment]
        return sorted(found)

    # -- versions

    def put(self, stored: Stored, instead: bytes | None = None) -> bool:
        """Store a version where *instead* is (None: nothing); return whether that was there."""
        record = stored.record
        names = Names(record.class_name)
        tail = record.to_bytes()
        tail += len(tail).to_bytes(_LENGTH, "big")
        body = memoryview(stored.content + stored.source)
        if len(body) > LARGEST:
            raise SerializationError(
                f"{record.class_name} has {len(body)} bytes with all that is shipped with it; "
                f"at most {LARGEST} are. Does it refer to data that should be an argument?"
            )
        first = MAX_POINTER - len(tail)
        if first <= 0:
            raise SerializationError(f"{record.class_name} needs too many other classes")
        more = [body[at : at + MAX_POINTER] for at in range(first, len(body), MAX_POINTER)]
        for name, part in zip(
            names.more(record.hash, record.digest, len(more) + 1), more, strict=True
        ):
            self._set(name, bytes(part))
        return self.swap(names.version(record.hash), instead, bytes(body[:first]) + tail)

    def _set(self, name: str, part: bytes) -> None:
        """Set a pointer that nobody sets to anything else, unless it was altered."""
        if not self.swap(name, None, part):
            [there] = self.read([name])
            if there != part:
                self.swap(name, there, part)

    def get(self, versions: Iterable[tuple[str, str]]) -> list[Stored | None]:
        """Return versions by name and hash; None for one that is not there.

        Raises CodeRefused for what is none. Nothing is said yet about whether to trust it.
        """
        asked = [(Names(name), code_hash) for name, code_hash in versions]
        found = self.read(names.version(code_hash) for names, code_hash in asked)
        return [
            None if content is None else self.stored(names, code_hash, content)
            for (names, code_hash), content in zip(asked, found, strict=True)
        ]

    def hashes(self, names: Names) -> list[str]:
        """Return the hashes of all versions of a class."""
        return versions_in(self.names(names.folder))

    def heads(self, pointers: Iterable[str]) -> list[Record | None]:
        """Return the records of versions by their pointers; None for one that is none."""
        pointers = list(pointers)
        found: list[Record | None] = []
        for pointer, content in zip(pointers, self.read(pointers), strict=True):
            try:
                found.append(None if content is None else _split(pointer, content)[0])
            except CodeRefused:
                found.append(None)
        return found

    def records(self, names: Names) -> list[Record]:
        """Return the records of all versions of a class, the oldest first."""
        found = [names.version(code_hash) for code_hash in self.hashes(names)]
        contents = zip(found, self.read(found), strict=True)
        records = [_split(name, content)[0] for name, content in contents if content is not None]
        return sorted(records, key=lambda record: record.created)

    def record(self, names: Names, code_hash: str, content: bytes) -> Record:
        """Return the record of a version from a pointer's *content*; raises as `get` does."""
        return self._begun(names, code_hash, content)[0]

    def stored(self, names: Names, code_hash: str, content: bytes) -> Stored:
        """Return the version that a pointer's *content* is or begins; raises as `get` does."""
        record, body = self._begun(names, code_hash, content)
        size = record.size + record.source_size
        if size > LARGEST:
            raise CodeRefused(
                f"{names.version(code_hash)} says that it has {size} bytes; at most {LARGEST} are"
            )
        count = 1 + math.ceil(max(0, size - len(body)) / MAX_POINTER)
        for part in self.read(names.more(code_hash, record.digest, count)):
            body += part or b""
        stored = Stored(record, body[: record.size], body[record.size :])
        stored.check()
        return stored

    def _begun(self, names: Names, code_hash: str, content: bytes) -> tuple[Record, bytes]:
        record, body = _split(names.version(code_hash), content)
        if (record.class_name, record.hash, record.purpose) != (names.name, code_hash, VERSION):
            raise CodeRefused(
                f"{names.version(code_hash)} holds {record.purpose} of {record.class_name}@"
                f"{record.hash[:12]}: it was put in the place of another; find out who writes to "
                f"the store, and push {names.name} again"
            )
        return record, body


def _split(name: str, content: bytes) -> tuple[Record, bytes]:
    end = len(content) - _LENGTH
    begin = end - int.from_bytes(content[max(end, 0) :], "big")
    if begin < 0:
        raise CodeRefused(f"{name} is no version of a class")
    return Record.from_bytes(content[begin:end], name), content[:begin]
