"""Small objects that change by compare-and-swap: pointers, and the records of leases."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from offload.errors import ConfigurationError, StoreError, StoreUnavailable
from offload.stores.checks import MAX_POINTER, check_name, check_value
from offload.stores.leases import REMEMBER, Record, Records
from offload.stores.processes import PerProcess
from offload.stores.protocols import SweepItem
from offload.stores.s3.client import GONE_OR_CHANGED, S3Client
from offload.stores.s3.driver_errors import driver_errors

__all__ = ("PROBE", "Conditions", "S3Pointers", "S3Records", "record_name")

T = TypeVar("T")

NONCE = 16
"""Random bytes at the start of a record, so that no two writes have the same ETag."""
_PROBE = "probe"
PROBE = re.compile(r"[0-9a-f]{32}", re.ASCII)
"""Names of objects that conditions are tried on."""
_TURNS = 100
_PROBE_AGE = 3600.0  # seconds after which a probe was left by a killed process
_OTHER_ETAG = '"00000000000000000000000000000000"'
_LEFT_BY_OTHERS = (".DS_Store", "._", ".nfs")
"""Prefixes of operating systems' files, copied into buckets with folders; no record has them."""
_LISTABLE = re.compile(r"[A-Za-z0-9._/-]*", re.ASCII)


class Conditions:
    """Whether the server supports conditional requests; tried once in each process.

    A server that ignores conditions answers as if they held, so they are tried on an object of
    the store's own.
    """

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self._found: PerProcess[dict[str, bool]] = PerProcess(dict)

    def require(self) -> None:
        """Raise ConfigurationError if PUT ignores conditions."""
        if not self._known("put"):
            raise ConfigurationError(
                f"{self._client.url} ignores conditions (If-None-Match, If-Match) on writes, so "
                "processes could overwrite each other's pointers and leases: put a store before "
                "it that keeps them, or update the server",
                store=self._client.url,
            )

    def require_deletes(self) -> None:
        """Raise ConfigurationError if DELETE ignores conditions."""
        if not self._known("delete"):
            raise ConfigurationError(
                f"{self._client.url} ignores If-Match on deletions, so a sweep could remove what "
                "was stored again meanwhile: give the bucket a lifecycle rule instead",
                store=self._client.url,
            )

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Delete probes that killed processes left, unless *dry_run*; yield them."""
        for entry in _aged(self._client, _PROBE, _PROBE_AGE):
            if not PROBE.fullmatch(entry["Key"].rpartition("/")[2]):
                continue  # others put it there
            if not dry_run:
                self._client.ask("delete_object", (404,), records=True, Key=entry["Key"])
            name = entry["Key"][len(self._client.prefix) :]
            yield SweepItem("file", name, entry["Size"], "left by a process that was killed")

    def _known(self, what: str) -> bool:
        found = self._found.get()
        if not found:
            found.update(self._try())
        return found[what]

    def _try(self) -> dict[str, bool]:
        key = f"{self._client.prefix}{_PROBE}/{os.urandom(NONCE).hex()}"
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


class S3Records(Records):
    """Named contents in one folder of the bucket, each an object that is replaced by ETag.

    A name's slashes are written ``!``: servers that store objects as files could not have
    ``a`` beside ``a/b``.
    """

    def __init__(self, client: S3Client, folder: str, conditions: Conditions) -> None:
        self._client = client
        self._folder = folder
        self._prefix = f"{client.prefix}{folder}/"
        self._conditions = conditions

    def read(self, name: str) -> Record:
        return _without_nonce(self._read(self._key(name)))

    def read_all(self, names: Sequence[str]) -> list[Record]:
        return self._client.threads.each(self.read, names)

    def change(self, name: str, decide: Callable[[Record], tuple[bytes | None, T]]) -> T:
        self._conditions.require()
        url, key = self._client.url, self._key(name)
        failed: StoreUnavailable | None = None
        written: tuple[bytes, T] | None = None
        for turn in range(_TURNS):
            seen = self._read(key)
            if written is not None and seen.content == written[0]:
                return written[1]  # the answer was lost; the random bytes tell
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

    def entries(self, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the names with this prefix, and how their objects are listed."""
        if not _LISTABLE.fullmatch(prefix):
            return
        for page in self._client.pages(self._folder, prefix.replace("/", "!")):
            for entry in page:
                name = self._name(entry)
                if name is not None:
                    yield name, entry

    def sweep(self, is_over: Callable[[Record], bool], *, dry_run: bool) -> Iterator[str]:
        """Delete the records that *is_over* and that are a day old, unless *dry_run*."""
        for entry in _aged(self._client, self._folder, REMEMBER):
            name = self._name(entry)
            if name is not None and self._remove_if(name, is_over, dry_run=dry_run):
                yield name

    def _remove_if(self, name: str, is_over: Callable[[Record], bool], *, dry_run: bool) -> bool:
        """Delete an expired record unless it changes concurrently."""
        seen = self.read(name)
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
        """Return the name of a listed record; None for objects that others put there."""
        key: str = entry["Key"]
        return record_name(key[len(self._prefix) :]) if entry.get("Size", NONCE) >= NONCE else None


def record_name(last: str) -> str | None:
    """Return the record whose key ends so; None if it isn't one of the store's."""
    if "/" in last or last.startswith(_LEFT_BY_OTHERS):
        return None
    with suppress(ValueError):
        return check_name(last.replace("!", "/"))
    return None


def _aged(client: S3Client, folder: str, age: float) -> Iterator[dict[str, Any]]:
    """Yield how the objects are listed that were last written more than *age* seconds ago."""
    _, answer = client.ask("list_objects_v2", Prefix=f"{client.prefix}{folder}/", MaxKeys=1)
    latest = client.now(answer) - age
    for page in client.pages(folder):
        yield from (entry for entry in page if entry["LastModified"].timestamp() < latest)


def _without_nonce(record: Record) -> Record:
    content = record.content
    return replace(record, content=None if content is None else content[NONCE:])


_UNSET, _SET = b"", b"\x01"


class S3Pointers:
    def __init__(self, records: S3Records) -> None:
        self._records = records

    def read(self, name: str) -> bytes | None:
        return _value(self._records.read(name))

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """Read pointers by one request each, several at once."""
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
        for name, entry in self._records.entries(prefix):
            if entry["Size"] > NONCE:
                yield name

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Delete the objects of pointers that were unset a day ago, and yield them."""
        for name in self._records.sweep(lambda seen: _value(seen) is None, dry_run=dry_run):
            yield SweepItem("pointer", name, 0, "unset a day ago")


def _value(seen: Record) -> bytes | None:
    return None if seen.content in (None, _UNSET) else (seen.content or b"")[len(_SET) :]
