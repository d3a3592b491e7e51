"""Catalog: named, versioned objects in a store, which can outlive the store's outages.

With ``cache_dir``, loaded objects are copied to this machine (`LocalCopies`). With ``offline``,
loads use the copies while the store is unavailable, and saves may wait in a `Journal`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

from offload.catalog import catalog as online
from offload.catalog.batches import BatchResult, raised
from offload.catalog.catalog import Item
from offload.catalog.copies import LocalCopies, MirroredPointers, content_in
from offload.catalog.journal import Entry, Journal
from offload.catalog.names import DEFAULT
from offload.catalog.pointers import CatalogPointers
from offload.catalog.reading import Verify, about
from offload.catalog.records import Record
from offload.catalog.saving import OnConflict, Saver, SaveRequest
from offload.errors import (
    ConfigurationError,
    IntegrityError,
    ObjectNotFound,
    OffloadError,
    StoreUnavailable,
)
from offload.locks import process_name
from offload.ref import Ref
from offload.stores.protocols import Store

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

Offline = Literal["cached", "queue"]


def _survives_outages(method: F) -> F:
    """Let *method*, which only reads, use the local copies while the store is unavailable."""

    @wraps(method)
    def read(self: Catalog, *args: Any, **options: Any) -> Any:
        try:
            return method(self, *args, **options)
        except StoreUnavailable as exc:
            if self._offline is None or self._copies is None:
                raise
            local = self._local()
            try:
                found = method(local, *args, **options)
            except ObjectNotFound:
                raise exc from None  # the store may have it
            if found is False:
                raise
            if isinstance(found, BatchResult):
                missing = [k for k, e in found.errors.items() if isinstance(e, ObjectNotFound)]
                found.errors.update(dict.fromkeys(missing, exc))
            logger.warning("using local copies, which may be out of date: %s", exc)
            return _stale(found)

    return read  # type: ignore[return-value]


def _stale(found: Any) -> Any:
    """Return *found*, with its records marked as local copies."""
    if isinstance(found, Record):
        return replace(found, stale=True)
    if isinstance(found, list):
        return list(map(_stale, found))
    if isinstance(found, Mapping):
        return {name: _stale(each) for name, each in found.items()}
    return found


class Catalog(online.Catalog):
    """Named, versioned objects in one bucket of a store.

    Also a mapping: ``catalog["churn:model"]`` is the latest version, and
    ``catalog["churn:model@2.1"]`` that version. Iteration yields names.

    Names are parts of printable characters, separated by ``/`` or ``:``. Versions are numbers such
    as ``3`` or ``2.1``, ordered as PEP 440 says; ``latest`` is the highest, and a tag stands for
    the version that it was given to. Safe to use from several threads, processes, and machines.

    Args:
        store: the store, its URL, or the URLs of its tiers.
        bucket: the namespace of the objects' names.
        versioned: whether versions are kept; otherwise each object has one.
        mutable: whether a version may be overwritten.
        accept: serializers accepted besides those for plain data, by Celery's names: pass
            ``("json", "pickle")`` for arbitrary objects, if you trust everyone who writes to the
            store.
        author: recorded with each version; default: host and process id.
        cache_dir: a folder for copies of what is loaded, up to ``cache_size`` bytes; processes
            and catalogs may share it.
        offline: what happens while the store is unavailable. None: calls raise StoreUnavailable.
            ``cached``: reading methods use the copies in *cache_dir*, and log a warning. ``queue``:
                in addition, saves wait in *cache_dir* for `sync` or the next `save`. Until then,
                the record of one is `stale`, and has no version unless it was given one.
        queue_size: maximum bytes of waiting saves.
        settings: any of `offload.Settings` by keyword, such as ``secret``, ``cache_size``, or, for
            a URL, ``store_options``.

    Raises ConfigurationError for an invalid URL or setting, ValueError for an invalid bucket.
    """

    _copies: LocalCopies | None = None
    _journal: Journal | None = None
    _offline: Offline | None = None

    def __init__(
        self,
        store: Store | str | Sequence[str],
        bucket: str = DEFAULT,
        *,
        versioned: bool = True,
        mutable: bool = False,
        accept: Sequence[str] = ("json",),
        author: str | None = None,
        cache_dir: str | Path | None = None,
        offline: Offline | None = None,
        queue_size: int = 1 << 30,
        **settings: Any,
    ) -> None:
        if offline not in (None, "cached", "queue"):
            raise ConfigurationError(f"offline is 'cached' or 'queue', not {offline!r}")
        if offline is not None and cache_dir is None:
            raise ConfigurationError("offline needs cache_dir, a folder for local copies")
        super().__init__(
            store,
            bucket,
            versioned=versioned,
            mutable=mutable,
            accept=accept,
            author=author,
            **settings,
        )
        if cache_dir is None:
            return
        folder, content = Path(cache_dir).expanduser().absolute(), self._content()
        opened = partial(
            content_in,
            url=content.store.url,
            serializers=content.serializers,
            settings=self._settings,
            keyring=content.signing.keyring,
        )
        self._copies = LocalCopies(*opened(folder), self._settings.cache_size)
        self._offline = offline
        if offline == "queue":
            self._journal = Journal(*opened(folder / "queue"), queue_size)

    # -- read

    def _local(self) -> Catalog:
        """Return the catalog of the local copies."""
        assert self._copies is not None  # noqa: S101 (the caller checked it)
        local, content = copy(self), self._copies.content
        vars(local).update(_content=lambda: content, _copies=None, _journal=None)
        return local

    @property
    def _pointers(self) -> CatalogPointers:
        if self._copies is None:
            return super()._pointers
        return MirroredPointers(self._content(), self._bucket, self._copies)

    def _value(self, record: Record, verify: Verify = "none") -> Any:
        if self._copies is None or verify == "full":
            return super()._value(record, verify)
        try:
            return self._copies.load(record, self._content())
        except OffloadError as exc:
            raise about(record, exc) from exc

    load = _survives_outages(online.Catalog.load)
    has_object = _survives_outages(online.Catalog.has_object)
    info = _survives_outages(online.Catalog.info)
    find = _survives_outages(online.Catalog.find)
    list_objects = _survives_outages(online.Catalog.list_objects)
    list_versions = _survives_outages(online.Catalog.list_versions)
    tags = _survives_outages(online.Catalog.tags)
    stats = _survives_outages(online.Catalog.stats)
    buckets = _survives_outages(online.Catalog.buckets)

    # -- save

    def _save_one(self, item: Item, on_conflict: OnConflict) -> Record:
        if self._journal is None:
            return super()._save_one(item, on_conflict)
        request = self._request(*item)
        try:
            for label, exc in self.sync().errors.items():
                logger.warning("a save of %s that had waited was refused: %s", label, exc)
            return raised(self._saver(on_conflict).save([request])[0])
        except StoreUnavailable as exc:
            unavailable = exc
        if isinstance(request.value, Ref):
            raise unavailable  # its content is in the store
        record = self._queue(self._journal, request, on_conflict)
        logger.warning(
            "the save of %s waits until the store is available: %s", record.name, unavailable
        )
        return record

    def _save_all(
        self, items: Sequence[Item], on_conflict: OnConflict
    ) -> Sequence[Record | Exception]:
        if self._journal is None:
            return super()._save_all(items, on_conflict)
        outcomes: list[Record | Exception] = []
        for item in items:
            try:
                outcomes.append(self._save_one(item, on_conflict))
            except (OffloadError, ValueError) as exc:
                outcomes.append(exc)
        return outcomes

    def _queue(self, journal: Journal, request: SaveRequest, on_conflict: OnConflict) -> Record:
        key, shown = (None, None) if request.is_numbered else (request.key, request.shown)

        def entry(ref: Ref[Any]) -> Entry:
            return Entry(
                bucket=self._bucket,
                name=request.name,
                key=key,
                shown=shown,
                metadata=request.metadata,
                on_conflict=on_conflict,
                overwrites=self.mutable,
                author=self.author or process_name(),
                created=self._content().now(),
                nonce=request.nonce,
                tried=True,  # its record may have been set before the store became unavailable
                digest=str(ref.digest),
                size=ref.size,
                serializer=ref.serializer,
                type=ref.type,
            )

        queued = journal.add(entry, request.value, self._serializer())
        return Record(
            bucket=queued.bucket,
            name=queued.name,
            version=queued.shown or "",
            type=queued.type,
            size=queued.size,
            created=queued.created,
            author=queued.author,
            metadata=queued.metadata,
            digest=None,
            stale=True,
            nonce=queued.nonce,
        )

    @property
    def waiting(self) -> int:
        """The number of saves that wait on this machine, in all buckets."""
        return 0 if self._journal is None else len(self._journal)

    def sync(self) -> BatchResult[Record]:
        """Save what waits on this machine, in order; return the record or the error of each.

        A save that is refused, for example by a VersionConflict, leaves the queue; its content
        stays in *cache_dir* until `discard_refused`.

        Raises StoreUnavailable if the store is (still) unavailable, or if another process of this
        machine is syncing; the remaining saves keep waiting.
        """
        result: BatchResult[Record] = BatchResult()
        if self._journal is not None and len(self._journal):
            for label, outcome in self._journal.replay(self._content(), self._commit):
                result.add(label, outcome)
        return result

    def discard_refused(self) -> int:
        """Delete the refused saves that `sync` kept; return how many there were."""
        return 0 if self._journal is None else self._journal.discard()

    def _commit(self, entry: Entry, ref: Ref[Any]) -> Record | Exception:
        """Save the version of *entry*, unless that was done before."""
        pointers = CatalogPointers(self._content(), entry.bucket)
        if entry.tried:
            state = pointers.state(entry.name)[1]
            for pointer, value in pointers.records_of(entry.name, state).items():
                with suppress(IntegrityError):
                    record = pointers.parse_record(pointer, value)
                    if record.nonce == entry.nonce:
                        return record
        saver = Saver(
            pointers,
            serializer=self._serializer(),
            author=entry.author,
            on_conflict=entry.on_conflict,
            overwrites=entry.overwrites,
            grace=self._grace(),
        )
        request = SaveRequest(
            entry.name, ref, entry.key, entry.shown, entry.metadata, nonce=entry.nonce
        )
        return saver.save([request])[0]
