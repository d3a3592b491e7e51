"""ContentStore: a value in, a Ref out, and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, TypeVar

from offload.content.cache import Assembly, NodeCache
from offload.content.cache_file import InMemory
from offload.content.holds import Chunks, Hold
from offload.content.keyring import keys_from_secrets, keys_from_store
from offload.content.manifest import (
    ALIGNMENT,
    HEAD_LIMIT,
    ROOT_LIMIT,
    SINGLE,
    Manifest,
    Packed,
    pack,
    read_root,
    root_limit,
)
from offload.content.memo import Memo
from offload.content.memory import allocate
from offload.content.retrying import Retrying
from offload.content.stored import MAX_OVERHEAD, decode, encoder
from offload.counters import Counters
from offload.digest import Buffer, Digest, digest_of
from offload.errors import (
    BlobMissing,
    DeserializationError,
    IntegrityError,
    InvalidRef,
    OffloadError,
    StoreError,
    StoreUnavailable,
    UnsupportedVersion,
    ValueTooLarge,
)
from offload.ref import Keys, Ref, claimed_digest, no_refs_within
from offload.serializers.base import Payload
from offload.serializers.choose import Registry
from offload.settings import Settings
from offload.stores.capabilities import chunk_size_of
from offload.stores.protocols import PUT, Parts, Store
from offload.text import human_size

__all__ = ("ContentStore", "longest_asked")

T = TypeVar("T")

_BATCH = 8  # chunks encoded ahead of the network: bounds the memory of compressed copies
_MARGIN = 1.25  # what is promised beyond the need, so that a Ref passed on soon costs nothing
_SKEW = 60.0  # seconds by which the clocks of publishers may differ
_WITHIN = 4096  # bytes up to which data that looks like a reference travels within one
TOGETHER = 16 << 20
"""Bytes of small values that `ContentStore.get_all` fetches in one round trip."""
_KEYS_AGE = 30.0  # seconds from which the store's signing key is looked at with an upload
_KEYS_AGAIN = 1.0  # seconds between looks at it because a reference was refused
_KEYS_KEPT = 4


def longest_asked(ttl: float) -> float:
    """Return the most seconds that a store is asked to keep what is needed for *ttl*."""
    return ttl * _MARGIN + _SKEW


class ContentStore:
    """Stores values by content, and gives them back.

    Safe among threads; after a fork the store's clients are new ones, and all that is
    kept here besides is safe to inherit.

    Args:
        cache: where large values are looked for before the store is asked.
        clock: seconds since 1970.
        sleep: waits so many seconds between attempts.
    """

    def __init__(
        self,
        store: Store,
        serializers: Registry,
        settings: Settings,
        counters: Counters,
        *,
        cache: NodeCache | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.store = store
        self.serializers = serializers
        self._settings = settings
        self._counters = counters
        self._cache = cache
        self._clock = clock
        self._retrying = Retrying(
            settings.retry, on_retry=lambda: counters.add(store_retries=1), sleep=sleep
        )
        self._blob_limit = chunk_size_of(store)
        self._encode = encoder(settings.compression)
        self._memo: Memo[tuple[Ref[Any], list[Digest]]] = Memo(settings.memo_size)
        self._chunks = Chunks()
        self._keys: Keys | None = None
        self._keys_seen = 0.0

    def now(self) -> float:
        """Return the seconds since 1970."""
        return self._clock()

    # -- references

    @property
    def keys(self) -> Keys:
        """What signs and opens references. Asks the store once, unless a secret is set."""
        if self._keys is None:
            if self._settings.secret:
                self._keys = keys_from_secrets(self._settings.secret)
            else:
                self._keys = self._retrying(lambda: keys_from_store(self.store.pointers))
                self._keys_seen = self._clock()
        return self._keys

    @property
    def known_keys(self) -> Keys | None:
        """The same, if they are known without asking the store."""
        return self.keys if self._settings.secret else self._keys

    def _agree_on_keys(self, age: float) -> bool:
        """Look at the store's signing key again if the last look is *age* seconds old;
        return whether it is another one.

        A store that was emptied has lost it. Without this, processes that knew it and
        ones that came later would refuse each other's references until a restart.
        """
        if self._settings.secret or 0 <= self._clock() - self._keys_seen < age:
            return False
        old = self.keys
        (key,) = self._retrying(lambda: keys_from_store(self.store.pointers, old.keys[0])).keys
        self._keys_seen = self._clock()
        if key == old.keys[0]:
            return False
        self._keys = Keys([key, *(k for k in old.keys if k != key)][:_KEYS_KEPT])
        return True

    def open(self, wire: str) -> Ref[Any]:
        """Return the reference that *wire* is, bound to this store.

        Raises InvalidRef (counted) for what is not a reference of ours, StoreUnavailable
        where that cannot be told.
        """
        try:
            return self._open(wire)
        except InvalidRef as exc:
            self._counters.add(refs_refused=1)
            digest = exc.digest or claimed_digest(wire)
            raise type(exc)(str(exc), exc.task, exc.argument, digest, self.store.url) from exc

    def _open(self, wire: str) -> Ref[Any]:
        keys = self.keys
        try:
            return keys.open(wire, self.get)
        except UnsupportedVersion:
            raise
        except InvalidRef:
            # While the store is away this says so: the reference may be good.
            if self._agree_on_keys(_KEYS_AGAIN):
                return self.keys.open(wire, self.get)
            raise

    def opened(self, ref: Ref[T]) -> Ref[T]:
        """Return *ref* as `open` does its text, at once if it was opened or made here."""
        return ref if ref.resolve == self.get else self.open(ref.wire)

    # -- values in

    def put(self, value: Any, *, native: str, hold: Hold) -> Ref[Any]:
        """Store *value* for who needs it and return its reference.

        *native* is the Celery serializer whose round trip the value is to equal.

        Raises: SerializationError, ValueTooLarge, StoreUnavailable, StoreError.
        """
        remembered = self.remembered(value, native=native, hold=hold)
        if remembered is not None:
            return remembered
        payload = self.serialise(value, native)
        return self.put_payload(payload, hold=hold, value=value, native=native)

    def serialise(self, value: Any, native: str) -> Payload:
        """Return *value* serialised, as `Registry.encode` does it."""
        with self._counters.timed("serialise"), no_refs_within():
            return self.serializers.encode(value, native)

    def remembered(
        self, value: Any, *, native: str, hold: Hold, threshold: int = 0
    ) -> Ref[Any] | None:
        """Return a reference to immutable *value* if it was stored before and is there still.

        None where it has less than *threshold* bytes. None also if the store is unavailable:
        storing the value says what to do about that.
        """
        found = self._memo.find(value, native)
        if found is None or found[0].size < threshold:
            return None
        ref, digests = found
        ttl = self._asked(hold)
        try:
            gone = self.store.blobs.hold(digests, ttl, hold.holder)
        except StoreUnavailable:
            return None
        if gone:
            self._memo.forget(value, native)
            return None
        self._counters.offloaded(ref.size, ref.size, whole=True)
        self._counters.add(values_remembered=1)
        return self._signed(digests, ref.size, ref.serializer, ref.type, hold, ttl)

    def put_payload(
        self, payload: Payload, *, hold: Hold, value: Any = None, native: str = ""
    ) -> Ref[Any]:
        """Store a serialised value; *value* is what it was made of, to remember it by."""
        self.check_size(payload)
        with self._counters.timed("hash"):
            packed = pack(payload, limit=self._blob_limit)
        ttl = self._asked(hold)
        digests = packed.digests
        with self._counters.timed("upload"):
            missing = self._retrying(lambda: self.store.blobs.hold(digests, ttl, hold.holder))
            if missing:
                self._upload(packed, missing, ttl, payload.size)
        repeated = packed.repeated(payload.size, missing)
        self._counters.offloaded(payload.size, repeated, whole=not missing)
        ref = self._signed(digests, payload.size, payload.serializer, payload.type, hold, ttl)
        if native:
            self._memo.remember(value, native, (ref, digests))
        return ref

    def put_or_inline(
        self, payload: Payload, *, hold: Hold, value: Any, native: str
    ) -> Ref[Any] | None:
        """Store a serialised value as `put_payload` does, for a message or a result.

        While the store is away and ``offload_on_outage`` is ``inline``, a value within
        ``offload_inline_limit`` goes without: None if *native* carries *value* as it is,
        else a reference that holds it.
        """
        try:
            return self.put_payload(payload, hold=hold, value=value, native=native)
        except StoreUnavailable as exc:
            settings = self._settings
            if settings.on_outage != "inline" or payload.size > settings.inline_limit:
                raise
            carried = not payload.ships_code and self.serializers.carries(value, native)
            if not carried and self.known_keys is None:
                raise StoreUnavailable(
                    f"{exc}; {native} can send a {payload.type or 'value'} in the message only "
                    "inside of a signed reference, whose key is in the store: set "
                    "offload_secret",
                    store=self.store.url,
                ) from exc
            self._counters.add(outage_inline=1)
            return None if carried else self.within(payload)

    def put_disguised(self, value: Any, *, native: str, hold: Hold) -> Ref[Any]:
        """Return a reference to a user's data that has the form of a reference itself."""
        payload = self.serializers.encode(value, native)
        if payload.size < _WITHIN:
            return self.within(payload)
        return self.put_payload(payload, hold=hold)

    def check_size(self, payload: Payload) -> None:
        """Raise ValueTooLarge if *payload* is over ``offload_max_size``."""
        if payload.size > self._settings.max_size:
            raise ValueTooLarge(
                f"a {payload.type or 'value'} of {human_size(payload.size)} is over "
                f"offload_max_size ({human_size(self._settings.max_size)})"
            )

    def within(self, payload: Payload) -> Ref[Any]:
        """Return a reference that holds the serialised value itself; nothing is stored."""
        packed = pack(payload, whole=True)
        if packed.chunks:
            raise ValueTooLarge(
                f"a {payload.type or 'value'} of {human_size(payload.size)} is too large to travel "
                "in a message"
            )
        self._counters.add(values_inline=1)
        now = self._clock()
        return self.keys.sign(
            digest=None,
            data=b"".join(packed.root),
            size=payload.size,
            serializer=payload.serializer,
            type=payload.type,
            created=now,
            until=now,
            resolve=self.get,
        )

    def _signed(
        self,
        digests: list[Digest],
        size: int,
        serializer: str,
        shown: str,
        hold: Hold,
        ttl: float,
    ) -> Ref[Any]:
        now = self._clock()
        until = now + ttl - _SKEW
        self._chunks.note(digests, until if self._is_sure(hold) else 0.0)
        return self.keys.sign(
            digest=digests[0],
            data=None,
            size=size,
            serializer=serializer,
            type=shown,
            created=now,
            until=until,
            resolve=self.get,
        )

    def _upload(self, packed: Packed, missing: set[Digest], ttl: float, size: int) -> None:
        """Write what is missing: chunks first, so that a root is there only with them."""
        self._agree_on_keys(_KEYS_AGE)
        wanted: dict[Digest, Sequence[Buffer]] = {
            chunk.digest: parts for chunk, parts in packed.chunks if chunk.digest in missing
        }
        if packed.digest in missing:
            wanted[packed.digest] = packed.root
        rest = iter(wanted.items())
        while plain := dict(islice(rest, _BATCH)):
            blobs = {digest: self._encode(parts) for digest, parts in plain.items()}
            self._retrying(
                lambda blobs=blobs: self.store.blobs.put(  # type: ignore[misc]
                    blobs, ttl, value_size=size
                )
            )
            self._counters.add(
                blobs_uploaded=len(blobs),
                bytes_uploaded=_total(plain),
                bytes_stored=_total(blobs),
            )

    # -- lifetimes

    def keep(self, ref: Ref[Any], hold: Hold) -> bool:
        """Do as `keep_all` for one reference."""
        return self.keep_all([ref], hold)

    def keep_all(self, refs: Iterable[Ref[Any]], hold: Hold) -> bool:
        """Make sure that *refs* can be resolved for as long as *hold* says.

        One round trip for all of them, none where that is sure already. Returns whether there
        is something for the holder to release. Raises BlobMissing if one of them is gone,
        StoreUnavailable also if it lies in a store that is not among the app's any more.
        """
        refs = list(refs)
        needed = [ref for ref in refs if not self._is_kept(ref, hold.ttl)]
        if not needed:
            return False
        if self.store.blobs.tracks_holds:  # the round trip is made anyway: is the rest there still?
            needed += [ref for ref in refs if ref not in needed and self._are_digests_known(ref)]
        ttl = self._asked(hold)
        found = [self._retrying(lambda ref=ref: self._digests(ref)) for ref in needed]  # type: ignore[misc]
        every = list(dict.fromkeys(chain.from_iterable(found)))
        missing = self._retrying(lambda: self.store.blobs.hold(every, ttl, hold.holder))
        until = self._clock() + ttl - _SKEW if self._is_sure(hold) else 0.0
        for ref, digests in zip(needed, found, strict=True):
            if gone := missing.intersection(digests):
                # Reading says it, should it lie in a store that this app does not use any more.
                list(self._blobs(ref, [min(gone)], ROOT_LIMIT + MAX_OVERHEAD))
                raise self._gone(ref, min(gone))
            self._chunks.note(digests, until)
        return True

    def _are_digests_known(self, ref: Ref[Any]) -> bool:
        """Return whether nothing must be read to name all blobs of *ref*."""
        if ref.digest is None:
            return False
        return ref.size < SINGLE or bool(self._chunks.find(ref.digest)[1])

    def _is_kept(self, ref: Ref[Any], ttl: float) -> bool:
        """Return whether *ref* is sure to live for *ttl* seconds."""
        if ref.digest is None:
            return True
        until, _ = self._chunks.find(ref.digest)
        if not self.store.blobs.tracks_holds:
            until = max(until, ref.until)
        return until >= self._clock() + ttl

    def release(self, refs: Iterable[Ref[Any]], holder: str, grace: float) -> None:
        """Give up what *holder* holds of the values of *refs*; they live *grace* seconds more.

        One attempt: what is not released ends when it was to end anyway. Raises StoreError.
        """
        if not self.store.blobs.tracks_holds:
            return
        digests: list[Digest] = []
        for ref in refs:
            try:
                digests += self._digests(ref)
            except BlobMissing:  # nothing is left to be given up
                continue
        if digests:
            self.store.blobs.release(digests, holder, grace)

    def _digests(self, ref: Ref[Any]) -> list[Digest]:
        """Return the digests of all blobs of *ref*, its root's first."""
        if ref.digest is None:
            return []
        _, digests = self._chunks.find(ref.digest)
        if not digests and ref.size < SINGLE and self._blob_limit is None:
            return [ref.digest]
        if not digests:
            _, manifest = self._root(ref)
            digests = self._note(ref.digest, manifest)
        return digests

    def _note(self, digest: Digest, manifest: Manifest) -> list[Digest]:
        digests = [digest, *(chunk.digest for chunk in manifest.chunks)]
        self._chunks.note(digests)
        return digests

    def _asked(self, hold: Hold) -> float:
        """Return the seconds for which the store is asked to keep what is needed by *hold*."""
        return longest_asked(hold.ttl) if self._is_sure(hold) else hold.ttl + _SKEW

    def _is_sure(self, hold: Hold) -> bool:
        """Whether what *hold* was promised cannot be given up by somebody else."""
        return hold.holder == PUT or not self.store.blobs.tracks_holds

    # -- values out

    def get(self, ref: Ref[T]) -> T:
        """Return the value of *ref*, which `open` or `put` gave.

        Raises (all are counted):
            SerializerNotAccepted: decoding it would need a serializer that is not allowed.
            ValueTooLarge: it is over ``offload_max_size``; nothing was fetched.
            BlobMissing, IntegrityError, StoreUnavailable: see `offload.errors`.
        """
        with self._counted():
            self._check(ref)
            if ref.data is None:
                return self._retrying(lambda: self._fetch(ref))
            where = f"the content of {ref!r}"
            manifest = read_root(memoryview(ref.data), size=ref.size, where=where)
            return self._value(ref, manifest, _copied(manifest.body))

    def get_all(self, refs: Sequence[Ref[Any]]) -> Iterator[Any]:
        """Yield the value of each of *refs*, which `open` or `put` gave.

        Small values are fetched together, up to `TOGETHER` bytes in a round trip, when the first
        of them is asked for. Raises what `get` does, for the reference whose turn it is.
        """
        for batch in _batches(refs):
            roots = self._small_roots(batch) if len(batch) > 1 else {}
            for ref in batch:
                root = roots.get(ref.digest)
                yield self.get(ref) if root is None else self._get_small(ref, root)

    def _small_roots(self, refs: Sequence[Ref[Any]]) -> dict[Digest | None, Buffer]:
        """Return the stored root blobs of small values by digest.

        Asks once. If one can't be had, none is returned: `get` then says which, and what is wrong,
        and waits for a store that is unavailable.
        """
        most = self._settings.max_size  # `get` refuses what is larger
        sizes = {ref.digest: ref.size for ref in refs if ref.digest and ref.size <= most}
        if len(sizes) < 2:
            return {}
        limit = max(sizes.values()) + HEAD_LIMIT
        try:
            with self._counters.timed("fetch"):
                found = list(self.store.blobs.get([*sizes], limit))
        except StoreError:
            return {}
        return dict(zip(sizes, found, strict=True))

    def _get_small(self, ref: Ref[T], stored: Buffer) -> T:
        with self._counted():
            self._check(ref)
            _, manifest = self._read_root(ref, stored)
            value = self._value(ref, manifest, self._body(ref, manifest, InMemory))
        self._counters.add(values_fetched=1, bytes_fetched=ref.size)
        return value

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count an error that is raised in this block."""
        try:
            yield
        except OffloadError as exc:
            self._counters.failed(exc)
            raise

    def _check(self, ref: Ref[Any]) -> None:
        self.serializers.check_accepted(ref.serializer)
        if ref.size > self._settings.max_size:
            raise ValueTooLarge(
                f"{ref!r} is over offload_max_size ({human_size(self._settings.max_size)})"
            )

    def room_ahead(self) -> int:
        """Return how many bytes of values `warm` may fetch for those who wait; 0 is off."""
        return 0 if self._cache is None else self._cache.ahead()

    def warm(self, ref: Ref[Any]) -> bool:
        """Fetch the value of *ref*, which `open` gave, into the node cache, decoding nothing.

        False if it was not fetched: it is there, is being fetched by another process, is too
        small, or there is no room. The store is asked once, and not again if that fails.

        Raises what `get` does, and OSError where the cache fails.
        """
        self._check(ref)
        cache, digest = self._cache, ref.digest
        if cache is None or digest is None or ref.size < SINGLE:
            return False
        with cache.turn(digest, ref.size, wait=False) as turn:
            if turn.found is not None or turn.part is None:
                return False
            root, manifest = self._root(ref)
            file = turn.file(root, manifest) if manifest.chunks else None
            if file is None:
                return False
            self._body(ref, manifest, lambda _: file)
        self._counters.add(prefetch_done=1, prefetch_bytes=ref.size)
        return True

    def _fetch(self, ref: Ref[T]) -> T:
        cache, digest = self._cache, ref.digest
        if cache is None or digest is None or ref.size < SINGLE:
            with self._counters.timed("fetch"):
                _, manifest = self._root(ref)
                body = self._body(ref, manifest, InMemory)
            value = self._value(ref, manifest, body)
            self._counters.add(values_fetched=1, bytes_fetched=ref.size)
            return value
        with cache.turn(digest, ref.size) as turn:
            found = turn.found
            if found is not None:
                self._note(digest, found.manifest)
                try:
                    value = self._value(ref, found.manifest, found.body)
                except (DeserializationError, IntegrityError):
                    if cache.is_intact(found):
                        raise
                else:
                    self._counters.add(cache_hits=1, cache_bytes=ref.size)
                    return value
            with self._counters.timed("fetch"):
                root, manifest = self._root(ref)
                body = self._body(ref, manifest, lambda m: turn.assembly(root, m))
        self._counters.add(values_fetched=1, bytes_fetched=ref.size, cache_misses=1)
        return self._value(ref, manifest, body)

    def _root(self, ref: Ref[Any]) -> tuple[memoryview, Manifest]:
        digest = ref.digest
        assert digest is not None  # noqa: S101 (for the type checker: others hold data)
        (stored,) = self._blobs(ref, [digest], root_limit(ref.size) + MAX_OVERHEAD)
        return self._read_root(ref, stored)

    def _read_root(self, ref: Ref[Any], stored: Buffer) -> tuple[memoryview, Manifest]:
        digest = ref.digest
        assert digest is not None  # noqa: S101 (for the type checker: others hold data)
        where = f"{ref!r} in {self.store.url}"
        limit = root_limit(ref.size)
        try:
            root = decode(stored, limit, where)
        except IntegrityError as exc:
            raise self._altered(ref, digest, str(exc)) from exc
        self._verify(ref, digest, root)
        manifest = read_root(root, size=ref.size, where=where)
        self._note(digest, manifest)
        return root, manifest

    def _body(
        self, ref: Ref[Any], manifest: Manifest, assembly: Callable[[Manifest], Assembly]
    ) -> memoryview:
        """Fetch and verify all chunks, and return the body that they are put together to."""
        if not manifest.chunks:
            return _copied(manifest.body)
        assembled = assembly(manifest)
        limit = max(chunk.size for chunk in manifest.chunks) + MAX_OVERHEAD
        blobs = self._blobs(ref, [chunk.digest for chunk in manifest.chunks], limit)
        for chunk, stored in zip(manifest.chunks, blobs, strict=True):
            where = f"chunk {chunk.digest} of {ref!r} in {self.store.url}"
            try:
                plain = assembled.decode(stored, chunk.size, where)
            except IntegrityError as exc:
                raise self._altered(ref, chunk.digest, str(exc)) from exc
            self._verify(ref, chunk.digest, plain)
            assembled.keep(plain)
        return assembled.body()

    def _blobs(self, ref: Ref[Any], digests: Sequence[Digest], limit: int) -> Iterable[Buffer]:
        try:
            yield from self.store.blobs.get(digests, limit)
        except BlobMissing as exc:
            raise self._gone(ref, exc.digest or digests[0]) from exc
        except IntegrityError as exc:
            raise self._altered(ref, exc.digest or digests[0], str(exc)) from exc

    def _verify(self, ref: Ref[Any], digest: Digest, plain: memoryview) -> None:
        found = digest_of([plain])
        if found != digest:
            raise self._altered(ref, digest, f"its content has the digest {found}")

    def _value(self, ref: Ref[T], manifest: Manifest, body: memoryview) -> T:
        if manifest.serializer != ref.serializer:
            raise IntegrityError(
                f"{ref!r} is of serializer {ref.serializer!r}, its content of "
                f"{manifest.serializer!r}",
                digest=ref.digest,
                store=self.store.url,
            )
        head, buffers = manifest.split(body)
        with self._counters.timed("decode"):
            value: T = self.serializers.decode(ref.serializer, head, buffers)
        return value

    def _gone(self, ref: Ref[Any], digest: str) -> BlobMissing:
        return BlobMissing(
            f"{ref!r} (blob {digest}) is not in the store {self.store.url}; the reference is "
            f"{self._age(ref)} old: it outlived offload_retention, or offload_grace after the end "
            "of the task that it was for, or the store was emptied or evicts keys",
            digest=digest,
            store=self.store.url,
        )

    def _altered(self, ref: Ref[Any], digest: str, what: str) -> IntegrityError:
        return IntegrityError(
            f"{ref!r} (blob {digest}) was altered in the store {self.store.url}: {what}; the "
            f"reference is {self._age(ref)} old; delete the blob and publish again",
            digest=digest,
            store=self.store.url,
        )

    def _age(self, ref: Ref[Any]) -> str:
        return f"{max(0.0, self._clock() - ref.created):.0f} s"


def _batches(refs: Iterable[Ref[Any]]) -> Iterator[list[Ref[Any]]]:
    """Cut *refs* into those that are fetched in one round trip: small ones, or a large one."""
    batch: list[Ref[Any]] = []
    size = 0
    for ref in refs:
        is_small = ref.size < SINGLE
        if batch and (not is_small or size + ref.size > TOGETHER):
            yield batch
            batch, size = [], 0
        batch.append(ref)
        size += ref.size
        if not is_small:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _copied(body: memoryview) -> memoryview:
    """Return *body* in private, writable, aligned memory."""
    own = allocate(len(body), ALIGNMENT)
    own[:] = body
    return own


def _total(blobs: Mapping[Digest, Parts]) -> int:
    return sum(len(part) for parts in blobs.values() for part in parts)
