"""Queries about the catalog: objects, versions, and content that versions share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from offload.catalog import Record
from offload.content.store import ContentStore
from offload.digest import Digest
from offload.errors import OffloadError
from offload.hooks.runtime import Runtime
from offload.inspect.blobs import stored_sizes
from offload.metrics.report import Usage, usage
from offload.metrics.storage import has_counters, sums_of
from offload.text import human_time

INSPECTED = 50
"""Number of newest versions whose content is inspected: each takes a round trip."""


@dataclass(frozen=True)
class ObjectState:
    """An object.

    Attributes:
        latest: the record of its highest version.
        versions: number of versions.
        size: serialized bytes of all versions.
    """

    name: str
    latest: Record
    versions: int
    size: int


@dataclass(frozen=True)
class VersionState:
    """A version, and the space that it takes in the store.

    Attributes:
        blobs: number of its blobs; None if they weren't inspected.
        stored: bytes of its blobs, after compression.
        shared: the part of *stored* in blobs that other inspected versions also use.
        problem: why its content can't be inspected; "" if it can.
    """

    record: Record
    blobs: int | None = None
    stored: int | None = None
    shared: int | None = None
    problem: str = ""


def objects_of(records: Iterable[Record]) -> list[ObjectState]:
    """Return the objects of *records*, which must be in the order of `Catalog.find`."""
    found = []
    for name, each in groupby(records, key=lambda record: record.name):
        versions = list(each)
        size = sum(record.size for record in versions)
        found.append(ObjectState(name, versions[-1], len(versions), size))
    return found


def usage_of(runtime: Runtime) -> dict[tuple[str, str], Usage]:
    """Return how each object was used in the last 90 days, by bucket and name.

    Includes what this process has counted but not yet written. Raises StoreUnavailable.
    """
    if not has_counters(runtime.store):
        return {}
    runtime.recorder.write()
    return usage(sums_of(runtime.store))


def describe_usage(used: Usage | None) -> dict[str, Any]:
    """Return how an object was used, as plain data; None means that it wasn't."""
    used = used or Usage()
    return {
        "loads": used.loads,
        "hits": used.hits,
        "late": used.late,
        "refs": used.refs,
        "last_used": None if used.last is None else human_time(used.last),
    }


def versions_of(content: ContentStore, records: Sequence[Record]) -> list[VersionState]:
    """Return the versions of an object, in the order of *records*, which must be lowest first.

    Inspects the content of the `INSPECTED` highest versions. Raises ConfigurationError if the store
    doesn't support inspection, and StoreUnavailable.
    """
    digests: dict[int, Sequence[Digest]] = {}
    problems: dict[int, str] = {}
    first = max(len(records) - INSPECTED, 0)
    for at, record in enumerate(records[first:], first):
        try:
            digests[at] = list(dict.fromkeys(content.holds.digests(content.open(record.ref))))
        except OffloadError as exc:
            problems[at] = str(exc)
    users = Counter(digest for some in digests.values() for digest in some)
    sizes = stored_sizes(content.store, list(users))

    def state(at: int, record: Record) -> VersionState:
        if at not in digests:
            return VersionState(record, problem=problems.get(at, ""))
        mine = digests[at]
        missing = sum(digest not in sizes for digest in mine)
        return VersionState(
            record,
            len(mine),
            sum(sizes.get(digest, 0) for digest in mine),
            sum(sizes.get(digest, 0) for digest in mine if users[digest] > 1),
            f"{missing} of its {len(mine)} blobs are missing" if missing else "",
        )

    return [state(at, record) for at, record in enumerate(records)]


def describe_record(record: Record, *, tags: bool = True) -> dict[str, Any]:
    """Return a record as plain data.

    Args:
        tags: whether its tags were read; see `Record`.
    """
    described = {
        "bucket": record.bucket,
        "name": record.name,
        "version": record.version,
        "tags": list(record.tags),
        "type": record.type,
        "bytes": record.size,
        "created": human_time(record.created),
        "author": record.author,
        "digest": record.digest,
        "metadata": record.metadata,
    }
    if not tags:
        del described["tags"]
    return described
