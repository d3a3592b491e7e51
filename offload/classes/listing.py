"""Compare the classes in this process with the versions in a store; list and prune versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from offload.classes.versions import (
    FOLDER,
    LATEST,
    ClassVersion,
    Names,
    Record,
    Storage,
    tags_in,
    versions_in,
)
from offload.errors import CodeRefused

__all__ = (
    "OUT_OF_SYNC",
    "SYNCED",
    "UNTRACKED",
    "Listed",
    "SyncStatus",
    "heads",
    "listed",
    "pointed",
    "prune",
)

UNTRACKED, SYNCED, OUT_OF_SYNC = "untracked", "synced", "out_of_sync"


@dataclass(frozen=True)
class SyncStatus:
    """Whether a class or function of this process is in sync with the store.

    Attributes:
        name: module and qualified name.
        hash: hash of this process's version.
        latest: record of the latest version in the store; None if the store has none.
    """

    name: str
    hash: str
    latest: Record | None

    @property
    def status(self) -> str:
        """``untracked``, ``synced`` or ``out_of_sync``."""
        if self.latest is None:
            return UNTRACKED
        return SYNCED if self.latest.hash == self.hash else OUT_OF_SYNC


@dataclass(frozen=True)
class Listed:
    """Class or function in a store; whether it is trusted hasn't been checked.

    Attributes:
        versions: the hashes of its versions, unordered.
        tags: the names of its tags.
        latest: record of the latest version; None if there is none or it is *broken*.
        broken: why the pointer to the latest version can't be read; "" if it can.
    """

    name: str
    versions: tuple[str, ...]
    tags: tuple[str, ...]
    latest: Record | None
    broken: str = ""


def listed(storage: Storage) -> list[Listed]:
    """Return every class in a store, by name, in a constant number of round trips."""
    folders: dict[str, list[str]] = {}
    for pointer in storage.names():
        written = pointer[len(FOLDER) :].partition("/")[0]
        folders.setdefault(f"{FOLDER}{written}/", []).append(pointer)
    contents = storage.read(f"{folder}latest.json" for folder in folders)
    latests = {
        folder: _latest(folder, content)
        for folder, content in zip(folders, contents, strict=True)
        if content is not None
    }
    names = _names(storage, folders, latests)
    found = [
        Listed(
            names[folder],
            tuple(versions_in(pointers)),
            tuple(tags_in(pointers)),
            *latests.get(folder, (None, "")),
        )
        for folder, pointers in folders.items()
    ]
    return sorted(found, key=lambda each: each.name)


def _latest(folder: str, content: bytes) -> tuple[Record | None, str]:
    """Return the record of a latest pointer, and why it is invalid."""
    where = f"{folder}latest.json"
    try:
        record = Record.from_bytes(content, where)
    except CodeRefused as exc:
        return None, str(exc)
    if Names(record.class_name).folder != folder or record.purpose != LATEST:
        return (
            None,
            f"{where} holds {record.purpose} of {record.class_name}, which belongs elsewhere",
        )
    return record, ""


def _names(
    storage: Storage,
    folders: Mapping[str, list[str]],
    latests: Mapping[str, tuple[Record | None, str]],
) -> dict[str, str]:
    """Return the class name of each folder, from a version's record if the folder's name is
    escaped.
    """
    names = {folder: folder[len(FOLDER) : -1] for folder in folders}
    names |= {folder: record.class_name for folder, (record, _) in latests.items() if record}
    asked = {
        folder: f"{folder}{versions[0]}.pkl"
        for folder, name in names.items()
        if "-" in name and (versions := versions_in(folders[folder]))
    }
    for folder, record in zip(asked, storage.heads(asked.values()), strict=True):
        if record is not None and Names(record.class_name).folder == folder:
            names[folder] = record.class_name
    return names


def heads(storage: Storage, name: str, hashes: Iterable[str]) -> dict[str, Record | None]:
    """Return records of versions; see `ClassRegistry.heads`."""
    names, hashes = Names(name), list(hashes)
    records = storage.heads(map(names.version, hashes))
    return {
        code_hash: record if record is None or record.pair == (name, code_hash) else None
        for code_hash, record in zip(hashes, records, strict=True)
    }


def pointed(storage: Storage, name: str, tags: Iterable[str]) -> dict[str, str | None]:
    """Return the hashes of tags; see `ClassRegistry.pointed`."""
    names, tags = Names(name), list(tags)
    pointers = [names.latest if tag == LATEST else names.tag(tag) for tag in tags]
    contents = zip(tags, pointers, storage.read(pointers), strict=True)
    return {
        tag: _hash_in(content, pointer) for tag, pointer, content in contents if content is not None
    }


def _hash_in(content: bytes, pointer: str) -> str | None:
    try:
        return Record.from_bytes(content, pointer).hash
    except CodeRefused:
        return None


_BATCH = 100  # versions read at once, up to 64 KiB each


def prune(storage: Storage, before: float, *, dry_run: bool) -> Iterator[Record]:
    """Delete versions that were pushed before *before* (seconds since 1970), and yield them.

    The latest versions, tagged ones, and those that a kept version needs are kept. So are versions
    that can't be read.
    """
    pointers = storage.names()
    records = _records(storage, pointers)
    kept = [record.pair for record in records.values() if record.created >= before]
    kept += _pointed_at(storage, pointers)
    seen: set[ClassVersion] = set()
    while kept:
        pair = kept.pop()
        if pair not in seen:
            seen.add(pair)
            kept += records[pair].needs if pair in records else ()
    for pair, record in records.items():
        if pair not in seen and (dry_run or _removed(storage, record, pointers)):
            yield record


def _records(storage: Storage, pointers: list[str]) -> dict[ClassVersion, Record]:
    found = [p for p in pointers if versions_in([p])]
    records: dict[ClassVersion, Record] = {}
    for at in range(0, len(found), _BATCH):
        some = found[at : at + _BATCH]
        for pointer, record in zip(some, storage.heads(some), strict=True):
            # A record under another's name is left for people to inspect.
            if record is not None and Names(record.class_name).version(record.hash) == pointer:
                records[record.pair] = record
    return records


def _pointed_at(storage: Storage, pointers: list[str]) -> list[ClassVersion]:
    """Return the versions that are the latest of their class or have a tag."""
    names = [pointer for pointer in pointers if pointer.endswith(".json")]
    found: list[ClassVersion] = []
    for name, content in zip(names, storage.read(names), strict=True):
        try:
            found += [Record.from_bytes(content, name).pair] if content is not None else []
        except CodeRefused:
            continue
    return found


def _removed(storage: Storage, record: Record, pointers: list[str]) -> bool:
    """Delete a version if it is unchanged, then its continuation parts; return whether it was."""
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
