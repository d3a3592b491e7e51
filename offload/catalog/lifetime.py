"""Lifetimes of content: blobs that a record names are kept, and the others are deleted.

A store that tracks holds keeps a record's blobs for a holder of that record alone
(`Record.holder`). A saver that was killed, or that couldn't release what it removed, leaves such
holds behind; `sweep_holds` releases holds without a record.

In a store without holds (files or S3 alone), `named_blobs` tells the sweep what records name.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from offload.catalog.names import RECORDS, decode, record_pointer
from offload.catalog.records import Record, read_record
from offload.content.encoding import MAX_OVERHEAD, read_blob
from offload.content.manifest import SINGLE, read_root, root_limit
from offload.digest import Buffer, Digest
from offload.errors import BlobMissing, ConfigurationError, IntegrityError, UnsupportedVersion
from offload.stores.capabilities import chunk_size_of, hold_tracking_of
from offload.stores.checks import ENDLESS
from offload.stores.protocols import Store, SweepItem

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher

logger = logging.getLogger(__name__)

_KIND = "catalog:"  # start of the holders of records
_SETTLED = 86400.0  # seconds after which a saver that holds blobs has set its record
_GRACE = 3600.0  # seconds for which blobs without holds are kept
_READ = 200  # records read in one round trip
_ROOTS = 32  # of at most 16 MiB each, but mostly of some kilobytes
_HOLDS = 2000  # holds of which the records are looked for together


# -- stores without holds


def named_blobs(
    store: Store, asked: Collection[Digest], cipher: BlobCipher | None = None
) -> Collection[Digest]:
    """Return the blobs among *asked* that a record names now.

    Signatures aren't checked: a sweep needs no key, and an altered record can only keep more. If
    a record can't be read, all of *asked* might be named. With encryption, *cipher* decrypts.

    Raises StoreUnavailable, StoreError.
    """
    wanted, found = set(asked), set[Digest]()
    pointers = _pointers(store)
    try:
        while batch := list(islice(pointers, _READ)):
            values = store.pointers.read_all(batch)
            records = [
                read_record(pointer, value, None)
                for pointer, value in zip(batch, values, strict=True)
                if value is not None
            ]
            for digests in _digests(store, records, cipher):
                found |= wanted.intersection(digests)
    except (IntegrityError, UnsupportedVersion) as exc:
        logger.warning("nothing that the catalog might name is deleted: %s", exc)
        return wanted
    return found


def _pointers(store: Store) -> Iterator[str]:
    try:
        yield from store.pointers.names(RECORDS)
    except ConfigurationError:  # the store has no pointers, and so no catalog
        return


def _digests(
    store: Store, records: Iterable[Record], cipher: BlobCipher | None
) -> Iterator[Sequence[Digest]]:
    """Yield the digests of all blobs of each record; of one that lost its root, only the root."""
    may_cut_small = chunk_size_of(store) is not None
    cut: dict[Digest, int] = {}
    for record in records:
        if record.digest is not None:
            yield [record.digest]
            if record.size >= SINGLE or may_cut_small:
                cut[record.digest] = record.size
    rest = iter(cut.items())
    while batch := dict(islice(rest, _ROOTS)):
        for digest, stored in _roots(store, batch):
            size, where = batch[digest], f"{digest} in {store.url}"
            root = read_blob(stored, digest, root_limit(size), where, cipher)
            yield read_root(root, size=size, where=where).digests(digest)


def _roots(store: Store, sizes: dict[Digest, int]) -> Iterator[tuple[Digest, Buffer]]:
    """Yield the roots that exist, as they are stored."""
    limit = max(map(root_limit, sizes.values())) + MAX_OVERHEAD
    rest = list(sizes)
    while rest:
        done = 0
        try:
            for stored in store.blobs.get(rest, limit):
                yield rest[done], stored
                done += 1
        except BlobMissing:
            done += 1  # the one after those that were read
        rest = rest[done:]


# -- stores that track holds


def sweep_holds(store: Store, *, dry_run: bool = False) -> Iterator[SweepItem]:
    """Release the holds of records that don't exist, unless *dry_run*; yield each one.

    Holds of less than a day stay: their saver may be about to set its record.

    Raises StoreUnavailable, StoreError.
    """
    tracking = hold_tracking_of(store)
    if tracking is None:
        return
    holds = (
        (digest, holder)
        for digest, holder, left in tracking.long_holds(ENDLESS / 2)
        if holder.startswith(_KIND) and left < ENDLESS - _SETTLED
    )
    while batch := list(islice(holds, _HOLDS)):
        held: dict[str, list[Digest]] = {}
        for digest, holder in batch:
            held.setdefault(holder, []).append(digest)
        for holder in _without_record(store, list(held)):
            if not dry_run:
                store.blobs.release(held[holder], holder, _GRACE)
            for digest in held[holder]:
                yield SweepItem("hold", digest, 0, f"{holder} has no record")


def _without_record(store: Store, holders: Sequence[str]) -> Iterator[str]:
    """Yield the holders whose record doesn't exist."""
    pointers = {holder: pointer for holder in holders if (pointer := _pointer_of(holder))}
    values = store.pointers.read_all(list(pointers.values())) if pointers else []
    for (holder, pointer), value in zip(pointers.items(), values, strict=True):
        try:
            if value is None or read_record(pointer, value, None).holder != holder:
                yield holder
        except (IntegrityError, UnsupportedVersion) as exc:
            logger.warning("the content of %s stays: %s", holder, exc)


def _pointer_of(holder: str) -> str | None:
    """Return the pointer of the record that a *holder* belongs to; None for other holders."""
    place, at, rest = holder.removeprefix(_KIND).rpartition("@")
    key, plus, _nonce = rest.rpartition("+")
    bucket, slash, segment = place.partition("/")
    name, version = decode(segment), decode(key)
    if not (at and plus and slash) or name is None or version is None:
        return None
    return record_pointer(bucket, name, version)
