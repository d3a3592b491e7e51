"""Records of remembered results: write, read, list, forget, and sweep them.

A record is the pointer ``memo/<task>/<scope>/<key>``. Its value is a MAC of the pointer's name
and the rest of the value, and then JSON: a small result itself (version 2), or the reference of a
large one (version 1, in which earlier versions of offload also wrote small results). The
holder ``memo:<key>+<fence>`` keeps a large result's blobs for as long as the record. Names of tasks
and scopes that no pointer may have are replaced by a hash.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import chain, islice
from typing import Any, NamedTuple

import orjson

from offload.content.holds import holder
from offload.content.store import ContentStore
from offload.errors import ConfigurationError, OffloadError
from offload.ref import Keys, Ref, record_text
from offload.stores.protocols import Store, SweepItem

FOLDER = "memo/"
"""Prefix of the names of records and of their leases."""

_BY_REF, _WITHIN = 1, 2  # versions of the format
_KIND = b"offload-memo"  # of signed records
_PLAIN = re.compile(r"[A-Za-z0-9._:@+-][A-Za-z0-9._:@+=-]*", re.ASCII)
_LONGEST_TASK, _LONGEST_SCOPE = 100, 40  # characters of a name that a pointer shows unhashed
_HASHED = "="
_NOT_SENT = "a remembered result"  # in place of wire text
_BATCH = 100  # records read in one round trip
_GREATEST = 1 << 63  # more than any number in a record
_SKEW = 60.0  # seconds by which clocks may differ


class Within(NamedTuple):
    """A small result in its record.

    Attributes:
        root: its root blob.
        serializer, type, size: as of a `Ref`.
    """

    root: bytes
    serializer: str
    type: str
    size: int


@dataclass(frozen=True)
class Record:
    """A remembered result.

    Attributes:
        name: the name of its pointer.
        task: the task, or the module and name of a function.
        scope: callers in one scope share results.
        ref: wire text of the result's reference; empty if the record contains the result.
        seconds: how long the computation took.
        fence: fencing number of the computation.
        created: when it was written, in seconds since 1970.
        until: when it expires, in seconds since 1970.
        within: the result, if the record contains it.
        size: stored bytes of the record itself.
    """

    name: str
    task: str
    scope: str
    ref: str
    seconds: float
    fence: int
    created: float
    until: float
    within: Within | None = None
    size: int = 0

    @property
    def key(self) -> str:
        """The key of the call."""
        return self.name.rpartition("/")[2]


_NUMBER = (float, int)
_COMMON = {
    "task": (str,),
    "scope": (str,),
    "seconds": _NUMBER,
    "fence": (int,),
    "created": _NUMBER,
    "until": _NUMBER,
}
_FIELDS: dict[Any, dict[str, tuple[type, ...]]] = {
    _BY_REF: {**_COMMON, "ref": (str,)},
    _WITHIN: {**_COMMON, "root": (str,), "serializer": (str,), "type": (str,), "bytes": (int,)},
}
"""Fields and their types, by version."""


def record_name(task: str, scope: str, key: str) -> str:
    """Return the name of the pointer, and of the lease, for a call of *task*."""
    return f"{_folder(task, scope)}{key}"


@lru_cache(1000)
def _folder(task: str, scope: str | None = None) -> str:
    """Return the prefix of the names of a task's records, in one scope or in all."""
    found = f"{FOLDER}{_part(task, _LONGEST_TASK)}/"
    return found if scope is None else f"{found}{_part(scope, _LONGEST_SCOPE)}/"


def _part(name: str, longest: int) -> str:
    if len(name) <= longest and _PLAIN.fullmatch(name) and name not in (".", ".."):
        return name
    encoded = name.encode("utf-8", "surrogatepass")
    return _HASHED + blake2b(encoded, digest_size=16).hexdigest()


def record_holder(name: str, fence: int) -> str:
    """Return the holder of the blobs that the record *name* of this *fence* needs."""
    return holder("memo", f"{name.rpartition('/')[2]}+{fence}")


def write_record(record: Record, keys: Keys) -> bytes:
    """Return the value of the record's pointer, signed with the first of *keys*."""
    within = record.within
    fields: dict[str, Any] = {
        "v": _BY_REF if within is None else _WITHIN,
        "task": record.task,
        "scope": record.scope,
        "ref": record.ref,
        "seconds": record.seconds,
        "fence": record.fence,
        "created": record.created,
        "until": record.until,
    }
    if within is not None:
        del fields["ref"]
        fields["root"] = binascii.b2a_base64(within.root, newline=False).decode()
        fields["serializer"], fields["type"], fields["bytes"] = within[1:]
    return keys.sign_record(_KIND, record.name, _dumps(fields))


def _dumps(fields: dict[str, Any]) -> bytes:
    if fields["v"] == _WITHIN:
        try:
            return orjson.dumps(fields)
        except TypeError:  # a lone surrogate in a name
            pass
    return json.dumps(fields).encode()


def read_record(name: str, value: bytes | None, keys: Keys | None = None) -> Record | None:
    """Return the record in a pointer's *value*.

    Args:
        keys: verify the record with these; None to read it unverified, for people.

    Returns None if there is none, it is malformed, another version wrote it, or it isn't signed for
    this name with one of *keys*.
    """
    if value is None:
        return None
    text = record_text(_KIND, name, value, keys)
    if text is None:
        return None
    try:
        data = _loads(text)
        version = data.get("v") if isinstance(data, dict) else None
        fields = _FIELDS.get(version) if type(version) is int else None
        if fields is None:
            return None
        found: dict[str, Any] = {}
        for each, kinds in fields.items():
            given = found[each] = data.get(each)
            kind = type(given)
            if kind not in kinds or (kind is not str and not abs(given) < _GREATEST):
                return None
        if "root" in found:
            root = binascii.a2b_base64(found.pop("root"))
            serializer, shown = found.pop("serializer"), found.pop("type")
            found |= {"ref": "", "within": Within(root, serializer, shown, found.pop("bytes"))}
        return Record(name=name, size=len(value), **found)
    except (ValueError, RecursionError):
        return None


def _loads(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:  # a lone surrogate in a name
        return json.loads(text)


def open_result(content: ContentStore, record: Record) -> Ref[Any]:
    """Return the verified reference of a record's result, which may contain it.

    A reference that contains it can be read, but not sent. Raises InvalidRef or UnsupportedVersion.
    """
    within = record.within
    if within is None:
        return content.open(record.ref)
    return Ref(
        digest=None,
        size=within.size,
        serializer=within.serializer,
        type=within.type,
        created=record.created,
        until=record.until,
        wire=_NOT_SENT,
        data=within.root,
        resolve=content.reader.get,
    )


# -- for operators


def list_records(store: Store, prefix: str = "") -> Iterator[Record]:
    """Yield the records of tasks whose names start with *prefix*, unverified.

    Some of them may have expired. Raises StoreUnavailable or StoreError.
    """
    names: Iterable[str] = store.pointers.names(FOLDER + prefix)
    if prefix:  # hashed names may be those of any task
        names = dict.fromkeys(chain(names, store.pointers.names(FOLDER + _HASHED)))
    for name, value in _read_all(store, names):
        record = read_record(name, value)
        if record is not None and record.task.startswith(prefix):
            yield record


def _read_all(store: Store, names: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
    waiting = iter(names)
    while batch := list(islice(waiting, _BATCH)):
        yield from zip(batch, store.pointers.read_all(batch), strict=True)


def forget_record(content: ContentStore, name: str, grace: float) -> bool:
    """Forget one result; return whether there was one.

    If the call is being computed now, that result isn't remembered, either, and the next call
    computes it again.

    Args:
        grace: seconds for which the result's blobs are kept.

    Raises StoreUnavailable or StoreError.
    """
    store = content.store
    with suppress(ConfigurationError):  # without leases, there is no computation to stop
        lease = store.leases.read(name)
        if lease is not None:
            store.leases.release(name, lease.owner)
    while (value := store.pointers.read(name)) is not None:
        if store.pointers.swap(name, value, None):
            release_record(content, read_record(name, value, content.signing.keys), grace)
            return True
    return False


def forget_records(
    content: ContentStore, task: str | None, grace: float, scope: str | None = None
) -> int:
    """Forget the results of a task, in one *scope* or in all; return how many there were.

    If *task* is None, the results of all tasks are forgotten.

    As with `forget_record`, results that are being computed now aren't remembered.
    """
    store, folder = content.store, FOLDER if task is None else _folder(task, scope)
    names = dict.fromkeys(store.pointers.names(folder))
    with suppress(ConfigurationError):
        names.update(dict.fromkeys(store.leases.names(folder)))
    return sum(forget_record(content, name, grace) for name in names)


def release_record(content: ContentStore, record: Record | None, grace: float) -> None:
    """Release the blobs of a deleted record. If that fails, they expire when it would have."""
    if record is None:
        return
    with suppress(OffloadError):
        ref = open_result(content, record)
        if ref.digest is not None:
            content.holds.release([ref], record_holder(record.name, record.fence), grace)


# -- sweep


def sweep_records(
    store: Store, clock: Callable[[], float], *, dry_run: bool = False
) -> Iterator[SweepItem]:
    """Delete expired records, unless *dry_run*, and yield them; their blobs expire by themselves.

    Stores without pointers have none.
    """
    before = clock() - _SKEW
    with suppress(ConfigurationError):
        for name, value in _read_all(store, store.pointers.names(FOLDER)):
            record = read_record(name, value)
            if value is None or record is None or record.until > before:
                continue
            if dry_run or store.pointers.swap(name, value, None):
                yield SweepItem("pointer", name, len(value), "a remembered result that expired")
