"""Lists and finds records without loading objects.

Most stores return hundreds of records in one round trip. S3 takes a request for each, so an *index*
is kept there: one value with all records of a bucket as they were at some time, and the tag of each
write. A list of the bucket shows which of them have changed since; only those are read again. The
index is derived: when it is lost, the next search writes another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from numbers import Real
from types import NoneType
from typing import Any

from offload.catalog.names import INDEXES, Place, object_of, parsed
from offload.catalog.pointers import CatalogPointers
from offload.catalog.records import FORMAT, Record, seal, unseal
from offload.content.holds import Hold
from offload.errors import OffloadError
from offload.ref import MAX_TYPE
from offload.stores.capabilities import TagsWrites
from offload.text import human_size, human_time

_REWRITE = 100  # records that may have changed before the index is written again
_KEPT = 7 * 86400.0  # seconds; an index that nobody writes again is deleted
_SERIALIZER = "json"


def all_records(pointers: CatalogPointers, prefix: str = "") -> Iterator[Record | OffloadError]:
    """Yield the records of objects whose names start with *prefix*, by name and version.

    For each one that can't be read, yields the error. Tags of versions aren't read.
    """
    listed = pointers.content.store.pointers
    if isinstance(listed, TagsWrites):
        found = _by_index(pointers, listed, prefix)
    else:
        places = pointers.places(prefix)
        found = {
            pointer: (places[pointer], value)
            for pointer, value in pointers.read_set(places).items()
        }
    in_order = sorted(found.items(), key=lambda each: (each[1][0].name, parsed(each[1][0].key)))
    for pointer, (place, value) in in_order:
        try:
            yield pointers.parse_record(pointer, value, place)
        except OffloadError as exc:
            yield exc


# -- conditions


def matcher(
    kind: str | type | None,
    metadata: Mapping[str, Any] | None,
    since: float | datetime | None,
    larger_than: int | None,
) -> Callable[[Record], bool]:
    """Return a function that tells whether a record meets these conditions; see `Catalog.find`."""
    if not isinstance(kind, (str, type, NoneType)):
        raise TypeError("type is a type or its name")
    if not isinstance(metadata, (Mapping, NoneType)):
        raise TypeError("metadata is a dict of what a version's metadata must have")
    name = kind.__qualname__ if isinstance(kind, type) else kind
    wanted = None if name is None else name[:MAX_TYPE]
    start = since.timestamp() if isinstance(since, datetime) else since
    if not isinstance(start, (Real, NoneType)):
        raise TypeError("since is a datetime or seconds since 1970, such as time.time() - 86400")
    if not isinstance(larger_than, (Real, NoneType)):
        raise TypeError("larger_than is a number of bytes")

    def matches(record: Record) -> bool:
        return (
            (wanted is None or record.type == wanted)
            and (metadata is None or _includes(record.metadata, metadata))
            and (start is None or record.created >= start)
            and (larger_than is None or record.size > larger_than)
        )

    return matches


def _includes(present: Any, wanted: Any) -> bool:
    """Return whether *present* has all that *wanted* has, in dicts inside each other."""
    if isinstance(wanted, Mapping):
        return isinstance(present, dict) and all(
            key in present and _includes(present[key], value) for key, value in wanted.items()
        )
    return type(present) is type(wanted) and bool(present == wanted)


@dataclass
class CatalogStats:
    """Totals of a bucket.

    Attributes:
        objects, versions: how many there are.
        size: bytes of all versions; content that several share counts for each.
        types: versions by the type of their values.
        newest: when the last one was saved, in seconds since 1970; None if there is none.
        unreadable: records that were altered, or that a newer offload wrote.
    """

    objects: int = 0
    versions: int = 0
    size: int = 0
    types: dict[str, int] = field(default_factory=dict)
    newest: float | None = None
    unreadable: int = 0

    def _repr_html_(self) -> str:
        from offload.text import facts

        return facts(
            "Catalog",
            {
                "objects": f"{self.objects:,}",
                "versions": f"{self.versions:,}",
                "size": human_size(self.size),
                "types": ", ".join(f"{name} ({n:,})" for name, n in self.types.items()),
                "newest": None if self.newest is None else human_time(self.newest),
                "unreadable": self.unreadable or None,
            },
        )


def statistics(records: Iterator[Record | OffloadError]) -> CatalogStats:
    """Return the totals of *records*."""
    stats = CatalogStats()
    names = set()
    for record in records:
        if isinstance(record, OffloadError):
            stats.unreadable += 1
            continue
        names.add(record.name)
        stats.versions += 1
        stats.size += record.size
        stats.types[record.type] = stats.types.get(record.type, 0) + 1
        stats.newest = max(record.created, stats.newest or record.created)
    stats.objects = len(names)
    return stats


# -- the index

_Found = dict[str, tuple[Place, bytes]]


def _by_index(pointers: CatalogPointers, listed: TagsWrites, prefix: str) -> _Found:
    start = pointers.start(prefix)
    tags = pointers.content.retrying(lambda: dict(listed.tagged_names(start)))
    places = {pointer: place for pointer in tags if (place := object_of(pointer)) is not None}
    index = _Index(pointers)
    entries = index.read() if len(places) > _REWRITE // 2 else {}
    current = {
        pointer: entries[pointer][1].encode()
        for pointer in places
        if pointer in entries and entries[pointer][0] == tags[pointer]
    }
    changed = [pointer for pointer in places if pointer not in current]
    read = pointers.read_set(changed)
    current.update(read)
    if len(changed) > _REWRITE:
        # A value that was set again after it was listed has another tag: it is read again.
        entries.update(
            {p: (tags[p], value.decode("utf-8", "replace")) for p, value in read.items()}
        )
        kept = {p: each for p, each in entries.items() if p in tags or not p.startswith(start)}
        index.write(kept)
    return {pointer: (places[pointer], value) for pointer, value in current.items()}


class _Index:
    """All records of a bucket: the tag and the value of each pointer.

    Records in it are verified as those in pointers are.
    """

    def __init__(self, pointers: CatalogPointers) -> None:
        self._at = pointers
        self._content = pointers.content
        self._pointer = INDEXES + pointers.bucket
        self._before: bytes | None = None

    def read(self) -> dict[str, tuple[str, str]]:
        """Return the index; {} if there is none, or it is damaged."""
        (self._before,) = self._at.read_all([self._pointer])
        with suppress(OffloadError, ValueError, KeyError, TypeError, RecursionError):
            if self._before is not None:
                data = self._at.parse(lambda keys: unseal(self._pointer, self._before or b"", keys))
                read: Any = json.loads(self._content.reader.get(self._content.open(data["ref"])))
                # Raises unless all are texts that UTF-8 can encode.
                "".join(text for each in read for text in each).encode()
                return {pointer: (tag, value) for pointer, tag, value in read}
        return {}

    def write(self, entries: Mapping[str, tuple[str, str]]) -> None:
        """Replace the index, unless others do so meanwhile. A failure only makes searches slow."""
        text = json.dumps([[p, *each] for p, each in entries.items()], separators=(",", ":"))
        with suppress(OffloadError):
            ref = self._content.writer.put(
                text, celery_serializer=_SERIALIZER, hold=Hold(_KEPT, "catalog-index")
            )
            data = {"format": FORMAT, "ref": ref.wire}
            value = seal(self._pointer, data, self._content.signing.keys)
            self._at.swap(self._pointer, self._before, value)
