"""CatalogReader: the part of a catalog that only reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from offload.catalog.batches import BatchResult, label_of, listed, spread
from offload.catalog.names import DEFAULT, LATEST, check_asked, check_bucket, check_name
from offload.catalog.pointers import CatalogPointers, not_found
from offload.catalog.records import Record, Records, RecordsByName
from offload.catalog.search import CatalogStats, all_records, matcher, statistics
from offload.content.cache import open_cache
from offload.content.get import Cached
from offload.content.store import ContentStore
from offload.errors import (
    BlobMissing,
    ConfigurationError,
    IntegrityError,
    ObjectNotFound,
    OffloadError,
)
from offload.metrics.counters import Counters
from offload.ref import Late, Ref
from offload.serializers.choose import Registry
from offload.settings import Settings
from offload.stores.open import open_store
from offload.stores.processes import PerProcess
from offload.stores.protocols import Store

if TYPE_CHECKING:
    from typing_extensions import Self

Verify = Literal["none", "integrity", "full"]

_OF_URLS = ("store_options", "tier_sizes")
"""Settings that say how URLs are opened."""
_VERIFY: dict[Verify, Cached] = {"none": "trust", "integrity": "check", "full": "skip"}


def read_settings(store: Store | str | Sequence[str], given: Mapping[str, Any]) -> Settings:
    """Return the settings of a catalog in *store*. Raises ConfigurationError."""
    if not isinstance(store, Store):
        return Settings.read({}, None, {**given, "store": store})
    for name in _OF_URLS:
        if name in given:
            raise ConfigurationError(f"{name}: the store is open already; pass it to open_store")
    return Settings.read({}, None, given)


def open_with(store: Store | str | Sequence[str], settings: Settings) -> Store:
    """Return *store*, opened as *settings* say if it is a URL or several."""
    if isinstance(store, Store):
        return store
    options = settings.store_options or None
    return open_store(store, tier_sizes=settings.tier_sizes, tier_options=options)


class CatalogReader:
    """The part of `offload.Catalog` that changes nothing; see there for its arguments."""

    versioned: bool = True
    mutable: bool = False
    author: str | None = None

    def __init__(
        self,
        store: Store | str | Sequence[str],
        bucket: str = DEFAULT,
        *,
        versioned: bool = True,
        mutable: bool = False,
        accept: Sequence[str] = ("json",),
        author: str | None = None,
        **settings: Any,
    ) -> None:
        checked = read_settings(store, {**settings, "accept": accept})
        opened = open_with(store, checked)
        counters = Counters()

        def make() -> ContentStore:
            cache = open_cache(opened.url, checked, counters)
            return ContentStore(opened, Registry(checked.accept), checked, counters, cache=cache)

        if "stats_interval" in settings:
            from offload.metrics.recorder import Recorder

            Recorder(counters, checked.stats_interval).attach(opened)
        self._settings = checked
        self._set(PerProcess(make).get, bucket, lambda: "json", lambda: checked.grace)
        self.versioned, self.mutable, self.author = versioned, mutable, author

    @classmethod
    def of(
        cls,
        content: Callable[[], ContentStore],
        *,
        serializer: Callable[[], str],
        grace: Callable[[], float],
    ) -> Self:
        """Return the catalog of an app.

        Args:
            content: returns this process's content store.
            serializer: returns kombu's name of the serializer that plain Celery would use.
            grace: returns the seconds for which removed content is kept.
        """
        catalog = cls.__new__(cls)
        cls._set(catalog, content, DEFAULT, serializer, grace)
        return catalog

    def _set(
        self,
        content: Callable[[], ContentStore],
        bucket: str,
        serializer: Callable[[], str],
        grace: Callable[[], float],
    ) -> None:
        self._content = content
        self._bucket = check_bucket(bucket)
        self._serializer = serializer
        self._grace = grace

    @property
    def name(self) -> str:
        """The name of the bucket."""
        return self._bucket

    @property
    def store(self) -> Store:
        return self._content().store

    def __repr__(self) -> str:
        return f"<Catalog {self._bucket!r} in {self.store.url}>"

    def _repr_html_(self) -> str:
        """List the objects in a notebook, in one request; nothing is loaded."""
        from offload.text import facts, table

        title = f"Catalog {self._bucket!r} in {self.store.url}"
        try:
            names = self.list_objects()
        except OffloadError as exc:
            return facts(title, {"error": exc})
        return table(f"{title}: {len(names):,} objects", [], ((n,) for n in names), len(names))

    @property
    def _pointers(self) -> CatalogPointers:
        return CatalogPointers(self._content(), self._bucket)

    # -- load

    @overload
    def load(self, name: str, version: str | int = LATEST, *, verify: Verify = "none") -> Any: ...
    @overload
    def load(
        self,
        name: list[str],
        version: str | int | Sequence[str | int] = LATEST,
        *,
        verify: Verify = "none",
    ) -> BatchResult[Any]: ...
    def load(self, name: str | list[str], version: Any = LATEST, *, verify: Verify = "none") -> Any:
        """Return the object, a new private copy at every call.

        Records, and everything read from a store, are always verified.

        Args:
            name: its name, or a list of them.
            version: a version, a tag, or ``latest``, which is the highest version. For a list of
                names, one for all or a list.
            verify: ``none`` trusts a copy in the node cache as ``offload_verify`` says;
                ``integrity`` compares all of it with its digests, and fetches it again if it was
                altered; ``full`` reads and verifies what the store has, whatever is cached.

        Raises:
            ValueError: an invalid name, version, or *verify*.
            ObjectNotFound: there is no such object or version.
            IntegrityError, BlobMissing: its record or content was altered, or its content is
                missing; other versions can still be loaded.
            UnsupportedVersion: a newer offload wrote it.
            SerializerNotAccepted, DeserializationError, StoreUnavailable, StoreError.
        """
        if verify not in _VERIFY:
            raise ValueError(f"verify is 'none', 'integrity', or 'full', not {verify!r}")
        if isinstance(name, str):
            record = self._pointers.find(check_name(name), check_asked(version))
            with self._content().counters.loading(self._bucket, record.name):
                return self._value(record, verify)
        return self._load_all(listed("name", name), version, verify)

    def _value(self, record: Record, verify: Verify = "none") -> Any:
        content = self._content()
        try:
            return content.reader.get(content.open(record.ref), _VERIFY[verify])
        except OffloadError as exc:
            raise about(record, exc) from exc

    def _load_all(self, names: list[Any], version: Any, verify: Verify) -> BatchResult[Any]:
        versions = spread("version", version, len(names))
        wanted: list[tuple[str, str | int] | Exception] = []
        for name, given in zip(names, versions, strict=True):
            try:
                wanted.append((check_name(name), check_asked(given)))
            except ValueError as exc:
                wanted.append(exc)
        found = iter(self._pointers.find_all([each for each in wanted if isinstance(each, tuple)]))
        records = [next(found) if isinstance(each, tuple) else each for each in wanted]
        content = self._content()
        opened: dict[int, Ref[Any]] = {}
        result: BatchResult[Any] = BatchResult()
        for at, record in enumerate(records):
            if isinstance(record, Record):
                try:
                    opened[at] = open_record(content, record)
                except OffloadError as exc:
                    records[at] = exc
        get_all = partial(content.reader.get_all, cached=_VERIFY[verify])
        values = get_all([*opened.values()])
        for at, record in enumerate(records):
            outcome: Any = record
            if isinstance(record, Record):
                try:
                    with content.counters.loading(self._bucket, record.name):
                        outcome = next(values)
                except OffloadError as exc:
                    outcome = about(record, exc)
                    rest = [ref for place, ref in opened.items() if place > at]
                    values = get_all(rest)
            given = versions[at]
            result.add(label_of(names[at], None if given == LATEST else given), outcome)
        return result

    # -- look up

    def has_object(self, name: str, version: str | int = LATEST) -> bool:
        """Return whether there is this version (by default, any) of an object."""
        try:
            self._pointers.find(check_name(name), check_asked(version))
        except ObjectNotFound:
            return False
        return True

    @overload
    def info(self) -> dict[str, list[Record]]: ...
    @overload
    def info(self, name: str) -> list[Record]: ...
    @overload
    def info(self, name: str, version: str | int) -> Record: ...
    def info(
        self, name: str | None = None, version: str | int | None = None
    ) -> Record | list[Record] | dict[str, list[Record]]:
        """Return the record of one version; those of all versions, the lowest first; or those of
        every object, by name, without tags. Nothing is loaded.

        Raises ObjectNotFound, and for one version what `load` does. Among several, records that
        can't be read are left out.
        """
        if name is None:
            every = RecordsByName()
            for record in self._records():
                every.setdefault(record.name, Records()).append(record)
            return every
        name = check_name(name)
        if version is not None:
            record = self._pointers.find(name, check_asked(version))
            _, state = self._pointers.state(name)
            return replace(record, tags=state.tags_of(record.key))
        records = self._versions(name)
        if not records:
            raise not_found(self._bucket, name)
        return records

    def _versions(self, name: str) -> list[Record]:
        pointers = self._pointers
        _, state = pointers.state(name)
        records = Records()
        for pointer, value in pointers.records_of(name, state).items():
            try:
                record = pointers.parse_record(pointer, value)
            except OffloadError:
                continue
            records.append(replace(record, tags=state.tags_of(record.key)))
        return records

    def _records(self, prefix: str = "") -> Iterator[Record]:
        """Yield the records of all versions that can be read, by name and version."""
        found = all_records(self._pointers, prefix)
        return (record for record in found if isinstance(record, Record))

    def find(
        self,
        prefix: str = "",
        *,
        type: str | type | None = None,  # noqa: A002 (the record's attribute)
        metadata: Mapping[str, Any] | None = None,
        since: float | datetime | None = None,
        larger_than: int | None = None,
    ) -> list[Record]:
        """Return the records that meet all conditions, by name and version. Nothing is loaded.

        Tags aren't read; see `tags`.

        Args:
            prefix: the object's name starts with it.
            type: name of the value's type, such as ``DataFrame``, or the type.
            metadata: the version's metadata has at least these keys, with these values; of dicts
                inside it, at least those keys.
            since: it was saved then or later: seconds since 1970, or a datetime.
            larger_than: its value has more bytes, serialized.
        """
        matches = matcher(type, metadata, since, larger_than)
        return Records(record for record in self._records(prefix) if matches(record))

    def stats(self) -> CatalogStats:
        """Return the totals of the bucket."""
        return statistics(all_records(self._pointers))

    def list_objects(self, prefix: str = "", *, pattern: str | None = None) -> list[str]:
        """Return the names of objects, sorted.

        Args:
            prefix: only names that start with it.
            pattern: only names that match it, such as ``*:model`` (``*``, ``?``, and ``[…]`` as in
                file names).
        """
        names = {place.name for place in self._pointers.places(prefix).values()}
        return sorted(n for n in names if pattern is None or fnmatchcase(n, pattern))

    def list_versions(self, name: str) -> list[str]:
        """Return an object's versions, the lowest first; [] if there is no such object."""
        return [record.version for record in self._versions(check_name(name))]

    def tags(self, name: str) -> dict[str, str]:
        """Return an object's tags, and the version that each stands for."""
        return {
            tag: record.version
            for record in self._versions(check_name(name))
            for tag in record.tags
        }

    # -- for tasks

    def ref(self, name: str, version: str | int = LATEST) -> Ref[Any]:
        """Return a reference to a version, to pass to tasks; nothing is loaded.

        It stands for this version, even after newer ones are saved.
        """
        record = self._pointers.find(check_name(name), check_asked(version))
        content = self._content()
        opened = open_record(content, record)
        content.counters.of_object(self._bucket, record.name, catalog_refs=1)
        return opened

    def late(self, name: str, version: str | int = LATEST) -> Ref[Any]:
        """Return a reference that is resolved when a task starts, to the *version* of *name* at
        that time.

        Pass it to a task, which receives the value. For a step of a chain, it is looked up when
        that step starts. If there is no such object, the task fails with ObjectNotFound, which
        names it. If the task retries by itself, it receives the same value again.

        Raises ValueError for an invalid name or version; whether they exist isn't checked.
        """
        asked = check_asked(version)
        late = Late(self._bucket, check_name(name), str(asked))
        content = self._content()
        return content.signing.keys.sign_late(late, content.now(), content.reader.get)

    # -- buckets

    def bucket(
        self, name: str, *, versioned: bool | None = None, mutable: bool | None = None
    ) -> Self:
        """Return the catalog of a bucket, which its first `save` creates.

        Args:
            versioned: as for `Catalog`; default: as in this one.
            mutable: as for `Catalog`; default: as in this one.
        """
        other = copy(self)
        changed = {"versioned": versioned, "mutable": mutable}
        given = {name: value for name, value in changed.items() if value is not None}
        vars(other).update(_bucket=check_bucket(name), **given)
        return other

    def buckets(self) -> list[str]:
        """Return the names of all buckets in the store, sorted."""
        return self._pointers.buckets()


def open_record(content: ContentStore, record: Record) -> Ref[Any]:
    """Return the verified reference to a version's content; raises an error that names it."""
    try:
        return content.open(record.ref)
    except OffloadError as exc:
        raise about(record, exc) from exc


def about(record: Record, exc: OffloadError) -> OffloadError:
    """Return *exc*, naming the version, if it is about a version's content."""
    if not isinstance(exc, (BlobMissing, IntegrityError)):
        return exc
    return type(exc)(f"{record.label}: {exc}", exc.task, record.label, exc.digest, exc.store)
