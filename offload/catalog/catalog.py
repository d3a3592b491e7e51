"""Catalog: named, versioned objects in a store.

::

    catalog = Catalog("redis://localhost:6379/2")
    catalog.save("churn:model", model, metadata={"stage": "test"})
    model = catalog.load("churn:model")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, overload

from offload.catalog.batches import BatchResult
from offload.catalog.names import (
    DEFAULT,
    LATEST,
    check_bucket,
    check_name,
    check_tag,
    object_of,
    split_label,
    version_key,
)
from offload.catalog.pointers import CatalogPointers, not_found
from offload.catalog.records import Record, check_metadata
from offload.catalog.saving import OnConflict, Saver, SaveRequest, release
from offload.content.cache import open_cache
from offload.content.store import ContentStore
from offload.errors import (
    BlobMissing,
    IntegrityError,
    ObjectNotFound,
    OffloadError,
)
from offload.locks import process_name
from offload.metrics.counters import Counters
from offload.ref import Ref
from offload.serializers.choose import Registry
from offload.settings import Settings
from offload.stores.open import open_store
from offload.stores.processes import PerProcess
from offload.stores.protocols import Store

__all__ = ("Catalog",)

_ONLY = "1"  # the version of an object in a catalog that keeps one


class Catalog(MutableMapping[str, Any]):
    """Named, versioned objects in one bucket of a store.

    Also a mapping: ``catalog["churn:model"]`` is the latest version, and
    ``catalog["churn:model@2.1"]`` that version. Iteration yields names.

    Names are parts of printable characters, separated by ``/`` or ``:``. Versions are numbers such
    as ``3`` or ``2.1``, ordered as PEP 440 says; ``latest`` is the highest, and a tag stands for
    the version that it was given to. Safe to use from several threads, processes, and machines.

    Args:
        store: the store, its URL, or the URLs of its tiers.
        bucket: each has names of its own.
        versioned: whether versions are kept; otherwise each object has one.
        mutable: whether a version may be overwritten.
        accept: what may be stored and loaded besides data, by Celery's names: pass
            ``("json", "pickle")`` for arbitrary objects, if you trust all who write to the store.
        author: recorded with each version; default: host and process id.
        settings: any of `offload.Settings` by keyword, such as ``secret`` or ``cache_size``.

    Raises ConfigurationError for a wrong URL or setting, ValueError for a wrong bucket.
    """

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
        checked = Settings.read({}, None, settings)
        opened = store if isinstance(store, Store) else open_store(store)
        counters = Counters()

        def make() -> ContentStore:
            accepted = (*accept, *checked.accept)
            cache = open_cache(opened.url, checked, counters)
            return ContentStore(opened, Registry(accepted), checked, counters, cache=cache)

        self._set(PerProcess(make).get, bucket, lambda: "json", lambda: checked.grace)
        self._versioned = versioned
        self._mutable = mutable
        self._author = author

    @classmethod
    def of(
        cls,
        content: Callable[[], ContentStore],
        *,
        serializer: Callable[[], str],
        grace: Callable[[], float],
    ) -> Catalog:
        """Return the catalog of an app.

        Args:
            content: returns this process's content store.
            serializer: returns kombu's name of the serializer that plain Celery would use.
            grace: returns the seconds for which removed content lives on.
        """
        catalog = cls.__new__(cls)
        cls._set(catalog, content, DEFAULT, serializer, grace)
        return catalog

    _versioned = True
    _mutable = False
    _author: str | None = None

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

    @property
    def _pointers(self) -> CatalogPointers:
        return CatalogPointers(self._content(), self._bucket)

    # -- save and load

    @overload
    def save(
        self,
        name: str,
        obj: Any,
        version: str | int | None = None,
        *,
        metadata: Any = None,
        on_conflict: OnConflict | None = None,
    ) -> Record: ...
    @overload
    def save(
        self,
        name: list[str],
        obj: Sequence[Any],
        version: str | int | Sequence[str | int | None] | None = None,
        *,
        metadata: Any = None,
        on_conflict: OnConflict | None = None,
    ) -> BatchResult[Record]: ...
    def save(
        self,
        name: str | list[str],
        obj: Any,
        version: Any = None,
        *,
        metadata: Any = None,
        on_conflict: OnConflict | None = None,
    ) -> Record | BatchResult[Record]:
        """Save *obj* as a version of *name*, and return its record.

        The version exists as a whole or not at all, however this call ends.

        Args:
            name: the object's name, or a list of them.
            obj: any value that could be a task's argument, or a reference to one that is stored
                (it isn't downloaded); for a list of names, a list.
            version: default: the next whole number. For a list of names, one for all or a list.
            metadata: JSON of at most 60,000 bytes, kept with the version. For a list of names, one
                for all or a list.
            on_conflict: if the version exists: ``error`` (the default), ``skip`` to keep it, or
                ``overwrite``, which a mutable catalog allows. A mutable catalog that keeps one
                version overwrites by default.

        Raises:
            ValueError: an invalid name, version, or metadata; nothing was written.
            VersionConflict: the version exists.
            UnsupportedVersion: a newer offload wrote the object's versions.
            SerializationError, ValueTooLarge, BlobMissing, StoreUnavailable, StoreError.
        """
        if on_conflict not in (None, "error", "skip", "overwrite"):
            raise ValueError(f"on_conflict is 'error', 'skip', or 'overwrite', not {on_conflict!r}")
        if isinstance(name, str):
            request = self._request(name, obj, version, metadata)
            self._saver(on_conflict).save([request])
            return _raised(request.outcome)
        return self._save_all(name, obj, version, metadata, on_conflict)

    def _save_all(
        self, names: Any, values: Any, version: Any, metadata: Any, on_conflict: OnConflict | None
    ) -> BatchResult[Record]:
        names, values = _listed("name", names), _listed("obj", values)
        versions = _spread("version", version, len(names))
        every = _spread("metadata", metadata, len(names))
        if len(values) != len(names):
            raise ValueError(f"{len(names)} names need {len(names)} objects, not {len(values)}")
        requests: list[SaveRequest | Exception] = []
        for each in zip(names, values, versions, every, strict=True):
            try:
                requests.append(self._request(*each))
            except ValueError as exc:
                requests.append(exc)
        self._saver(on_conflict).save([r for r in requests if isinstance(r, SaveRequest)])
        result: BatchResult[Record] = BatchResult()
        for name, given, request in zip(names, versions, requests, strict=True):
            outcome = request.outcome if isinstance(request, SaveRequest) else request
            result.add(_label(name, given), outcome)  # type: ignore[arg-type]  # never None
        return result

    def _request(self, name: Any, obj: Any, version: Any, metadata: Any) -> SaveRequest:
        name = check_name(name)
        check_metadata(metadata)
        if not self._versioned:
            if version is not None:
                raise ValueError("this catalog keeps one version of each object: give no version")
            version = _ONLY
        key, shown = (None, None) if version is None else version_key(version)
        return SaveRequest(name, obj, key, shown, metadata)

    def _saver(self, on_conflict: OnConflict | None) -> Saver:
        replaces = self._mutable and not self._versioned
        return Saver(
            self._pointers,
            serializer=self._serializer(),
            author=self._author or process_name(),
            on_conflict=on_conflict or ("overwrite" if replaces else "error"),
            overwrites=self._mutable,
            grace=self._grace(),
        )

    @overload
    def load(self, name: str, version: str | int = LATEST) -> Any: ...
    @overload
    def load(
        self, name: list[str], version: str | int | Sequence[str | int] = LATEST
    ) -> BatchResult[Any]: ...
    def load(self, name: str | list[str], version: Any = LATEST) -> Any:
        """Return the object, a new private copy at every call.

        Args:
            name: its name, or a list of them.
            version: a version, a tag, or ``latest``, which is the highest version. For a list of
                names, one for all or a list.

        Raises:
            ValueError: an invalid name or version.
            ObjectNotFound: there is no such object or version.
            IntegrityError, BlobMissing: its record or content was altered, or its content is
                missing; other versions can still be loaded.
            UnsupportedVersion: a newer offload wrote it.
            SerializerNotAccepted, DeserializationError, StoreUnavailable, StoreError.
        """
        if isinstance(name, str):
            record = self._pointers.find(check_name(name), _asked(version))
            return self._value(record)
        return self._load_all(_listed("name", name), version)

    def _value(self, record: Record) -> Any:
        try:
            return self._content().reader.get(self._content().open(record.ref))
        except OffloadError as exc:
            raise _about(record, exc) from exc

    def _load_all(self, names: list[Any], version: Any) -> BatchResult[Any]:
        versions = _spread("version", version, len(names))
        wanted: list[tuple[str, str | int] | Exception] = []
        for name, given in zip(names, versions, strict=True):
            try:
                wanted.append((check_name(name), _asked(given)))
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
                    opened[at] = content.open(record.ref)
                except OffloadError as exc:
                    records[at] = _about(record, exc)
        values = content.reader.get_all([*opened.values()])
        for at, record in enumerate(records):
            outcome: Any = record
            if isinstance(record, Record):
                try:
                    outcome = next(values)
                except OffloadError as exc:
                    outcome = _about(record, exc)
                    rest = [ref for place, ref in opened.items() if place > at]
                    values = content.reader.get_all(rest)
            given = versions[at]
            result.add(_label(names[at], None if given == LATEST else given), outcome)
        return result

    # -- what there is

    def has_object(self, name: str, version: str | int = LATEST) -> bool:
        """Return whether there is this version (by default, any) of an object."""
        try:
            self._pointers.find(check_name(name), _asked(version))
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
        every object, by name. Nothing is loaded.

        Raises ObjectNotFound, and for one version what `load` does. Among several, records that
        can't be read are left out.
        """
        if name is None:
            every: dict[str, list[Record]] = {}
            for record in self._records():
                every.setdefault(record.name, []).append(record)
            return every
        name = check_name(name)
        if version is not None:
            record = self._pointers.find(name, _asked(version))
            (state,) = self._pointers.states([name]).values()
            tags = () if isinstance(state, Exception) else state[1].tags_of(record.key)
            return replace(record, tags=tags)
        records = self._versions(name)
        if not records:
            raise not_found(self._bucket, name)
        return records

    def _versions(self, name: str) -> list[Record]:
        pointers = self._pointers
        state, found = pointers.versions(name)
        records = []
        for pointer, value in found:
            try:
                record = pointers.parse_record(pointer, value)
            except OffloadError:
                continue
            records.append(replace(record, tags=state.tags_of(record.key)))
        return records

    def _records(self, prefix: str = "") -> Iterator[Record]:
        """Yield the records of all versions, by name and version; their tags aren't read."""
        pointers = self._pointers
        places = [(object_of(pointer), pointer) for pointer in pointers.list_pointers(prefix)]
        names = [pointer for place, pointer in places if place is not None]
        records = []
        for pointer, value in zip(names, pointers.read_all(names), strict=True):
            if value is None:
                continue
            try:
                records.append(pointers.parse_record(pointer, value))
            except OffloadError:
                continue
        records.sort(key=lambda record: (record.name, record.order))
        return iter(records)

    def list_objects(self, prefix: str = "", *, pattern: str | None = None) -> list[str]:
        """Return the names of objects, sorted.

        Args:
            prefix: they start with it.
            pattern: they match it, as ``*:model`` (``*``, ``?``, and ``[…]`` as in file names).
        """
        found = map(object_of, self._pointers.list_pointers(prefix))
        names = {place[1] for place in found if place is not None}
        return sorted(n for n in names if pattern is None or fnmatchcase(n, pattern))

    def list_versions(self, name: str) -> list[str]:
        """Return an object's versions, the lowest first; [] if there is no such object."""
        return [record.version for record in self._versions(check_name(name))]

    # -- tags

    def tag(self, name: str, tag: str, version: str | int = LATEST) -> None:
        """Let *tag* stand for a version of *name*, instead of any other one.

        Raises ValueError for an invalid tag, ObjectNotFound.
        """
        pointers = self._pointers
        name, tag = check_name(name), check_tag(tag)
        key = pointers.find(name, _asked(version)).key
        pointers.change_state(name, lambda state: state.tagged(tag, key))

    def untag(self, name: str, tag: str) -> bool:
        """Remove a tag; return whether there was one."""
        name, tag = check_name(name), check_tag(tag)
        if tag not in self._state(name):
            return False
        self._pointers.change_state(name, lambda state: state.tagged(tag, None))
        return True

    def tags(self, name: str) -> dict[str, str]:
        """Return an object's tags, and the version that each stands for."""
        return {tag: record.version for record in self._versions(name) for tag in record.tags}

    def _state(self, name: str) -> dict[str, str]:
        (state,) = self._pointers.states([name]).values()
        if isinstance(state, Exception):
            raise state
        return dict(state[1].tags)

    # -- remove

    def remove(self, name: str, version: str | int | None = None) -> int:
        """Remove a version of an object, or all; return how many were removed.

        Their content is deleted after a grace period, unless something else needs it.

        Raises ObjectNotFound if there is none.
        """
        pointers = self._pointers
        name = check_name(name)
        if version is None:
            places = [object_of(pointer) for pointer, _ in pointers.versions(name)[1]]
            keys = [place[2] for place in places if place is not None]
        else:
            keys = [self._key(name, version)]
        removed = [key for key in keys if self._remove(name, key)]
        if not removed:
            raise not_found(self._bucket, name, None if version is None else str(version))
        now = self._content().now()
        pointers.change_state(name, lambda state: state.without(frozenset(removed), now))
        return len(removed)

    def _key(self, name: str, version: str | int) -> str:
        """Return the key of a version; an exact one need not exist, or be readable."""
        try:
            return version_key(version)[0]
        except ValueError:
            return self._pointers.find(name, _asked(version)).key

    def _remove(self, name: str, key: str) -> bool:
        pointers = self._pointers
        pointer = pointers.pointer_of(name, key)
        while True:
            (value,) = pointers.read_all([pointer])
            if value is None:
                return False
            try:
                record = pointers.parse_record(pointer, value)
            except IntegrityError:
                record = None
            if pointers.swap(pointer, value, None):
                if record is not None:
                    release(self._content(), record, self._grace())
                return True

    # -- as a mapping

    def __getitem__(self, label: str) -> Any:
        name, version = split_label(label)
        return self.load(name, LATEST if version is None else version)

    def __setitem__(self, label: str, obj: Any) -> None:
        name, version = split_label(label)
        self.save(name, obj, version, on_conflict="overwrite" if self._mutable else "error")

    def __delitem__(self, label: str) -> None:
        name, version = split_label(label)
        self.remove(name, version)

    def __contains__(self, label: object) -> bool:
        if not isinstance(label, str):
            return False
        try:
            name, version = split_label(label)
            return self.has_object(name, LATEST if version is None else version)
        except ValueError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self.list_objects())

    def __len__(self) -> int:
        return len(self.list_objects())

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    # -- for tasks

    def ref(self, name: str, version: str | int = LATEST) -> Ref[Any]:
        """Return a reference to a version, to pass to tasks; nothing is loaded.

        It stands for this version, also when there are newer ones.
        """
        record = self._pointers.find(check_name(name), _asked(version))
        try:
            return self._content().open(record.ref)
        except OffloadError as exc:
            raise _about(record, exc) from exc


def _about(record: Record, exc: OffloadError) -> OffloadError:
    """Return *exc*, naming the version, if it is about a version's content."""
    if not isinstance(exc, (BlobMissing, IntegrityError)):
        return exc
    return type(exc)(f"{record.label}: {exc}", exc.task, record.label, exc.digest, exc.store)


def _asked(version: Any) -> str | int:
    """Return a version, a tag, or ``latest``, if *version* may be one."""
    if isinstance(version, str):
        try:
            return version if version == LATEST else check_tag(version)
        except ValueError:
            pass
    version_key(version)
    checked: str | int = version
    return checked


def _label(name: Any, version: Any) -> str:
    return str(name) if version is None else f"{name}@{version}"


def _listed(what: str, given: Any) -> list[Any]:
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"{what} is a list if names are, not a {type(given).__name__}")
    return list(given)


def _spread(what: str, given: Any, number: int) -> list[Any]:
    if not isinstance(given, (list, tuple)):
        return [given] * number
    if len(given) != number:
        raise ValueError(f"{number} names need {number} items of {what}, not {len(given)}")
    return list(given)


def _raised(outcome: Record | Exception | None) -> Record:
    if isinstance(outcome, Exception):
        raise outcome
    assert outcome is not None  # noqa: S101 (each request has one in the end)
    return outcome
