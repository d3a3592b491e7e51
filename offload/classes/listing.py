"""Compare the classes in this process with the versions in a store; list and prune versions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from offload.classes.policy import Versions
from offload.classes.source import diff
from offload.classes.versions import (
    FOLDER,
    LATEST,
    ClassVersion,
    PointerNames,
    Record,
    Storage,
    StoredVersion,
    label,
    tags_in,
    versions_in,
)
from offload.errors import CodeRefused, UnknownClass, VersionMissing

_PREFIX = re.compile(r"[0-9a-f]{8,64}", re.ASCII)
_BATCH = 100  # versions to read in one request, up to 64 KiB each
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
class ClassSummary:
    """A class or function in a store, whose signatures haven't been verified.

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


class StoredClasses:
    """Queries about the classes in a store; part of `offload.classes.registry.ClassRegistry`."""

    _versions: Versions

    def _known_names(self) -> set[str]:
        """Return the full names of the classes in this process."""
        raise NotImplementedError

    def listing(self) -> list[ClassSummary]:
        """Return everything in the store, sorted by name, without verifying signatures.

        Takes a constant number of round trips.
        """
        storage = self._versions.storage
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
            ClassSummary(
                names[folder],
                tuple(versions_in(pointers)),
                tuple(tags_in(pointers)),
                *latests.get(folder, (None, "")),
            )
            for folder, pointers in folders.items()
        ]
        return sorted(found, key=lambda each: each.name)

    def classes(self) -> dict[str, Record]:
        """Return the latest record of every class, by name, without verifying signatures.

        Omits invalid records.
        """
        return {each.name: each.latest for each in self.listing() if each.latest is not None}

    def stored(self, name: str, code_hash: str) -> StoredVersion:
        """Return a version as stored, without verifying its signature.

        Raises UnknownClass, VersionMissing; CodeRefused if its content doesn't match its record.
        """
        return self._versions.stored(self.full_name(name), code_hash)

    def find_hash(self, name: str, meant: str, *, tags: bool = False) -> str:
        """Return the full hash for a hash prefix of at least 8 digits.

        Args:
            name: full or short name of the class.
            meant: the prefix.
            tags: also accept a tag or ``latest``, without verifying signatures.

        Raises UnknownClass; VersionMissing if no version matches, or if several do.
        """
        names = PointerNames(self.full_name(name))
        hashes = self._versions.storage.hashes(names)
        found = {each for each in hashes if _PREFIX.fullmatch(meant) and each.startswith(meant)}
        if tags:
            found |= {each for tag, each in self.tags(names.name).items() if tag == meant}
        if not found:
            what = f"version{' or tag' if tags else ''} {meant!r:.70}"
            if not _PREFIX.fullmatch(meant):
                what += " (a hash prefix needs at least 8 digits)"
            raise self._versions.missing_error(names, what)
        if len(found) > 1:
            shown = " or ".join(sorted(found))
            raise VersionMissing(f"{meant!r} of {names.name} is ambiguous: {shown}")
        return found.pop()

    def versions(self, name: str) -> list[Record]:
        """Return the records of all versions, oldest first. Raises UnknownClass."""
        names = PointerNames(self.full_name(name))
        found = self._versions.storage.records(names)
        if not found:
            raise self._versions.missing_error(names, "version")
        return found

    def heads(self, name: str, hashes: Iterable[str]) -> dict[str, Record | None]:
        """Return records by hash, in one round trip; None if it is missing or invalid.

        *name* is the full name.
        """
        names, hashes = PointerNames(name), list(hashes)
        records = self._versions.storage.read_records(map(names.version, hashes))
        return dict(zip(hashes, records, strict=True))

    def pointed(self, name: str, tags: Iterable[str]) -> dict[str, str | None]:
        """Return the hashes that tags (or ``latest``) point to, in one round trip.

        The hash is None if a pointer can't be read. *name* is the full name.
        """
        names, tags = PointerNames(name), list(tags)
        pointers = [names.latest if tag == LATEST else names.tag(tag) for tag in tags]
        contents = zip(tags, pointers, self._versions.storage.read(pointers), strict=True)
        return {
            tag: record.hash if (record := _record_in(content, pointer)) else None
            for tag, pointer, content in contents
            if content is not None
        }

    def tags(self, name: str) -> dict[str, str]:
        """Return the hashes that a class's tags point to, by tag, including ``latest``."""
        names = PointerNames(self.full_name(name))
        pointers = [n for n in self._versions.storage.names(names.folder) if n.endswith(".json")]
        contents = zip(pointers, self._versions.storage.read(pointers), strict=True)
        return {
            pointer.rpartition("/")[2][: -len(".json")]: Record.from_bytes(content, pointer).hash
            for pointer, content in contents
            if content is not None
        }

    def diff(self, name: str, a: str, b: str) -> str:
        """Return a unified diff of the sources of versions *a* and *b*.

        Raises VersionMissing if a version is missing or was pushed without source.
        """
        full = self.full_name(name)
        first, second = self.stored(full, a), self.stored(full, b)
        for each in (first, second):
            if not each.source:
                raise VersionMissing(
                    f"{label(each.record.pair)} was pushed without its source: push it "
                    "where offload_ship_source is set"
                )
        try:
            return diff(first.source, second.source, label((full, a)), label((full, b)))
        except (ValueError, TypeError, LookupError) as exc:
            raise CodeRefused(
                f"the source of {label((full, a))} or @{b[:12]} in {self._versions.url} can't be "
                "read",
                store=self._versions.url,
            ) from exc

    def prune(self, older_than: float, *, dry_run: bool = False) -> list[Record]:
        """Delete versions pushed more than *older_than* seconds ago, and return their records.

        Keeps versions that are the latest, are tagged, are unreadable, or are needed by a kept one.
        Call this when no waiting message needs an old version, and no process still sends one; a
        process that does will push it again within a minute.
        """
        storage, before = self._versions.storage, self._versions.clock() - older_than
        pointers = storage.names()
        versions = [each for each in pointers if versions_in([each])]
        batches = (versions[at : at + _BATCH] for at in range(0, len(versions), _BATCH))
        found = (record for batch in batches for record in storage.read_records(batch) if record)
        records = {record.pair: record for record in found}
        named = [each for each in pointers if each.endswith(".json")]  # the latest and tagged ones
        contents = zip(named, storage.read(named), strict=True)
        shown = (_record_in(content, each) for each, content in contents if content is not None)
        kept = [record.pair for record in shown if record is not None]
        kept += [record.pair for record in records.values() if record.created >= before]
        seen: set[ClassVersion] = set()
        while kept:
            pair = kept.pop()
            if pair not in seen:
                seen.add(pair)
                kept += records[pair].needs if pair in records else ()
        return [
            record
            for pair, record in records.items()
            if pair not in seen and (dry_run or _removed(storage, record, pointers))
        ]

    def full_name(self, name: str) -> str:
        """Return the full name for a short one. Raises UnknownClass if it is ambiguous."""
        if "." in name:
            return name
        matches = {each for each in self._known_names() if each.rpartition(".")[2] == name}
        matches |= {each.name for each in self.listing() if each.name.rpartition(".")[2] == name}
        if len(matches) > 1:
            raise UnknownClass(f"{name!r} is ambiguous: {' or '.join(sorted(matches))}")
        return matches.pop() if matches else name


def _latest(folder: str, content: bytes) -> tuple[Record | None, str]:
    """Return the record in a latest pointer, and "" or why it is invalid."""
    where = f"{folder}latest.json"
    try:
        record = Record.from_bytes(content, where)
    except CodeRefused as exc:
        return None, str(exc)
    if PointerNames(record.class_name).folder != folder or record.purpose != LATEST:
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
    """Return the class name of each folder; if it is escaped, read it from a version's record."""
    names = {folder: folder[len(FOLDER) : -1] for folder in folders}
    names |= {folder: record.class_name for folder, (record, _) in latests.items() if record}
    asked = {
        folder: f"{folder}{versions[0]}.pkl"
        for folder, name in names.items()
        if "-" in name and (versions := versions_in(folders[folder]))
    }
    for folder, record in zip(asked, storage.read_records(asked.values()), strict=True):
        if record is not None:
            names[folder] = record.class_name
    return names


def _record_in(content: bytes, pointer: str) -> Record | None:
    try:
        return Record.from_bytes(content, pointer)
    except CodeRefused:
        return None


def _removed(storage: Storage, record: Record, pointers: list[str]) -> bool:
    """Delete a version if it is unchanged, with its further parts; return whether it was."""
    names = PointerNames(record.class_name)
    pointer = names.version(record.hash)
    [content] = storage.read([pointer])
    if content is None or storage.record(names, record.hash, content) != record:
        return False
    if not storage.swap(pointer, content, None):
        return False
    prefix = names.more(record.hash, record.digest, 2)[0].removesuffix("1.pkl")
    more = [each for each in pointers if each.startswith(prefix)]
    for name, part in zip(more, storage.read(more), strict=True):
        storage.swap(name, part, None)
    return True
