"""Saving: blobs first, the record last, without locks.

For each version, in this order:

1. Its blobs are stored and held.
2. The name's state announces it (see `offload.catalog.records`). There, a saver also takes the next
   number, by compare-and-swap: no other saver gets that one, whatever becomes of this one.
3. Its blobs are held without expiry, by a holder of this record alone.
4. Its record is set, if there is none: the commit point.

A saver that is killed before the last step leaves unnamed blobs, which a sweep finds, and at most
an announced version, which readers skip. One that is killed in step 4 has saved.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal

from offload.catalog.batches import label_of
from offload.catalog.names import MAX_VERSION, bucket_pointer, name_pointer, number_of, ordered
from offload.catalog.pointers import CatalogPointers, State
from offload.catalog.records import ANNOUNCED, NameState, Record, new_nonce
from offload.content.holds import Hold
from offload.content.store import ContentStore
from offload.digest import Digest
from offload.errors import (
    BlobMissing,
    CatalogError,
    IntegrityError,
    OffloadError,
    StoreError,
    VersionConflict,
)
from offload.ref import Ref
from offload.stores.protocols import FOREVER, Store

logger = logging.getLogger(__name__)

OnConflict = Literal["error", "skip", "overwrite"]

_UPLOAD = 86400.0  # seconds of a hold on blobs that no record names yet
_GROUP_ITEMS, _GROUP_BYTES = 100, 64 << 20  # values that are serialized before they are stored
_MANY_TURNS = 10  # numbers taken by others in a row
_LOOK_BACK = 8  # versions, from the highest, among which the last committed one is looked for


@dataclass
class SaveRequest:
    """A value to be saved.

    Attributes:
        key, shown: the version's key and display form; None until it takes the next number.
        is_numbered: whether it gets the next number.
        after: its number is higher than this.
        outcome: its record, or why it wasn't saved.
    """

    name: str
    value: Any
    key: str | None = None
    shown: str | None = None
    metadata: Any = None
    is_numbered: bool = field(init=False)
    after: int = 0
    state: State | None = None
    before: bytes | None = None
    nonce: str = field(default_factory=new_nonce)
    ref: Ref[Any] | None = None
    digests: list[Digest] = field(default_factory=list)
    outcome: Record | Exception | None = None

    def __post_init__(self) -> None:
        self.is_numbered = self.key is None


class Saver:
    """Saves values in one bucket.

    Args:
        serializer: kombu's name of the serializer that plain Celery would use.
        overwrites: whether a version may be replaced.
        versioned: whether an object may have other versions.
        grace: seconds for which the content of a replaced version is kept.
    """

    def __init__(
        self,
        pointers: CatalogPointers,
        *,
        serializer: str,
        author: str,
        on_conflict: OnConflict,
        overwrites: bool,
        grace: float,
        versioned: bool = True,
    ) -> None:
        self._at = pointers
        self._content = pointers.content
        self._serializer = serializer
        self._author = author
        self._on_conflict = on_conflict
        self._overwrites = overwrites
        self._versioned = versioned
        self._grace = grace

    def save(self, requests: Sequence[SaveRequest]) -> list[Record | Exception]:
        """Save all *requests*; return the outcome of each. Raises StoreUnavailable, StoreError."""
        self._look(requests)
        group: list[SaveRequest] = []
        payloads: list[Any] = []
        size = 0
        for request in requests:
            if request.outcome is not None:
                continue
            try:
                payload = self._payload(request)
            except OffloadError as exc:
                request.outcome = exc
                continue
            group.append(request)
            payloads.append(payload)
            size += 0 if payload is None else payload.size
            if len(group) >= _GROUP_ITEMS or size >= _GROUP_BYTES:
                self._save(group, payloads)
                group, payloads, size = [], [], 0
        if group:
            self._save(group, payloads)
        conflicts = sum(isinstance(each.outcome, VersionConflict) for each in requests)
        if conflicts:
            self._content.counters.add(catalog_conflicts=conflicts)
        return [each.outcome for each in requests if each.outcome is not None]  # all have one now

    # -- before anything is stored

    def _look(self, requests: Sequence[SaveRequest]) -> None:
        """Read the present state, decide conflicts, and find what the next numbers follow."""
        at = self._at
        names = list(dict.fromkeys(request.name for request in requests))
        given = [request for request in requests if request.key is not None]
        pointers = [at.pointer_of(request.name, str(request.key)) for request in given]
        of_names = [name_pointer(at.bucket, name) for name in names]
        bucket, *values = at.read_all([bucket_pointer(at.bucket), *of_names, *pointers])
        states = {
            name: at.parse_state(name, value) for name, value in zip(names, values, strict=False)
        }
        before = dict(zip(pointers, values[len(names) :], strict=True))
        for request in requests:
            state = states[request.name]
            if isinstance(state, Exception):
                request.outcome = state
                continue
            request.state = state
            if request.key is not None:
                request.before = before[at.pointer_of(request.name, request.key)]
                request.outcome = self._conflict(request)
        self._find_last([r for r in requests if r.key is None and r.outcome is None])
        if any(request.outcome is None for request in requests):
            at.note_bucket(bucket)

    def _find_last(self, requests: Sequence[SaveRequest]) -> None:
        """Find the number of the highest version that has a record."""
        highest: dict[str, list[str]] = {}
        for request in requests:
            assert request.state is not None  # noqa: S101 (set by `_look`)
            highest[request.name] = ordered(request.state[1].keys)[: -_LOOK_BACK - 1 : -1]
        asked = {
            self._at.pointer_of(name, key): (name, key)
            for name, keys in highest.items()
            for key in keys
        }
        committed: dict[str, list[str]] = {}
        failed: dict[str, Exception] = {}
        for pointer, value in self._at.read_set(asked).items():
            name, key = asked[pointer]
            committed.setdefault(name, []).append(key)
            try:
                self._at.parse_record(pointer, value)
            except IntegrityError:
                pass  # a damaged record counts; one of a newer offload stops the save
            except OffloadError as exc:
                failed[name] = exc
        for request in requests:
            keys = committed.setdefault(request.name, [])
            if request.name in failed:
                request.outcome = failed[request.name]
                continue
            if not keys and len(highest[request.name]) == _LOOK_BACK:
                keys += self._committed(request.name)
            request.after = number_of(keys)

    def _committed(self, name: str) -> list[str]:
        """Return the keys of all records of a name, as the store lists them."""
        places = self._at.places(name).values()
        return [place.key for place in places if place.name == name]

    def _conflict(self, request: SaveRequest) -> Record | Exception | None:
        """Return the outcome if there is a record already; None if the value is to be saved."""
        if request.before is None:
            return None
        pointer = self._at.pointer_of(request.name, str(request.key))
        replaces = self._on_conflict == "overwrite" and self._overwrites
        try:
            present = self._at.parse_record(pointer, request.before)
        except OffloadError as exc:
            return None if replaces and isinstance(exc, IntegrityError) else exc
        if replaces:
            return None
        if self._on_conflict == "skip":
            return present
        if self._overwrites:
            remedy = "pass on_conflict='overwrite'"
        elif self._on_conflict == "error" and self._versioned:
            remedy = "save it as another version, or pass on_conflict='skip'"
        else:
            remedy = "overwriting needs a catalog with mutable=True"
        return VersionConflict(f"{present.label} already exists: {remedy}", argument=present.label)

    # -- storing

    def _payload(self, request: SaveRequest) -> Any:
        """Return the value serialized; None if it is a reference to a stored value."""
        value = request.value
        if isinstance(value, Ref):
            if not value.is_local:
                request.ref = self._content.open(value.wire)
                if request.ref.digest is not None:
                    return None
                value = self._content.reader.get(request.ref)
            else:
                value = value.get()
        payload = self._content.writer.serialize(value, self._serializer)
        self._content.writer.check_size(payload)
        return payload

    def _save(self, group: list[SaveRequest], payloads: list[Any]) -> None:
        store = self._content.store
        hold = upload_hold(store, group[0].nonce)
        try:
            try:
                self._store(group, payloads, hold)
            except OffloadError as exc:
                for request in group:
                    request.outcome = request.outcome or exc
            for request in group:
                if request.outcome is None:
                    try:
                        request.outcome = self._commit(request)
                    except OffloadError as exc:
                        request.outcome = exc
        finally:
            digests = [digest for request in group for digest in request.digests]
            if digests and store.blobs.tracks_holds:
                with suppress(StoreError):  # it expires by itself
                    store.blobs.release(list(dict.fromkeys(digests)), hold.holder, self._grace)

    def _store(self, group: list[SaveRequest], payloads: list[Any], hold: Hold) -> None:
        content = self._content
        values = [
            (request, payload)
            for request, payload in zip(group, payloads, strict=True)
            if payload is not None
        ]
        stored = content.writer.put_all([payload for _, payload in values], hold=hold)
        for (request, _), (ref, digests) in zip(values, stored, strict=True):
            request.ref, request.digests = ref, digests
        for request, payload in zip(group, payloads, strict=True):
            if payload is None and request.ref is not None:
                try:
                    request.ref, request.digests = hold_again(content, request.ref, hold)
                except OffloadError as exc:
                    request.outcome = exc

    # -- committing

    def _commit(self, request: SaveRequest) -> Record | Exception:
        """Announce the version, hold its blobs without expiry, and set its record."""
        at, content = self._at, self._content
        announced = self._take_number(request) if request.is_numbered else self._announce(request)
        for turn in count(1):
            record = self._record(request)
            pointer, value = at.pointer_of(record.name, record.key), at.value_of(record)
            if content.store.blobs.tracks_holds:
                self._hold(request, record.holder)
            is_late = content.now() - announced > ANNOUNCED  # this process was stopped
            if is_late and not request.is_numbered:
                announced, is_late = self._announce(request), False
            # If this raises, the record may have been set: the hold stays, and a sweep ends it
            # unless there is a record.
            if not is_late and at.swap(pointer, request.before, value):
                if content.now() - announced > ANNOUNCED:
                    self._announce(request)
                    self._hold_committed(request, record, value)
                content.counters.add(catalog_saves=1)
                self._release_replaced(request, pointer)
                return record
            self._release(request.digests, record.holder)
            if not request.is_numbered:
                (request.before,) = at.read_all([pointer])
                outcome = self._conflict(request)
                if outcome is not None:
                    return outcome
                continue
            found: list[str] = []
            if turn % _MANY_TURNS == 0:  # perhaps the name's state was lost
                found = self._committed(request.name)
            request.after = number_of([*found, str(request.key)])
            announced = self._take_number(request, found)
        raise AssertionError("never reached")

    def _take_number(self, request: SaveRequest, found: Sequence[str] = ()) -> float:
        """Take the next number, and announce the version; return the time."""
        now = self._content.now()
        known, request.state = request.state, None

        def taken(state: NameState) -> NameState:
            number = state.next_number(request.after, now)
            if len(str(number)) > MAX_VERSION:
                raise CatalogError(
                    f"no number follows {number - 1}, the highest of {request.name}: give a "
                    "version, or save it under another name",
                    argument=request.name,
                )
            return state.found(found).took(number, now)

        state = self._at.change_state(request.name, taken, known)
        request.key = request.shown = str(state.last)
        return now

    def _announce(self, request: SaveRequest) -> float:
        """Announce the version; return the time.

        Raises VersionConflict if it is a number that another saver took and may still write.
        """
        now, key = self._content.now(), str(request.key)
        known, request.state = request.state, None
        pointer = self._at.pointer_of(request.name, key)

        def announced(state: NameState) -> NameState:
            if state.is_taken(key, now) and self._at.read_all([pointer]) == [None]:
                label = label_of(request.name, request.shown)
                raise VersionConflict(
                    f"{label} is the number that a save without a version took, which may not have "
                    "finished yet: save it as another version, or try again in an hour",
                    argument=label,
                )
            return state.announced(key, now)

        self._at.change_state(request.name, announced, known)
        return now

    def _record(self, request: SaveRequest) -> Record:
        content = self._content
        now, ref = content.now(), request.ref
        assert ref is not None  # noqa: S101 (set by `_store`)
        # Whoever uses it holds its value.
        signed = content.signing.resign(replace(ref, created=now, until=now))
        return Record(
            bucket=self._at.bucket,
            name=request.name,
            version=str(request.shown),
            type=signed.type,
            size=ref.size,
            created=now,
            author=self._author,
            metadata=request.metadata,
            digest=ref.digest,
            ref=signed.wire,
            nonce=request.nonce,
        )

    def _hold(self, request: SaveRequest, holder: str) -> None:
        content = self._content
        missing = content.retrying(
            lambda: content.store.blobs.hold(request.digests, FOREVER, holder)
        )
        if missing and request.ref is not None:
            self._release(request.digests, holder)
            raise content.reader.missing_error(request.ref, min(missing))

    def _hold_committed(self, request: SaveRequest, record: Record, value: bytes) -> None:
        """Hold the blobs of a record again, which a sweep may have found without it.

        Raises BlobMissing if it has deleted one; the record is removed then.
        """
        try:
            self._hold(request, record.holder)
        except BlobMissing:
            self._at.swap(self._at.pointer_of(record.name, record.key), value, None)
            raise

    def _release_replaced(self, request: SaveRequest, pointer: str) -> None:
        if request.before is not None:
            with suppress(OffloadError):  # a damaged record: a sweep finds its blobs
                release(self._content, self._at.parse_record(pointer, request.before), self._grace)

    def _release(self, digests: list[Digest], holder: str) -> None:
        with suppress(StoreError):  # a sweep finds what no record names
            self._content.store.blobs.release(digests, holder, self._grace)


def upload_hold(store: Store, nonce: str) -> Hold:
    """Return the hold on blobs that no record names yet."""
    ttl = _UPLOAD if store.blobs.tracks_holds else FOREVER
    return Hold(ttl, f"catalog-save:{nonce}")


def hold_again(content: ContentStore, ref: Ref[Any], hold: Hold) -> tuple[Ref[Any], list[Digest]]:
    """Hold the stored value of *ref*; return it and the digests of its blobs.

    Raises BlobMissing if it isn't in the store any more.
    """
    digests = content.retrying(lambda: content.holds.digests(ref))
    missing = content.retrying(lambda: content.store.blobs.hold(digests, hold.ttl, hold.holder))
    if missing:
        raise content.reader.missing_error(ref, min(missing))
    return ref, digests


def release(content: ContentStore, record: Record, grace: float) -> None:
    """Release the content of a *record* that was deleted or replaced.

    What can't be released now is found by a sweep: no record names it.
    """
    try:
        content.holds.release([content.open(record.ref)], record.holder, grace)
    except OffloadError as exc:
        logger.warning("the content of %s wasn't released; a sweep does it: %s", record.label, exc)
