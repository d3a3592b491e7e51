"""Small objects that change by compare-and-swap: pointers and leases."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from offload.errors import ConfigurationError, StoreError, StoreUnavailable
from offload.stores.checks import MAX_POINTER, check_name, check_owner, check_ttl, check_value
from offload.stores.processes import PerProcess
from offload.stores.protocols import SweepItem
from offload.stores.s3.client import GONE_OR_CHANGED, S3Client
from offload.stores.s3.driver_errors import driver_errors

__all__ = ("PROBE", "Conditions", "Record", "Records", "S3Leases", "S3Pointers", "record_name")

NONCE = 16
"""Random bytes with which a record begins, so that no two writes have the same ETag."""
_PROBE = "probe"
PROBE = re.compile(r"[0-9a-f]{32}", re.ASCII)
"""Names of what is written to ask by."""
_TURNS = 100
_REMEMBER = 86400.0
"""Seconds for which a lease that ended keeps its last fencing number, and an unset pointer
its object."""
_ASKING = 3600.0
"""Seconds after which nobody is asking any more by the object that was written for it."""
_OTHER_ETAG = '"00000000000000000000000000000000"'
_LEFT_BY_OTHERS = (".DS_Store", "._", ".nfs")
"""Beginnings of files of operating systems, copied into buckets with folders. Records could be
called so, but none is."""
_LISTABLE = re.compile(r"[A-Za-z0-9._/-]*", re.ASCII)


class Conditions:
    """Whether the server keeps conditions, asked once in each process, when it first matters.

    A server that ignores them answers as if all were well; so they are tried on an object
    of our own.
    """

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self._found: PerProcess[dict[str, bool]] = PerProcess(dict)

    def require(self) -> None:
        """Raise ConfigurationError if PUT does not compare."""
        if not self._known("put"):
            raise ConfigurationError(
                f"{self._client.url} ignores conditions (If-None-Match, If-Match) on writes, so "
                "processes could overwrite each other's pointers and leases: put a store before "
                "it that keeps them, or update the server",
                store=self._client.url,
            )

    def require_deletes(self) -> None:
        """Raise ConfigurationError if DELETE does not compare."""
        if not self._known("delete"):
            raise ConfigurationError(
                f"{self._client.url} ignores If-Match on deletions, so a sweep could remove what "
                "was stored again meanwhile: give the bucket a lifecycle rule instead",
                store=self._client.url,
            )

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Remove, unless *dry_run*, what killed processes left that were asking; yield it."""
        for entry in _aged(self._client, _PROBE, _ASKING):
            if not PROBE.fullmatch(entry["Key"].rpartition("/")[2]):
                continue  # others put it there
            if not dry_run:
                self._client.ask("delete_object", (404,), records=True, Key=entry["Key"])
            name = entry["Key"][len(self._client.begin) :]
            yield SweepItem("file", name, entry["Size"], "left by a process that was killed")

    def _known(self, what: str) -> bool:
        found = self._found.get()
        if not found:
            found.update(self._try())
        return found[what]

    def _try(self) -> dict[str, bool]:
        key = f"{self._client.begin}{_PROBE}/{os.urandom(NONCE).hex()}"
        refusals = (*GONE_OR_CHANGED, 400, 501)

        def put(**condition: str) -> int:
            status, _ = self._client.ask(
                "put_object", refusals, records=True, Key=key, Body=b"offload", **condition
            )
            return status

        def delete(**condition: str) -> int:
            status, _ = self._client.ask(
                "delete_object", refusals, records=True, Key=key, **condition
            )
            return status

        try:
            compares = put(IfNoneMatch="*") == 200
            compares = compares and put(IfNoneMatch="*") in GONE_OR_CHANGED
            compares = compares and put(IfMatch=_OTHER_ETAG) in GONE_OR_CHANGED
            return {"put": compares, "delete": delete(IfMatch=_OTHER_ETAG) in GONE_OR_CHANGED}
        finally:
            with suppress(StoreError):
                delete()


@dataclass(frozen=True)
class Record:
    """What a key held when it was read.

    Attributes:
        content: None where there is no object.
        etag: None where there is no object.
        earliest, latest: between which the server's time was when it had been read.
    """

    content: bytes | None
    etag: str | None
    earliest: float
    latest: float


class Records:
    """Named contents in one folder of the bucket, each an object that is replaced by ETag.

    A name's slashes are written ``!``: servers that keep objects as files could not have
    ``a`` beside ``a/b``.
    """

    def __init__(self, client: S3Client, folder: str, conditions: Conditions) -> None:
        self.url = client.url
        self._client = client
        self._folder = folder
        self._conditions = conditions

    def read(self, name: str) -> Record:
        return _without_nonce(self._read(self._key(name)))

    def read_all(self, names: Sequence[str]) -> list[Record]:
        return self._client.threads.each(self.read, names)

    def change(self, name: str, decide: Callable[[Record], tuple[bytes | None, Any]]) -> Any:
        """Replace a record by what *decide* makes of it, in one step.

        *decide* returns the new content (None: leave it) and what is returned in the end. It
        is called again when others were faster.
        """
        self._conditions.require()
        key = self._key(name)
        body: bytes | None = None
        failed: StoreUnavailable | None = None
        result: Any = None
        for turn in range(_TURNS):
            seen = self._read(key)
            if body is not None and seen.content == body:
                return result  # it was done, and the answer got lost: the random bytes tell
            if failed is not None:
                raise failed
            content, result = decide(_without_nonce(seen))
            if content is None:
                return result
            body = os.urandom(NONCE) + content
            condition = {"IfMatch": seen.etag} if seen.etag else {"IfNoneMatch": "*"}
            try:
                status, _ = self._client.ask(
                    "put_object", GONE_OR_CHANGED, records=True, Key=key, Body=body, **condition
                )
            except StoreUnavailable as exc:
                failed = exc
                continue
            if status == 200:
                return result
            self._client.sleep(random.uniform(0, 0.001 * turn))  # noqa: S311 (not for secrets)
        raise StoreUnavailable(
            f"{self.url}: {name!r} was changed by others {_TURNS} times in a row", store=self.url
        )

    def entries(self, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the names that begin so, with what the list says of their objects."""
        if not _LISTABLE.fullmatch(prefix):
            return
        for page in self._client.pages(self._folder, prefix.replace("/", "!")):
            for entry in page:
                name = self._name(entry)
                if name is not None:
                    yield name, entry

    def sweep(self, is_over: Callable[[Record], bool], *, dry_run: bool) -> Iterator[str]:
        """Delete, unless *dry_run*, the records that are over; yield their names."""
        for entry in _aged(self._client, self._folder, _REMEMBER):
            name = self._name(entry)
            if name is not None and self._remove_if(name, is_over, dry_run=dry_run):
                yield name

    def _remove_if(self, name: str, is_over: Callable[[Record], bool], *, dry_run: bool) -> bool:
        """Delete a record that is over, if nobody changes it meanwhile."""
        seen = self.read(name)
        if seen.etag is None or not is_over(seen):
            return False
        if dry_run:
            return True
        status, _ = self._client.ask(
            "delete_object", GONE_OR_CHANGED, records=True, Key=self._key(name), IfMatch=seen.etag
        )
        return status in (200, 204)

    @property
    def _begin(self) -> str:
        return f"{self._client.begin}{self._folder}/"

    def _read(self, key: str) -> Record:
        status, answer = self._client.ask("get_object", (404,), records=True, Key=key)
        if status == 404:
            return Record(None, None, *self._client.bounds())
        with driver_errors(self.url):
            content = answer["Body"].read(MAX_POINTER * 2)
            answer["Body"].close()
        return Record(content, answer["ETag"], *self._client.bounds())

    def _key(self, name: str) -> str:
        return self._begin + check_name(name).replace("/", "!")

    def _name(self, entry: Mapping[str, Any]) -> str | None:
        """Return the name of a record that is listed; None for what others put there."""
        key: str = entry["Key"]
        return record_name(key[len(self._begin) :]) if entry.get("Size", NONCE) >= NONCE else None


def record_name(last: str) -> str | None:
    """Return which record's key ends so; None if it is none of the store's."""
    if "/" in last or last.startswith(_LEFT_BY_OTHERS):
        return None
    with suppress(ValueError):
        return check_name(last.replace("!", "/"))
    return None


def _aged(client: S3Client, folder: str, age: float) -> Iterator[dict[str, Any]]:
    """Yield what is listed of the objects that were not written for *age* seconds."""
    _, answer = client.ask("list_objects_v2", Prefix=f"{client.begin}{folder}/", MaxKeys=1)
    latest = client.now(answer) - age
    for page in client.pages(folder):
        yield from (entry for entry in page if entry["LastModified"].timestamp() < latest)


def _without_nonce(record: Record) -> Record:
    content = record.content
    return replace(record, content=None if content is None else content[NONCE:])


_UNSET, _SET = b"", b"\x01"


class S3Pointers:
    def __init__(self, records: Records) -> None:
        self._records = records

    def read(self, name: str) -> bytes | None:
        return _value(self._records.read(name))

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """One request for each name, several at once."""
        return [_value(seen) for seen in self._records.read_all(names)]

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        content = _UNSET if value is None else _SET + bytes(check_value(value))

        def decide(seen: Record) -> tuple[bytes | None, bool]:
            current = _value(seen)
            if current != expected or (current is None and value is None):
                return None, current == expected
            return content, True

        swapped: bool = self._records.change(name, decide)
        return swapped

    def names(self, prefix: str = "") -> Iterator[str]:
        for name, entry in self._records.entries(prefix):
            if entry["Size"] > NONCE:
                yield name

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Remove the objects of pointers that were unset a day ago, and yield them."""
        for name in self._records.sweep(lambda seen: _value(seen) is None, dry_run=dry_run):
            yield SweepItem("pointer", name, 0, "unset a day ago")


def _value(seen: Record) -> bytes | None:
    return None if seen.content in (None, _UNSET) else (seen.content or b"")[len(_SET) :]


@dataclass
class _Lease:
    owner: str = ""
    fence: int = 0
    until: float = 0.0


class S3Leases:
    """Leases by the server's clock.

    How well that is known depends on how often it was asked (see `ServerClock`): a lease lasts
    at least as long as it was taken for, and for a process that has just begun to ask, up to
    two seconds longer.
    """

    def __init__(self, records: Records) -> None:
        self._records = records

    def acquire(self, name: str, owner: str, ttl: float) -> int | None:
        check_owner(owner)
        ttl = check_ttl(ttl)

        def decide(seen: Record) -> tuple[bytes | None, int | None]:
            lease = _lease(seen)
            if lease.until <= seen.earliest:
                # By time, so that it goes on rising after the lease was forgotten.
                lease = _Lease(owner, max(lease.fence + 1, int(seen.latest * 1e6)))
            elif lease.owner != owner:
                return None, None
            lease.until = seen.latest + ttl
            return _written(lease), lease.fence

        fence: int | None = self._records.change(name, decide)
        return fence

    def renew(self, name: str, owner: str, ttl: float) -> bool:
        return self._prolong(name, owner, check_ttl(ttl))

    def release(self, name: str, owner: str) -> bool:
        return self._prolong(name, owner, None)

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Forget leases that ended a day ago, and yield them."""

        def is_over(seen: Record) -> bool:
            lease = _lease(seen)
            return lease.fence > 0 and lease.until < seen.earliest - _REMEMBER

        for name in self._records.sweep(is_over, dry_run=dry_run):
            yield SweepItem("lease", name, 0, "ended a day ago")

    def _prolong(self, name: str, owner: str, ttl: float | None) -> bool:
        def decide(seen: Record) -> tuple[bytes | None, bool]:
            lease = _lease(seen)
            if lease.owner != owner or lease.until <= seen.earliest:
                return None, False
            lease.until = 0.0 if ttl is None else seen.latest + ttl
            return _written(lease), True

        done: bool = self._records.change(name, decide)
        return done


def _lease(seen: Record) -> _Lease:
    with suppress(TypeError, ValueError):
        return _Lease(**json.loads(seen.content or b"{}"))
    return _Lease()  # what something else has damaged is no lease


def _written(lease: _Lease) -> bytes:
    return json.dumps(asdict(lease)).encode()
