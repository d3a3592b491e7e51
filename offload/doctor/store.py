"""Checks of what a store does, by doing it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress

from offload.digest import digest_of
from offload.errors import BlobMissing, ConfigurationError, OffloadError
from offload.gc import last_sweep
from offload.inspect.findings import Finding
from offload.stores.capabilities import tiers_of
from offload.stores.protocols import Store

__all__ = ("blobs", "leases", "pointers", "sweeping")

_TTL = 60.0  # seconds that what is left behind by a killed check lives
_SELDOM = 2 * 86400.0  # seconds without a sweep that are worth a word
_SCHEDULE = (
    'have beat run the task "offload.gc" every hour, or cron `celery -A … offload gc`; a '
    "lifecycle rule does for S3, some days later"
)


def blobs(store: Store) -> Iterator[Finding]:
    """Whether a blob can be written, read and deleted."""
    content = b"offload doctor " + os.urandom(32)
    digest = digest_of([content])
    began = time.monotonic()
    try:
        store.blobs.put({digest: [content]}, _TTL)
        (found,) = store.blobs.get([digest], len(content))
        if bytes(found) != content:
            yield Finding("error", "a blob came back as something else than was written")
            return
        store.blobs.delete([digest])
    finally:
        with suppress(OffloadError):
            store.blobs.delete([digest])
    took = (time.monotonic() - began) * 1000
    try:
        list(store.blobs.get([digest], len(content)))
    except BlobMissing:
        yield Finding("ok", f"a blob was written, read and deleted ({took:.1f} ms)")
    else:
        yield Finding("error", "a blob that was deleted is still there")


def pointers(store: Store) -> Iterator[Finding]:
    """Whether pointers compare and swap."""
    name = f"doctor/{os.urandom(8).hex()}"
    swap = store.pointers.swap
    try:
        wanted = (
            swap(name, None, b"one"),
            not swap(name, None, b"two"),
            not swap(name, b"three", b"two"),
            store.pointers.read(name) == b"one",
        )
    finally:
        with suppress(OffloadError):
            swap(name, b"one", None)
    if all(wanted):
        yield Finding("ok", "pointers are compared and swapped")
    else:
        yield Finding(
            "error",
            "pointers are overwritten without comparing: processes could sign references with "
            "different keys",
            "use a store that keeps its promises; see offload.testing",
        )


def leases(store: Store) -> Iterator[Finding]:
    """Whether a lease has one owner."""
    name = f"doctor/{os.urandom(8).hex()}"
    first = store.leases.acquire(name, "one", _TTL)
    try:
        kept = first is not None and store.leases.acquire(name, "two", _TTL) is None
    finally:
        with suppress(OffloadError):
            store.leases.release(name, "one")
    if kept:
        yield Finding("ok", "a lease has one owner")
    else:
        yield Finding("error", "two owners got the same lease")


def sweeping(store: Store) -> Iterator[Finding]:
    """Whether somebody removes what has ended, where the server does not."""
    places = ", ".join(tier.url for tier in tiers_of(store) if not tier.blobs.tracks_holds)
    if not places:
        return
    try:
        last = last_sweep(store)
    except ConfigurationError:  # it has no pointers, which is told elsewhere
        return
    if last is None or last.ended is None:
        yield Finding("warning", f"nobody has swept {places} yet", _SCHEDULE)
        return
    hours = (time.time() - last.ended) / 3600
    shown = f"{places} was last swept {hours:.1f} hours ago by {last.by}"
    if hours * 3600 > _SELDOM:
        yield Finding("warning", shown, _SCHEDULE)
    else:
        yield Finding("ok", shown)
