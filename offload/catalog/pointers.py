"""Reads and changes the catalog's pointers in one bucket of a store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import TypeVar

from offload.catalog.batches import raised
from offload.catalog.names import (
    BUCKETS,
    DEFAULT,
    LATEST,
    NAMES,
    RECORDS,
    Place,
    bucket_pointer,
    decode,
    encode,
    is_version,
    name_pointer,
    normalize,
    object_of,
    ordered,
    record_pointer,
    version_key,
)
from offload.catalog.records import (
    NameState,
    Record,
    read_record,
    read_state,
    seal,
    write_record,
    write_state,
)
from offload.content.store import ContentStore
from offload.errors import CatalogError, IntegrityError, ObjectNotFound, StoreUnavailable
from offload.ref import Keys

T = TypeVar("T")

READ_AT_ONCE = 500
"""Records read in one round trip."""
_FIRST_LOOK = 8  # versions of which the newest is looked for at first
_TURNS = 200  # attempts to change a state that others change at the same time

State = tuple[bytes | None, NameState]
"""A name's state, and its pointer's value."""


def not_found(bucket: str, name: str, version: str | None = None) -> ObjectNotFound:
    """Return the error for an object, or a version of it, that isn't in the catalog."""
    label = name if version is None else f"{name}@{version}"
    where = "the catalog" if bucket == DEFAULT else f"bucket {bucket}"
    what = "object" if version is None else "version"
    return ObjectNotFound(f"{where} has no {what} {label!r}", argument=label)


class CatalogPointers:
    """The pointers of one bucket.

    While the store is unavailable, calls are repeated as the content store's settings say.
    """

    def __init__(self, content: ContentStore, bucket: str) -> None:
        self.content = content
        self.bucket = bucket
        self._pointers = content.store.pointers
        self._retrying = content.retrying

    # -- values of pointers

    def read_all(self, pointers: Collection[str]) -> list[bytes | None]:
        """Return the value of each pointer; one round trip for up to `READ_AT_ONCE`."""
        values: list[bytes | None] = []
        rest = iter(pointers)
        while batch := list(islice(rest, READ_AT_ONCE)):
            values += self._retrying(lambda batch=batch: self._pointers.read_all(batch))  # type: ignore[misc]
        return values

    def read_set(self, pointers: Collection[str]) -> dict[str, bytes]:
        """Return the values of those *pointers* that are set, in order."""
        values = zip(pointers, self.read_all(pointers), strict=True)
        return {pointer: value for pointer, value in values if value is not None}

    def swap(self, pointer: str, before: bytes | None, after: bytes | None) -> bool:
        """Change a pointer's value if it is *before*; return whether it was changed.

        Values are unique, so an attempt whose answer was lost is recognized by its effect.

        Raises StoreUnavailable if that stays unknown.
        """
        tried = False

        def attempt() -> bool:
            nonlocal tried
            if tried and self._pointers.read(pointer) == after:
                return True
            tried = True
            return self._pointers.swap(pointer, before, after)

        return self._retrying(attempt)

    def parse(self, read: Callable[[Keys], T]) -> T:
        """Return *read(keys)*; repeat it if it fails because the store's key has changed."""
        signing = self.content.signing
        try:
            return read(signing.keys)
        except IntegrityError:
            if not signing.refresh(1.0):
                raise
            return read(signing.keys)

    # -- records

    def pointer_of(self, name: str, key: str) -> str:
        return record_pointer(self.bucket, name, key)

    def parse_record(self, pointer: str, value: bytes, place: Place | None = None) -> Record:
        """Return the record in *value*; raises IntegrityError or UnsupportedVersion."""
        return self.parse(lambda keys: read_record(pointer, value, keys, place))

    def value_of(self, record: Record) -> bytes:
        """Return the value of the record's pointer."""
        pointer = self.pointer_of(record.name, record.key)
        return write_record(record, pointer, self.content.signing.keys)

    def find(self, name: str, version: str | int) -> Record:
        """Return the record of a version, a tag, or the latest version.

        Raises ObjectNotFound, IntegrityError, UnsupportedVersion, StoreUnavailable, StoreError.
        """
        return raised(self.find_all([(name, version)])[0])

    def find_all(self, wanted: Sequence[tuple[str, str | int]]) -> list[Record | Exception]:
        """Return a record, or an error, for each name and version.

        Takes at most three round trips for some hundred of them, unless the newest versions
        of a name were removed.
        """
        named = [name for name, version in wanted if not _is_exact(version)]
        states = self.states(list(dict.fromkeys(named)))
        candidates = [self._candidates(*each, states) for each in wanted]
        found: list[Record | Exception | None] = [
            each if isinstance(each, Exception) else None for each in candidates
        ]
        start, stop = 0, _FIRST_LOOK
        while True:
            asked = [
                (at, key)
                for at, keys in enumerate(candidates)
                if found[at] is None and not isinstance(keys, Exception)
                for key in keys[start:stop]
            ]
            if not asked:
                break
            pointers = [self.pointer_of(wanted[at][0], key) for at, key in asked]
            for (at, _), pointer, value in zip(
                asked, pointers, self.read_all(pointers), strict=True
            ):
                if found[at] is None and value is not None:
                    found[at] = self._parsed(pointer, value)
            start, stop = stop, stop * 8
        return [
            not_found(self.bucket, *_as_asked(*wanted[at])) if each is None else each
            for at, each in enumerate(found)
        ]

    def _candidates(
        self, name: str, version: str | int, states: dict[str, State | Exception]
    ) -> list[str] | Exception:
        if _is_exact(version):
            try:
                return [version_key(version)[0]]
            except ValueError as exc:
                return exc
        state = states[name]
        if isinstance(state, Exception):
            return state
        if version == LATEST:
            return ordered(state[1].keys)[::-1]
        key = state[1].tags.get(str(version))
        if key is not None:
            return [key]
        if state[1].keys:
            return not_found(self.bucket, name, str(version))
        return not_found(self.bucket, name)

    def _parsed(self, pointer: str, value: bytes) -> Record | Exception:
        try:
            return self.parse_record(pointer, value)
        except Exception as exc:
            return exc

    def records_of(self, name: str, state: NameState) -> dict[str, bytes]:
        """Return the pointer and value of each record of a name, the lowest version first."""
        return self.read_set([self.pointer_of(name, key) for key in ordered(state.keys)])

    def places(self, prefix: str = "") -> dict[str, Place]:
        """Return the pointers of all records of objects whose names start with *prefix*."""
        start = self.start(prefix)
        found = self._retrying(lambda: list(self._pointers.names(start)))
        return {pointer: place for pointer in found if (place := object_of(pointer)) is not None}

    def start(self, prefix: str = "") -> str:
        """Return the prefix of these pointers; raises TypeError for a *prefix* that isn't text."""
        if not isinstance(prefix, str):
            raise TypeError(f"a prefix is text, not a {type(prefix).__name__}")
        return f"{RECORDS}{self.bucket}/{encode(normalize(prefix))}"

    # -- states of names

    def states(self, names: Sequence[str]) -> dict[str, State | Exception]:
        """Return the state of each name, or the error in reading it; one round trip."""
        pointers = [name_pointer(self.bucket, name) for name in names]
        values = self.read_all(pointers)
        return {
            name: self.parse_state(name, value) for name, value in zip(names, values, strict=True)
        }

    def state(self, name: str) -> State:
        """Return a name's state; raises IntegrityError, UnsupportedVersion, or StoreUnavailable."""
        return raised(self.states([name])[name])

    def parse_state(self, name: str, value: bytes | None) -> State | Exception:
        pointer = name_pointer(self.bucket, name)
        try:
            return value, self.parse(lambda keys: read_state(pointer, value, keys))
        except Exception as exc:
            return exc

    def change_state(
        self,
        name: str,
        change: Callable[[NameState], NameState],
        known: State | None = None,
        *,
        replaces_damaged: bool = False,
    ) -> NameState:
        """Apply *change* to a name's state, even while others change it.

        Args:
            known: the state that was read last; saves a round trip.
            replaces_damaged: whether to treat an altered state as empty.

        Raises CatalogError if the name would have too many versions.
        """
        pointer = name_pointer(self.bucket, name)
        for _ in range(_TURNS):
            if known is None:
                (value,) = self.read_all([pointer])
                read = self.parse_state(name, value)
                if isinstance(read, IntegrityError) and replaces_damaged:
                    read = value, NameState()
                known = raised(read)
            before, state = known
            changed, after = self._written(name, change(state))
            if changed == state or self.swap(pointer, before, after):
                return changed
            known = None
        url = self.content.store.url
        raise StoreUnavailable(
            f"{url}: {pointer!r} was changed by others {_TURNS} times in a row", store=url
        )

    def _written(self, name: str, state: NameState) -> tuple[NameState, bytes | None]:
        """Return the state and its pointer's value; one that is too long is shortened."""
        pointer, keys = name_pointer(self.bucket, name), self.content.signing.keys
        try:
            return state, write_state(state, pointer, keys)
        except CatalogError:
            to_settle = state.to_settle(self.content.now())
            places = {self.pointer_of(name, key): key for key in to_settle}
            written = {places[pointer] for pointer in self.read_set(places)}
            if not written:
                raise
            state = state.settled(written)
            return state, write_state(state, pointer, keys)

    def named(self) -> list[str]:
        """Return the names that have a state."""
        start = f"{NAMES}{self.bucket}/"
        found = self._retrying(lambda: list(self._pointers.names(start)))
        names = (decode(pointer[len(start) :]) for pointer in found)
        return [name for name in names if name is not None]

    # -- buckets

    def note_bucket(self, value: bytes | None) -> None:
        """Record that the bucket exists, unless *value* shows that it does."""
        if value is None:
            pointer = bucket_pointer(self.bucket)
            data = {"format": 1, "created": self.content.now()}
            self.swap(pointer, None, seal(pointer, data, self.content.signing.keys))

    def unset_bucket(self) -> bool:
        """Record that the bucket no longer exists; return whether it did."""
        pointer = bucket_pointer(self.bucket)
        (value,) = self.read_all([pointer])
        return value is not None and self.swap(pointer, value, None)

    def buckets(self) -> list[str]:
        """Return the names of all buckets, created or with objects."""
        names = self._retrying(lambda: list(self._pointers.names("catalog")))
        found = {name[len(BUCKETS) :] for name in names if name.startswith(BUCKETS)}
        found |= {place[0] for name in names if (place := object_of(name)) is not None}
        return sorted(found)


def _is_exact(version: str | int) -> bool:
    """Return whether *version* names a version itself, rather than a tag or the latest."""
    return not isinstance(version, str) or (version != LATEST and is_version(version))


def _as_asked(name: str, version: str | int) -> tuple[str, str | None]:
    return name, None if version == LATEST else str(version)
