"""Catalog: named, versioned objects in a store.

::

    catalog = Catalog("redis://localhost:6379/2")
    catalog.save("churn:model", model, metadata={"stage": "test"})
    model = catalog.load("churn:model")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar, overload

from offload.catalog.batches import BatchResult, label_of, listed, raised, spread
from offload.catalog.names import (
    LATEST,
    bucket_pointer,
    check_asked,
    check_name,
    check_tag,
    number_of,
    object_of,
    record_pointer,
    split_label,
    version_key,
)
from offload.catalog.pointers import CatalogPointers, not_found
from offload.catalog.reading import CatalogReader, about, open_record
from offload.catalog.records import NameState, Record, check_metadata
from offload.catalog.saving import OnConflict, Saver, SaveRequest, release
from offload.errors import (
    BlobMissing,
    BucketNotEmpty,
    IntegrityError,
    ObjectNotFound,
    OffloadError,
    StoreError,
    VersionConflict,
)
from offload.locks import Lock, process_name

T = TypeVar("T")

Item = tuple[Any, Any, Any, Any]
"""Name, value, version, and metadata, as they were given to `Catalog.save`."""
_FIRST = "1"  # the only version in a catalog that keeps one


class Catalog(CatalogReader, MutableMapping[str, Any]):
    """A catalog without local copies, which `offload.catalog.offline.Catalog` adds."""

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
            VersionConflict: the version exists, or another save took its number within an hour.
            UnsupportedVersion: a newer offload wrote the object's versions.
            CatalogError: the object has too many versions (some 9,000), or no next number.
            SerializationError, ValueTooLarge, BlobMissing, StoreUnavailable, StoreError.
        """
        if on_conflict not in (None, "error", "skip", "overwrite"):
            raise ValueError(f"on_conflict is 'error', 'skip', or 'overwrite', not {on_conflict!r}")
        if on_conflict is None:
            on_conflict = "overwrite" if self.mutable and not self.versioned else "error"
        if isinstance(name, str):
            return self._save_one((name, obj, version, metadata), on_conflict)
        names, values = listed("name", name), listed("obj", obj)
        versions = spread("version", version, len(names))
        every = spread("metadata", metadata, len(names))
        if len(values) != len(names):
            raise ValueError(f"{len(names)} names need {len(names)} objects, not {len(values)}")
        items = list(zip(names, values, versions, every, strict=True))
        result: BatchResult[Record] = BatchResult()
        for item, outcome in zip(items, self._save_all(items, on_conflict), strict=True):
            result.add(label_of(item[0], item[2]), outcome)
        return result

    def _save_one(self, item: Item, on_conflict: OnConflict) -> Record:
        return raised(self._saver(on_conflict).save([self._request(*item)])[0])

    def _save_all(
        self, items: Sequence[Item], on_conflict: OnConflict
    ) -> Sequence[Record | Exception]:
        requests: list[SaveRequest | Exception] = []
        for item in items:
            try:
                requests.append(self._request(*item))
            except ValueError as exc:
                requests.append(exc)
        valid = [each for each in requests if isinstance(each, SaveRequest)]
        saved = iter(self._saver(on_conflict).save(valid))
        return [next(saved) if isinstance(each, SaveRequest) else each for each in requests]

    def _request(self, name: Any, obj: Any, version: Any, metadata: Any) -> SaveRequest:
        name = check_name(name)
        check_metadata(metadata, encrypted=self._content().signing.keyring is not None)
        if not self.versioned:
            if version is not None:
                raise ValueError("this catalog keeps one version of each object: give no version")
            version = _FIRST
        key, shown = (None, None) if version is None else version_key(version)
        return SaveRequest(name, obj, key, shown, metadata)

    def _saver(self, on_conflict: OnConflict) -> Saver:
        return Saver(
            self._pointers,
            serializer=self._serializer(),
            author=self.author or process_name(),
            on_conflict=on_conflict,
            overwrites=self.mutable,
            versioned=self.versioned,
            grace=self._grace(),
        )

    def get_or_compute(
        self,
        name: str,
        version: str | int | None,
        fn: Callable[..., T],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> T:
        """Return a version of an object; if there is none, save what *fn* returns as that version.

        Of the processes that ask for the same version at the same time, one computes, and the
        others wait for it. If it dies, another takes over within half a minute. What was computed
        is returned as `load` returns it from then on.

        Args:
            version: None for the latest, whichever it is; if there is none, the next is computed.
            fn: called with *args* and *kwargs*. If it raises, nothing is saved.

        Raises what *fn*, `load`, and `save` raise.
        """
        __tracebackhide__ = True  # for Sentry and pytest
        name = check_name(name)
        asked = LATEST if version is None else version
        key = LATEST if version is None else version_key(version)[0]
        with suppress(ObjectNotFound):
            found: T = self.load(name, asked)
            return found
        lock = Lock(self.store, record_pointer(self._bucket, name, key))
        lock.acquire()
        try:
            # Another process may have computed it meanwhile.
            if not self.has_object(name, asked):
                if version is None and self.versioned:
                    version = self._pointers.state(name)[1].last + 1
                request = self._request(name, fn(*args, **kwargs), version, None)
                asked = raised(self._saver("skip").save([request])[0]).version
        finally:
            with suppress(StoreError):  # what was saved stays, also if the lock was lost
                lock.release()
        last: T = self.load(name, asked)
        return last

    # -- tags

    def tag(self, name: str, tag: str, version: str | int = LATEST) -> None:
        """Give *tag* to a version of *name*, and take it from any other version.

        Raises ValueError for an invalid tag, ObjectNotFound.
        """
        pointers = self._pointers
        name, tag = check_name(name), check_tag(tag)
        key = pointers.find(name, check_asked(version)).key
        pointers.change_state(name, lambda state: state.tagged(tag, key))

    def untag(self, name: str, tag: str) -> bool:
        """Remove a tag; return whether there was one."""
        name, tag = check_name(name), check_tag(tag)
        pointers = self._pointers
        known = pointers.state(name)
        pointers.change_state(name, lambda state: state.tagged(tag, None), known)
        return tag in known[1].tags

    # -- remove

    @overload
    def remove(self, name: str, version: str | int | None = None) -> int: ...
    @overload
    def remove(
        self,
        name: list[str],
        version: str | int | Sequence[str | int | None] | None = None,
    ) -> BatchResult[int]: ...
    def remove(self, name: str | list[str], version: Any = None) -> int | BatchResult[int]:
        """Remove a version of an object, or all; return how many were removed.

        Their content is deleted after a grace period, unless something else needs it.

        Args:
            name: the object's name, or a list of them.
            version: a version, a tag, or ``latest``; default: all. For a list of names, one for
                all or a list.

        Raises ObjectNotFound if there is none; ValueError, UnsupportedVersion, StoreUnavailable.
        """
        if isinstance(name, str):
            return self._remove_versions(name, version)
        names = listed("name", name)
        result: BatchResult[int] = BatchResult()
        for each, given in zip(names, spread("version", version, len(names)), strict=True):
            try:
                outcome: int | Exception = self._remove_versions(each, given)
            except (OffloadError, ValueError) as exc:
                outcome = exc
            result.add(label_of(each, given), outcome)
        return result

    def _remove_versions(self, name: str, version: str | int | None) -> int:
        pointers = self._pointers
        name = check_name(name)
        _, state = pointers.state(name)
        if version is None:
            places = map(object_of, pointers.records_of(name, state))
            keys = [place.key for place in places if place is not None]
        else:
            keys = [self._key(name, version)]
        removed = []
        for key in reversed(keys):  # the highest number is noted first, and once
            if self._remove(name, key, state):
                removed.append(key)
                state = state.numbered(number_of([key]))
        if not removed:
            raise not_found(self._bucket, name, None if version is None else str(version))
        self._content().counters.add(catalog_removed=len(removed))
        now = self._content().now()
        pointers.change_state(name, lambda state: state.removed(frozenset(removed), now))
        return len(removed)

    def _key(self, name: str, version: str | int) -> str:
        """Return the key of a version; an exact one need not exist, or be readable."""
        try:
            return version_key(version)[0]
        except ValueError:
            return self._pointers.find(name, check_asked(version)).key

    def _remove(self, name: str, key: str, state: NameState) -> bool:
        """Remove a version, after recording its number, so that no other version gets it."""
        pointers, number = self._pointers, number_of([key])
        pointer = pointers.pointer_of(name, key)
        while True:
            (value,) = pointers.read_all([pointer])
            if value is None:
                return False
            try:
                record = pointers.parse_record(pointer, value)
            except IntegrityError:
                record = None
            if self.versioned and number > state.last:
                state = pointers.change_state(name, lambda state: state.numbered(number))
            if pointers.swap(pointer, value, None):
                if record is not None:
                    release(self._content(), record, self._grace())
                return True

    def copy(
        self,
        name: str,
        target: str,
        version: str | int = LATEST,
        *,
        target_version: str | int | None = None,
        catalog: Catalog | None = None,
        on_conflict: OnConflict | None = None,
    ) -> Record:
        """Copy a version, with its metadata, and return the new record.

        Within one store no content is copied.

        Args:
            target: name of the copy.
            target_version: default: the same version.
            catalog: to copy to, such as another bucket; default: this one.

        Raises what `load` and `save` raise.
        """
        to = self if catalog is None else catalog
        record = self._pointers.find(check_name(name), check_asked(version))
        if target_version is None and to.versioned:
            target_version = record.version
        same = to.store is self.store or to.store.url == self.store.url
        value = open_record(self._content(), record) if same else self._value(record)
        try:
            return to.save(
                target, value, target_version, metadata=record.metadata, on_conflict=on_conflict
            )
        except VersionConflict as exc:
            text = str(exc).replace(
                "save it as another version", "pass another name or target_version"
            )
            raise VersionConflict(text, argument=exc.argument) from None
        except BlobMissing as exc:
            raise about(record, exc) from exc

    def mend(self) -> int:
        """Rebuild each object's list of versions after pointers were lost; return how many changed.

        `load` finds the latest version in that list.
        """
        pointers, found = self._pointers, dict[str, set[str]]()
        for place in pointers.places().values():
            found.setdefault(place.name, set()).add(place.key)
        now, changed = self._content().now(), 0
        for name in {*found, *pointers.named()}:
            (before,) = pointers.states([name]).values()
            known = None if isinstance(before, Exception) else before
            keys = frozenset(found.get(name, ()))

            def mended(state: NameState, keys: frozenset[str] = keys) -> NameState:
                return state.found(keys).without(state.keys - keys, now)

            after = pointers.change_state(name, mended, known, replaces_damaged=True)
            changed += known is None or after != known[1]
        return changed

    # -- buckets

    def create_bucket(self, name: str) -> Catalog:
        """Return the catalog of a bucket, and create it if there is none."""
        other = self.bucket(name)
        pointers = CatalogPointers(self._content(), name)
        (value,) = pointers.read_all([bucket_pointer(name)])
        pointers.note_bucket(value)
        return other

    def remove_bucket(self, name: str, *, force: bool = False) -> None:
        """Remove a bucket.

        Args:
            force: also remove all objects in it.

        Raises BucketNotEmpty if it has objects, ObjectNotFound if there is no such bucket.
        """
        other = self.bucket(name)
        pointers = CatalogPointers(self._content(), name)
        names = other.list_objects()
        if names and not force:
            raise BucketNotEmpty(
                f"bucket {name} has {len(names)} object{'s' * (len(names) > 1)}, such as "
                f"{names[0]!r}: remove all, or pass force=True",
                argument=name,
            )
        for each in names:
            with suppress(ObjectNotFound):
                other.remove(each)
        now = self._content().now()
        for each in pointers.named():  # the numbers that its objects had
            pointers.change_state(each, lambda state: state.without(state.keys, now).unnumbered())
        if not pointers.unset_bucket() and not names:
            raise ObjectNotFound(f"there is no bucket {name!r}", argument=name)

    # -- as a mapping

    def __getitem__(self, label: str) -> Any:
        name, version = split_label(label)
        return self.load(name, LATEST if version is None else version)

    def __setitem__(self, label: str, obj: Any) -> None:
        name, version = split_label(label)
        self.save(name, obj, version, on_conflict="overwrite" if self.mutable else "error")

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
