"""Removing versions that nobody is likely to ask for any more."""

from __future__ import annotations

from collections.abc import Iterator

from offload.errors import CodeRefused
from offload.registry.names import Names, versions_in
from offload.registry.pickling import Pair
from offload.registry.record import Record
from offload.registry.storage import Storage

__all__ = ("prune",)

_BATCH = 100  # versions read at once, up to 64 KiB each


def prune(storage: Storage, before: float, *, dry_run: bool) -> Iterator[Record]:
    """Remove versions that were pushed before *before* (seconds since 1970), and yield them.

    What is the latest, has a tag, or is needed by what stays, stays; so does what cannot be read.
    """
    pointers = storage.names()
    records = _records(storage, pointers)
    kept = [record.pair for record in records.values() if record.created >= before]
    kept += _pointed_at(storage, pointers)
    seen: set[Pair] = set()
    while kept:
        pair = kept.pop()
        if pair not in seen:
            seen.add(pair)
            kept += records[pair].needs if pair in records else ()
    for pair, record in records.items():
        if pair not in seen and (dry_run or _removed(storage, record, pointers)):
            yield record


def _records(storage: Storage, pointers: list[str]) -> dict[Pair, Record]:
    found = [p for p in pointers if versions_in([p])]
    records: dict[Pair, Record] = {}
    for at in range(0, len(found), _BATCH):
        some = found[at : at + _BATCH]
        for pointer, record in zip(some, storage.heads(some), strict=True):
            # One that stands in the place of another is left for people to look at.
            if record is not None and Names(record.class_name).version(record.hash) == pointer:
                records[record.pair] = record
    return records


def _pointed_at(storage: Storage, pointers: list[str]) -> list[Pair]:
    """Return what is the latest of its name or has a tag."""
    names = [pointer for pointer in pointers if pointer.endswith(".json")]
    found: list[Pair] = []
    for name, content in zip(names, storage.read(names), strict=True):
        try:
            found += [Record.from_bytes(content, name).pair] if content is not None else []
        except CodeRefused:
            continue
    return found


def _removed(storage: Storage, record: Record, pointers: list[str]) -> bool:
    """Remove a version if it is still as it was seen; what it goes on in after it."""
    names = Names(record.class_name)
    pointer = names.version(record.hash)
    [content] = storage.read([pointer])
    if content is None or storage.record(names, record.hash, content) != record:
        return False
    if not storage.swap(pointer, content, None):
        return False
    begin = names.more(record.hash, record.digest, 2)[0].removesuffix("1.pkl")
    more = [each for each in pointers if each.startswith(begin)]
    for name, part in zip(more, storage.read(more), strict=True):
        storage.swap(name, part, None)
    return True
