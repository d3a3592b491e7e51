"""Store values and return their references."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from offload.content.ahead import HashAhead
from offload.content.digest_cache import DigestCache
from offload.content.encoding import BlobEncoder, encoder
from offload.content.holds import Hold, Holds
from offload.content.manifest import Packed, pack
from offload.content.memory import Memory
from offload.content.progress_bar import uploading
from offload.content.retrying import Retrying
from offload.content.signing import SigningKeys
from offload.content.small import SMALL, SmallWriter, Stored
from offload.content.through import WriteThrough
from offload.digest import Buffer, Digest
from offload.errors import OffloadError, StoreUnavailable, ValueTooLarge
from offload.metrics.counters import Counters
from offload.ref import Ref, Resolve, no_refs_within
from offload.serializers.base import Payload
from offload.serializers.choose import Registry
from offload.settings import Settings
from offload.stores.capabilities import chunk_size_of, puts_at_once
from offload.stores.protocols import Store, size_of
from offload.text import human_size

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher
    from offload.encryption.keys import EncryptionKey


_HELD = 4  # chunks that one request holds, while others are hashed
_AHEAD = 32 << 20  # bytes of a value from which first chunks are stored while others are hashed
_INLINE_ESCAPED = 4096  # bytes up to which escaped data travels inside its reference

logger = logging.getLogger(__name__)


class Writer:
    """Serializes values, uploads what the store lacks, and signs references.

    Args:
        resolve: what the `Ref.get` of new references calls.
        through: puts large values that are stored into the node cache, too.
        cipher: encrypts blobs; None without encryption.
        clock: returns seconds since 1970.

    Attributes:
        compress: returns the stored form of a blob's parts, before it is encrypted.
        blob_limit: maximum bytes of a blob's content, except the root's; None if there is no limit.
    """

    def __init__(
        self,
        store: Store,
        serializers: Registry,
        settings: Settings,
        counters: Counters,
        *,
        signing: SigningKeys,
        holds: Holds,
        resolve: Resolve,
        through: WriteThrough,
        cipher: BlobCipher | None,
        retrying: Retrying,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._serializers = serializers
        self._settings = settings
        self._counters = counters
        self._signing = signing
        self._holds = holds
        self._resolve = resolve
        self._through = through
        self._retrying = retrying
        self._clock = clock
        self._cipher = cipher
        self.blob_limit = chunk_size_of(store)
        self.compress = encoder(settings.compression)
        self._encoder = BlobEncoder(self.compress, cipher, puts_at_once(store))
        if self.blob_limit is not None:
            self.blob_limit -= self._encoder.overhead
        self._small = SmallWriter(
            store, counters, self._encoder, holds=holds, retrying=retrying, cipher=cipher
        )
        self._cache: DigestCache[tuple[Ref[Any], list[Digest]]] = DigestCache(settings.memo_size)

    def put(self, value: Any, *, celery_serializer: str, hold: Hold) -> Ref[Any]:
        """Store *value*, hold it, and return its reference.

        The value arrives as plain Celery would deliver it with *celery_serializer*, by kombu's
        name.

        Raises: SerializationError, ValueTooLarge, StoreUnavailable, StoreError.
        """
        cached = self.find_cached_ref(value, celery_serializer=celery_serializer, hold=hold)
        if cached is not None:
            return cached
        payload = self.serialize(value, celery_serializer)
        return self.put_payload(
            payload, hold=hold, value=value, celery_serializer=celery_serializer
        )

    def serialize(self, value: Any, celery_serializer: str) -> Payload:
        """Return *value* serialized; see `Registry.encode`."""
        with self._counters.timed("serialize") as step:
            with no_refs_within():
                payload = self._serializers.encode(value, celery_serializer)
            step.note(payload.size)
            return payload

    def prepare(
        self, value: Any, *, celery_serializer: str, hold: Hold, threshold: int, salt: str = ""
    ) -> Ref[Any] | Payload | None:
        """Return the replacement for *value* in a message or a result; None to keep the value.

        A returned payload must be stored with `put_or_inline`. The value of a returned reference is
        already held, or is inside the reference: it has less than *threshold* bytes, and
        *celery_serializer* doesn't support it.

        Args:
            salt: see `Payload`.

        Raises: SerializationError, ValueTooLarge.
        """
        cached = None
        if not salt:
            cached = self.find_cached_ref(
                value, celery_serializer=celery_serializer, hold=hold, threshold=threshold
            )
        if cached is not None:
            return cached
        payload = self.serialize(value, celery_serializer)
        self.check_size(payload)
        if payload.size >= threshold:
            return replace(payload, salt=salt) if salt else payload
        if self._leaves_to_celery(value, celery_serializer, payload):
            return None
        return self.inline_ref(payload)

    def _leaves_to_celery(self, value: Any, celery_serializer: str, payload: Payload) -> bool:
        return not payload.ships_code and self._serializers.leaves_to_celery(
            value, celery_serializer, payload
        )

    def find_cached_ref(
        self, value: Any, *, celery_serializer: str, hold: Hold, threshold: int = 0
    ) -> Ref[Any] | None:
        """Hold immutable *value* again and return a reference, if this process has stored it.

        Returns None if its size is below *threshold* bytes, if the store lost it, or if the store
        is unavailable (storing the value then raises).
        """
        found = self._cache.find(value, celery_serializer)
        if found is None or found[0].size < threshold:
            return None
        ref, digests = found
        ttl = self._holds.store_ttl(hold)
        try:
            gone = self._store.blobs.hold(digests, ttl, hold.holder)
        except StoreUnavailable:
            return None
        if gone:
            self._cache.forget(value, celery_serializer)
            return None
        self._counters.offloaded(ref.size, ref.size, whole=True)
        self._counters.add(values_remembered=1)
        return self._sign(digests, ref.size, ref.serializer, ref.type, hold, ttl)

    def store_small(
        self, payloads: Sequence[Payload], holds: Sequence[Hold]
    ) -> list[Stored | OffloadError | None]:
        """Store the small values of one message, in one round trip if they are few and new.

        Returns what `put_payload` takes as *stored*, for each value: an error for it to raise, or
        None for larger values. All of *holds* have one holder.
        """
        small = [at for at, payload in enumerate(payloads) if payload.size < SMALL]
        outcomes: list[Stored | OffloadError | None] = [None] * len(payloads)
        if not small:
            return outcomes
        try:
            done = self._small.store([payloads[at] for at in small], [holds[at] for at in small])
        except OffloadError as exc:
            for at in small:
                outcomes[at] = exc
            return outcomes
        for at, stored in zip(small, done, strict=True):
            outcomes[at] = stored
        return outcomes

    def put_payload(
        self,
        payload: Payload,
        *,
        hold: Hold,
        value: Any = None,
        celery_serializer: str = "",
        stored: Stored | OffloadError | None = None,
    ) -> Ref[Any]:
        """Store *value*, serialized as *payload*; remember its reference for the same object.

        Args:
            stored: the outcome of `store_small`, if that was called.
        """
        self.check_size(payload)
        if stored is None:
            (stored,) = self.store_small([payload], [hold])
        if isinstance(stored, OffloadError):
            raise stored
        if stored is not None:
            packed, missing, ttl = stored.packed, stored.missing, stored.ttl
            if missing:
                self._signing.refresh()
                self._counters.add(
                    blobs_uploaded=stored.upload.blobs,
                    bytes_uploaded=stored.upload.plain,
                    bytes_stored=stored.upload.stored,
                )
        else:
            packed, missing, ttl = self._put_large(payload, hold)
        digests = packed.digests
        deduplicated = packed.deduplicated(payload.size, missing)
        self._counters.offloaded(payload.size, deduplicated, whole=not missing)
        ref = self._sign(digests, payload.size, payload.serializer, payload.type, hold, ttl)
        if celery_serializer and not payload.salt:
            self._cache.remember(value, celery_serializer, (ref, digests))
        return ref

    def _put_large(self, payload: Payload, hold: Hold) -> tuple[Packed, AbstractSet[Digest], float]:
        """Store a value; return its blobs, those that were missing, and for how long it is held.

        Asks for all of its blobs first, so that nothing is sent twice.
        """
        ttl = self._holds.store_ttl(hold)
        memory = Memory()
        packed, asked, sent = self._pack(payload, hold, ttl, memory)
        digests = [digest for digest in packed.digests if digest not in asked]
        with self._through.writing(packed, payload.size), self._counters.timed("upload") as step:
            step.note(payload.size, packed.digest)
            missing = self._retrying(lambda: self._store.blobs.hold(digests, ttl, hold.holder))
            if missing and self._cipher is not None:
                packed, missing = self._find_older(payload, packed, missing, hold, ttl)
            step.note(digest=packed.digest, hit=not missing and not sent)
            if missing:
                self._upload(packed, missing, ttl, payload.size, memory)
        return packed, missing | sent, ttl

    def _pack(
        self, payload: Payload, hold: Hold, ttl: float, memory: Memory
    ) -> tuple[Packed, set[Digest], set[Digest]]:
        """Hash a value; return its blobs, those that are held already, and those just stored.

        Chunks of a very large value are held, and stored if they are missing, while others are
        hashed. If its first ones are in the store, the others are likely to be there as well, and
        are looked for together.
        """
        key = None if self._cipher is None else self.key

        def packing(each: Any = None) -> Packed:
            with self._counters.timed("hash") as step:
                packed = pack(payload, limit=self.blob_limit, key=key, each=each)
                step.note(payload.size, packed.digest)
                return packed

        asked: set[Digest] = set()
        sent: set[Digest] = set()
        if payload.size < _AHEAD or self._is_rotating:  # it may be stored under another name
            return packing(), asked, sent
        with HashAhead(packing) as hashed:
            for batch in hashed.batches(_HELD):
                missing = self._retrying(
                    lambda batch=batch: self._store.blobs.hold(  # type: ignore[misc]
                        list(batch), ttl, hold.holder
                    )
                )
                asked.update(batch)
                if not missing:
                    break
                chunks = {digest: batch[digest] for digest in batch if digest in missing}
                self._put_blobs(chunks, key, ttl, payload.size, memory)
                sent |= missing
            return hashed.packed(), asked, sent

    def put_all(
        self, payloads: Sequence[Payload], *, hold: Hold
    ) -> list[tuple[Ref[Any], list[Digest]]]:
        """Store serialized values; return the reference and the digests of each.

        All are held in one round trip, and only what is missing is uploaded. A reference's `until`
        is now, so its users must hold its value.
        """
        for payload in payloads:
            self.check_size(payload)
        size = sum(payload.size for payload in payloads)
        with self._counters.timed("hash") as step:
            step.note(size)
            key = self.key
            packed = [pack(payload, limit=self.blob_limit, key=key) for payload in payloads]
        ttl = self._holds.store_ttl(hold)
        every = list(dict.fromkeys(chain.from_iterable(each.digests for each in packed)))
        stored: list[tuple[Ref[Any], list[Digest]]] = []
        with self._counters.timed("upload") as step:
            missing = self._retrying(lambda: self._store.blobs.hold(every, ttl, hold.holder))
            step.note(size, hit=not missing)
            for payload, each in zip(payloads, packed, strict=True):
                own = missing.intersection(each.digests)
                if own and self._cipher is not None:
                    each, own = self._find_older(payload, each, own, hold, ttl)  # noqa: PLW2901
                with self._through.writing(each, payload.size):
                    if own:
                        self._upload(each, own, ttl, payload.size, Memory())
                    missing -= own
                deduplicated = each.deduplicated(payload.size, own)
                self._counters.offloaded(payload.size, deduplicated, whole=not own)
                ref = self._sign(
                    each.digests, payload.size, payload.serializer, payload.type, hold, 0.0
                )
                stored.append((ref, each.digests))
        return stored

    def put_or_inline(
        self,
        payload: Payload,
        *,
        hold: Hold,
        value: Any,
        celery_serializer: str,
        stored: Stored | OffloadError | None = None,
    ) -> Ref[Any] | None:
        """Store a serialized value as `put_payload` does, for a message or a result.

        While the store is unavailable and ``offload_on_outage`` is ``inline``, a value of up to
        ``offload_inline_limit`` bytes stays in the message: returns None if *celery_serializer*
        supports *value*, else a reference that contains it. Raises what `put_payload` raises.
        """
        try:
            return self.put_payload(
                payload,
                hold=hold,
                value=value,
                celery_serializer=celery_serializer,
                stored=stored,
            )
        except StoreUnavailable as exc:
            settings = self._settings
            if settings.on_outage != "inline" or payload.size > settings.inline_limit:
                raise
            left_to_celery = self._leaves_to_celery(value, celery_serializer, payload)
            if not left_to_celery and self._signing.known is None:
                raise StoreUnavailable(
                    f"{exc}; {celery_serializer} can send a {payload.type or 'value'} in the "
                    "message only inside a signed reference, whose key is in the store: set "
                    "offload_secret",
                    store=self._store.url,
                ) from exc
            self._counters.add(outage_inline=1)
            return None if left_to_celery else self.inline_ref(payload)

    def put_escaped(self, value: Any, *, celery_serializer: str, hold: Hold) -> Ref[Any]:
        """Return a reference to user data that itself looks like a reference."""
        payload = self._serializers.encode(value, celery_serializer)
        if payload.size < _INLINE_ESCAPED:
            return self.inline_ref(payload)
        return self.put_payload(payload, hold=hold)

    def check_size(self, payload: Payload) -> None:
        """Raise ValueTooLarge if *payload* is over ``offload_max_size``."""
        if payload.size > self._settings.max_size:
            raise ValueTooLarge(
                f"a {payload.type or 'value'} of {human_size(payload.size)} is over "
                f"offload_max_size ({human_size(self._settings.max_size)}): send less, or raise "
                "it in publishers and workers"
            )

    def inline_ref(self, payload: Payload) -> Ref[Any]:
        """Return a reference that contains the serialized value itself; store nothing."""
        ref = self.embed(payload)
        self._counters.add(values_inline=1)
        return ref

    def embed(self, payload: Payload) -> Ref[Any]:
        """Return an `inline_ref` that isn't counted, as it isn't sent. Raises ValueTooLarge."""
        packed = pack(payload, whole=True)
        if packed.chunks:
            raise ValueTooLarge(
                f"a {payload.type or 'value'} of {human_size(payload.size)} is too large to send "
                "in a message"
            )
        data = b"".join(packed.root)
        if self._cipher is not None:
            data = self._cipher.seal_inline(data)
        now = self._clock()
        return self._signing.keys.sign(
            digest=None,
            data=data,
            size=payload.size,
            serializer=payload.serializer,
            type=payload.type,
            created=now,
            until=now,
            resolve=self._resolve,
        )

    def unstored_ref(self, payload: Payload) -> Ref[Any]:
        """Return a reference with the digest that the value would have, without storing it.

        It can't be resolved or sent.
        """
        packed = pack(payload, limit=self.blob_limit, key=self.key)
        ref: Ref[Any] = Ref.unbound("unstored")
        return replace(ref, digest=packed.digest, size=payload.size)

    @property
    def key(self) -> EncryptionKey | None:
        """The key by which new blobs are named and encrypted; None without encryption.

        Raises KeyUnavailable.
        """
        return None if self._cipher is None else self._cipher.keyring.current

    @property
    def _is_rotating(self) -> bool:
        return self._cipher is not None and len(self._cipher.keyring.keys) > 1

    def _find_older(
        self, payload: Payload, packed: Packed, missing: set[Digest], hold: Hold, ttl: float
    ) -> tuple[Packed, set[Digest]]:
        """Return a value as it is stored under an older key, and held now, or else unchanged.

        While keys are rotated, a value isn't stored again only because of its new name.
        """
        if self._cipher is None or packed.digest not in missing:
            return packed, missing
        blobs, keys = self._store.blobs, self._cipher.keyring.keys
        for key in keys[1:]:
            older = pack(payload, limit=self.blob_limit, key=key)
            for digests in ([older.digest], older.digests):  # mostly, even the root is missing
                if self._retrying(lambda some=digests: blobs.hold(some, ttl, hold.holder)):  # type: ignore[misc]
                    break
            else:
                return older, set()
        return packed, missing

    def _sign(
        self,
        digests: list[Digest],
        size: int,
        serializer: str,
        type_name: str,
        hold: Hold,
        ttl: float,
    ) -> Ref[Any]:
        now = self._clock()
        until = self._holds.note(digests, hold, now + ttl)
        return self._signing.keys.sign(
            digest=digests[0],
            data=None,
            size=size,
            serializer=serializer,
            type=type_name,
            created=now,
            until=until,
            resolve=self._resolve,
        )

    def _upload(
        self, packed: Packed, missing: set[Digest], ttl: float, size: int, memory: Memory
    ) -> None:
        """Write missing blobs, chunks first: a root is never stored without its chunks."""
        wanted: dict[Digest, Sequence[Buffer]] = {
            chunk.digest: parts for chunk, parts in packed.chunks if chunk.digest in missing
        }
        if packed.digest in missing:
            wanted[packed.digest] = packed.root
        self._put_blobs(wanted, packed.key, ttl, size, memory)

    def _put_blobs(
        self,
        wanted: Mapping[Digest, Sequence[Buffer]],
        key: EncryptionKey | None,
        ttl: float,
        size: int,
        memory: Memory,
    ) -> None:
        """Write blobs of a value of *size* bytes, some at a time, encrypted with *key*."""
        self._signing.refresh()
        for plain_bytes, blobs in self._encoder.batches(wanted, key, memory):
            self._retrying(
                lambda blobs=blobs: self._store.blobs.put(  # type: ignore[misc]
                    blobs, ttl, value_size=size
                )
            )
            self._counters.add(
                blobs_uploaded=len(blobs),
                bytes_uploaded=plain_bytes,
                bytes_stored=sum(map(size_of, blobs.values())),
            )
            bar = uploading.get()
            if bar is not None:
                bar.add(plain_bytes, size)
