"""`S3Store`: blobs, and its pointers, leases, and small files, in one bucket.

Pointers and leases are small objects that change by compare-and-swap.
"""

from __future__ import annotations

import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any, TypeVar

from offload.errors import StoreUnavailable
from offload.stores.bases import REMEMBER, Record, RecordLeases, Records
from offload.stores.capabilities import (
    MAX_SMALL_FILE,
    SMALL_FILE,
    UNNAMED,
    Known,
    Named,
    SmallFile,
)
from offload.stores.checks import MAX_POINTER, check_name, check_value
from offload.stores.protocols import SweepItem
from offload.stores.s3.blobs import S3Blobs
from offload.stores.s3.client import GONE_OR_CHANGED, Conditions, S3Client
from offload.stores.s3.driver_errors import driver_errors

T = TypeVar("T")

NONCE = 16
"""Number of random bytes at the start of a record, so that no two writes have the same ETag."""
_TURNS = 100  # attempts to change a record that others change at the same time
_LEFT_BY_OTHERS = (".DS_Store", "._", ".nfs")
"""Prefixes of operating systems' files, which get into buckets with copied folders."""
_LISTABLE = re.compile(r"[A-Za-z0-9._/:@+=-]*", re.ASCII)
_UNSET, _SET = b"", b"\x01"  # first byte of a pointer's content
_FOLDER = "stats"  # the folder of small files


class S3Store:
    """A store in the bucket of *client*.

    `offload.stores.s3.connect.open_s3` opens one; `offload.stores.s3` documents the objects
    and what the store relies on.

    Args:
        skew: seconds by which the clocks of servers behind one endpoint may differ, and that a
            write may take; added to every lifetime. At least 1, because S3 counts whole seconds.
        ahead: how much longer to keep a blob than requested, as a multiple of the request.
        unnamed: seconds within which a blob that was held `FOREVER` must be named.
    """

    def __init__(
        self,
        client: S3Client,
        *,
        skew: float = 60.0,
        ahead: float = 1.0,
        unnamed: float = UNNAMED,
    ) -> None:
        self.client = client
        self.conditions = Conditions(client)
        self.url = client.url
        self.blobs = S3Blobs(client, self.conditions, skew=skew, ahead=ahead, unnamed=unnamed)
        self.versions = self.blobs
        self.pointers = S3Pointers(S3Records(client, "pointers", self.conditions))
        self.leases = RecordLeases(S3Records(client, "leases", self.conditions))
        self.files = S3Files(client)

    def sweep(self, *, dry_run: bool = False, known: Known | None = None) -> Iterator[SweepItem]:
        """Delete what has expired, except blobs *known* to a tier index; yield it.

        Raises ConfigurationError if the server ignores conditions on deletions.
        """
        return self._sweep(known, None, dry_run=dry_run)

    def sweep_unnamed(self, named: Named, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Sweep like `sweep`, and also delete blobs held `FOREVER` that aren't *named*."""
        return self._sweep(None, named, dry_run=dry_run)

    def _sweep(
        self, known: Known | None, named: Named | None, *, dry_run: bool
    ) -> Iterator[SweepItem]:
        if not dry_run:
            self.conditions.require_deletes()
        yield from self.blobs.sweep(known, named, dry_run=dry_run)
        yield from self.pointers.sweep(dry_run=dry_run)
        yield from self.leases.sweep(dry_run=dry_run)
        yield from self.conditions.sweep(dry_run=dry_run)

    def close(self) -> None:
        """Close this process's connections and stop its threads; the next call opens new ones."""
        self.client.close()


class S3Records(Records):
    """Records in one folder of the bucket, each an object that is replaced by ETag.

    Slashes in names are written as ``!``, because servers that store objects as files can't have
    ``a`` beside ``a/b``.
    """

    def __init__(self, client: S3Client, folder: str, conditions: Conditions) -> None:
        self._client = client
        self._folder = folder
        self._prefix = f"{client.prefix}{folder}/"
        self._conditions = conditions

    def record(self, name: str) -> Record:
        return _without_nonce(self._read(self._key(name)))

    def read_all(self, names: Sequence[str]) -> list[Record]:
        return self._client.threads.each(self.record, names)

    def change(self, name: str, decide: Callable[[Record], tuple[bytes | None, T]]) -> T:
        self._conditions.require()
        url, key = self._client.url, self._key(name)
        failed: StoreUnavailable | None = None
        written: tuple[bytes, T] | None = None
        for turn in range(_TURNS):
            seen = self._read(key)
            if written is not None and seen.content == written[0]:
                return written[1]  # the random bytes are ours: only the response was lost
            if failed is not None:
                raise failed
            content, result = decide(_without_nonce(seen))
            if content is None:
                return result
            body = os.urandom(NONCE) + content
            written = body, result
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
            f"{url}: {name!r} was changed by others {_TURNS} times in a row", store=url
        )

    def names(self, prefix: str = "") -> Iterator[str]:
        return (name for name, _ in self.entries(prefix))

    def entries(self, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the names with this prefix, and the listings of their objects."""
        if not _LISTABLE.fullmatch(prefix):
            return
        for page in self._client.pages(self._folder, prefix.replace("/", "!")):
            for entry in page:
                name = self._name(entry)
                if name is not None:
                    yield name, entry

    def sweep(self, is_over: Callable[[Record], bool], *, dry_run: bool) -> Iterator[str]:
        """Delete records that are a day old and *is_over*, unless *dry_run*; yield their names."""
        for entry in self._client.aged(self._folder, REMEMBER):
            name = self._name(entry)
            if name is not None and self._remove_if(name, is_over, dry_run=dry_run):
                yield name

    def _remove_if(self, name: str, is_over: Callable[[Record], bool], *, dry_run: bool) -> bool:
        """Delete an expired record unless it changes concurrently."""
        seen = self.record(name)
        if seen.etag is None or not is_over(seen):
            return False
        if dry_run:
            return True
        status, _ = self._client.ask(
            "delete_object", GONE_OR_CHANGED, records=True, Key=self._key(name), IfMatch=seen.etag
        )
        return status in (200, 204)

    def _read(self, key: str) -> Record:
        status, answer = self._client.ask("get_object", (404,), records=True, Key=key)
        if status == 404:
            return Record(None, *self._client.bounds())
        with driver_errors(self._client.url):
            content = answer["Body"].read(MAX_POINTER * 2)
            answer["Body"].close()
        return Record(content, *self._client.bounds(), etag=answer["ETag"])

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name).replace("/", "!")

    def _name(self, entry: Mapping[str, Any]) -> str | None:
        """Return the name of a listed record; None if the object isn't the store's."""
        key: str = entry["Key"]
        return record_name(key[len(self._prefix) :]) if entry.get("Size", NONCE) >= NONCE else None


def record_name(last: str) -> str | None:
    """Return the name of the record whose key ends in *last*; None if it isn't the store's."""
    if "/" in last or last.startswith(_LEFT_BY_OTHERS):
        return None
    with suppress(ValueError):
        return check_name(last.replace("!", "/"))
    return None


def _without_nonce(record: Record) -> Record:
    content = record.content
    return replace(record, content=None if content is None else content[NONCE:])


class S3Pointers:
    """Pointers in records, each after a byte that says whether it is set."""

    def __init__(self, records: S3Records) -> None:
        self._records = records

    def read(self, name: str) -> bytes | None:
        return _value(self._records.record(name))

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """Read pointers with one request each, several in parallel."""
        return [_value(seen) for seen in self._records.read_all(names)]

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        content = _UNSET if value is None else _SET + bytes(check_value(value))

        def decide(seen: Record) -> tuple[bytes | None, bool]:
            current = _value(seen)
            if current != expected or (current is None and value is None):
                return None, current == expected
            return content, True

        return self._records.change(name, decide)

    def names(self, prefix: str = "") -> Iterator[str]:
        return (name for name, _ in self.tagged_names(prefix))

    def tagged_names(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        for name, entry in self._records.entries(prefix):
            if entry["Size"] > NONCE:
                yield name, entry["ETag"]

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Delete objects of pointers that were unset a day ago, unless *dry_run*; yield them."""
        for name in self._records.sweep(lambda seen: _value(seen) is None, dry_run=dry_run):
            yield SweepItem("pointer", name, 0, "unset a day ago")


def _value(seen: Record) -> bytes | None:
    return None if seen.content in (None, _UNSET) else (seen.content or b"")[len(_SET) :]


class S3Files:
    """The objects below ``stats/``, with the server's times."""

    has_pointers = True

    def __init__(self, client: S3Client) -> None:
        self.url = client.url
        self._client = client

    def entries(self) -> list[SmallFile]:
        found = []
        for page in self._client.pages(_FOLDER):
            for entry in page:
                name = entry["Key"][len(self._key("")) :]
                if not SMALL_FILE.fullmatch(name):
                    continue  # not a file of the store
                written = entry["LastModified"].timestamp()
                found.append(SmallFile(name, entry["Size"], entry["ETag"], written))
        return found

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        return self._client.threads.each(self._read, names)

    def _read(self, name: str) -> bytes | None:
        status, answer = self._client.ask("get_object", (404,), records=True, Key=self._key(name))
        if status == 404:
            return None
        with closing(answer["Body"]) as body, driver_errors(self.url):
            content: bytes = body.read(MAX_SMALL_FILE)
        return content

    def write(self, name: str, content: bytes) -> None:
        self._client.ask("put_object", records=True, Key=self._key(name), Body=content)

    def remove(self, names: Sequence[str]) -> None:
        self._client.threads.each(self._remove, names)

    def _remove(self, name: str) -> None:
        self._client.ask("delete_object", (404,), records=True, Key=self._key(name))

    def now(self) -> float:
        earliest, latest = self._client.bounds()
        return earliest if math.isfinite(latest - earliest) else time.time()

    def sure_time(self) -> float:
        self._client.ask("list_objects_v2", records=True, Prefix=self._key(""), MaxKeys=1)
        return self._client.bounds()[0]

    def _key(self, name: str) -> str:
        return f"{self._client.prefix}{_FOLDER}/{name}"
