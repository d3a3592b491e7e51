"""Reading: a reference in, its value out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from offload.content.cache import AT_ONCE, Assembly, InMemory, NodeCache
from offload.content.digest_cache import KnownBlobs
from offload.content.encoding import MAX_OVERHEAD, read_blob
from offload.content.manifest import (
    ALIGNMENT,
    HEAD_LIMIT,
    SINGLE,
    Manifest,
    Piece,
    read_root,
    root_limit,
)
from offload.content.memory import allocate
from offload.content.retrying import Retrying
from offload.digest import Buffer, Digest
from offload.errors import (
    BlobMissing,
    DeserializationError,
    IntegrityError,
    InvalidRef,
    OffloadError,
    StoreError,
    ValueTooLarge,
)
from offload.metrics.counters import Counters
from offload.ref import Ref
from offload.serializers.choose import Registry
from offload.stores.processes import Threads
from offload.stores.protocols import Store
from offload.text import human_size

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher

T = TypeVar("T")
Cached = Literal["trust", "check", "skip"]

_BATCH_BYTES = 16 << 20  # of small values, fetched in one round trip by `Reader.get_all`
_THREADS = Threads(AT_ONCE, "offload-decrypt")  # of all apps


class Reader:
    """Fetches, verifies, and decodes values.

    Args:
        max_size: bytes of the largest value that is read.
        known: notes the blobs of each value that is read.
        cache: asked for large values before the store.
        cipher: decrypts blobs; None without encryption.
        clock: returns seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        serializers: Registry,
        counters: Counters,
        *,
        max_size: int,
        known: KnownBlobs,
        cache: NodeCache | None,
        cipher: BlobCipher | None,
        retrying: Retrying,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._serializers = serializers
        self._counters = counters
        self._max_size = max_size
        self._known = known
        self._cache = cache
        self._cipher = cipher
        self._retrying = retrying
        self._clock = clock

    def get(self, ref: Ref[T], cached: Cached = "trust") -> T:
        """Return the value of *ref*, which this content store opened or created.

        Args:
            cached: what to do with the value in the node cache: ``trust`` it as the node cache's
                settings say; ``check`` all of it, and fetch it again if it was altered; or
                ``skip`` it, and read the store.

        Raises (all are counted):
            SerializerNotAccepted: decoding needs a serializer that the app doesn't accept.
            ValueTooLarge: the value is over ``offload_max_size``; nothing was fetched.
            BlobMissing, IntegrityError, StoreUnavailable: see `offload.errors`.
        """
        with self._counted():
            self._check(ref)
            if ref.data is None:
                return self._retrying(lambda: self._get(ref, cached))
            where = f"the content of {ref!r}"
            data = ref.data
            if self._cipher is not None:
                data = self._cipher.open_inline(data, where)
            manifest = read_root(memoryview(data), size=ref.size, where=where)
            return self._value(ref, manifest, _copied(manifest.body))

    def get_all(self, refs: Sequence[Ref[Any]], cached: Cached = "trust") -> Iterator[Any]:
        """Yield the value of each of *refs*; see `get`.

        Small values are fetched together, up to 16 MiB in a round trip, when the first of them
        is needed. Raises the errors of `get`, each when its reference is reached.
        """
        for batch in _batches(refs):
            roots = self._small_roots(batch) if len(batch) > 1 else {}
            for ref in batch:
                root = roots.get(ref.digest)
                yield self.get(ref, cached) if root is None else self._get_small(ref, root)

    def _small_roots(self, refs: Sequence[Ref[Any]]) -> dict[Digest | None, Buffer]:
        """Return the stored root blobs of small values by digest.

        Makes one attempt. If one can't be read, returns none: `get` then retries, and raises
        the error.
        """
        sizes = {ref.digest: ref.size for ref in refs if ref.digest and ref.size <= self._max_size}
        if len(sizes) < 2:
            return {}
        limit = max(sizes.values()) + HEAD_LIMIT
        try:
            with self._counters.timed("fetch") as step:
                step.note(sum(sizes.values()), hit=False)
                found = list(self._store.blobs.get([*sizes], limit))
        except StoreError:
            return {}
        return dict(zip(sizes, found, strict=True))

    def _get_small(self, ref: Ref[T], stored: Buffer) -> T:
        with self._counted():
            self._check(ref)
            _, manifest = self._read_root(ref, stored, root_limit(ref.size))
            value = self._value(ref, manifest, self._read_body(ref, manifest, self._in_memory))
        self._counters.add(values_fetched=1, bytes_fetched=ref.size)
        return value

    def _get(self, ref: Ref[T], cached: Cached) -> T:
        cache, digest = None if cached == "skip" else self._cache, ref.digest
        if cache is None or digest is None or ref.size < SINGLE:
            with self._counters.timed("fetch") as step:
                step.note(ref.size, digest, hit=False)
                _, manifest = self._root(ref)
                body = self._read_body(ref, manifest, self._in_memory)
            value = self._value(ref, manifest, body)
            self._counters.add(values_fetched=1, bytes_fetched=ref.size)
            return value
        with cache.fill(digest, ref.size) as fill:
            found = fill.found
            if found is not None and (cached == "trust" or cache.is_intact(found)):
                self._known.note(found.manifest.digests(digest))
                try:
                    value = self._value(ref, found.manifest, found.body)
                except (DeserializationError, IntegrityError):
                    if cache.is_intact(found):
                        raise
                else:
                    self._counters.cache_hit(ref.size, digest)
                    return value
            with self._counters.timed("fetch") as step:
                step.note(ref.size, digest, hit=False)
                root, manifest = self._root(ref)
                body = self._read_body(ref, manifest, lambda m: fill.assembly(root, m))
        self._counters.add(values_fetched=1, bytes_fetched=ref.size, cache_misses=1)
        return self._value(ref, manifest, body)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count an error that leaves this block."""
        try:
            yield
        except OffloadError as exc:
            self._counters.failed(exc)
            raise

    def _check(self, ref: Ref[Any]) -> None:
        if ref.late is not None:
            raise InvalidRef(
                f"{ref!r} has no value yet: pass it to a task, or load the object from the catalog"
            )
        self._serializers.check_accepted(ref.serializer)
        if ref.size > self._max_size:
            raise ValueTooLarge(
                f"{ref!r} is over offload_max_size ({human_size(self._max_size)}): set it here as "
                "high as where the value comes from"
            )

    # -- prefetching into the node cache

    def prefetch_limit(self) -> int:
        """Return the bytes of values that `prefetch` may fetch for waiting tasks; 0 if none."""
        return 0 if self._cache is None else self._cache.prefetch_limit()

    def prefetch(self, ref: Ref[Any]) -> bool:
        """Fetch the value of *ref* into the node cache without decoding it.

        Returns False if it wasn't fetched: it is cached, is being fetched by another process,
        is too small, or the cache is full. Makes one attempt.

        Raises what `get` does, and OSError if the cache fails.
        """
        self._check(ref)
        cache, digest = self._cache, ref.digest
        if cache is None or digest is None or ref.size < SINGLE:
            return False
        with cache.fill(digest, ref.size, wait=False) as fill:
            if fill.found is not None or fill.part is None:
                return False
            root, manifest = self._root(ref)
            file = fill.file(root, manifest) if manifest.chunks else None
            if file is None:
                return False
            self._read_body(ref, manifest, lambda _: file)
        self._counters.add(prefetch_done=1, prefetch_bytes=ref.size)
        return True

    # -- blobs

    def read_digests(self, ref: Ref[Any]) -> list[Digest]:
        """Return the digests of all blobs of a stored value, its root first; reads its manifest."""
        _, manifest = self._root(ref)
        return manifest.digests(_digest(ref))

    def fetch(self, ref: Ref[Any], digests: Sequence[Digest], limit: int) -> Iterable[Buffer]:
        """Yield blobs of *ref* as they are stored, each of at most *limit* bytes."""
        try:
            yield from self._store.blobs.get(digests, limit)
        except BlobMissing as exc:
            raise self.missing_error(ref, exc.digest or digests[0]) from exc
        except IntegrityError as exc:
            raise self._integrity_error(ref, exc.digest or digests[0], str(exc)) from exc

    def _root(self, ref: Ref[Any]) -> tuple[memoryview, Manifest]:
        limit = root_limit(ref.size)
        (stored,) = self.fetch(ref, [_digest(ref)], limit + MAX_OVERHEAD)
        return self._read_root(ref, stored, limit)

    def _read_root(self, ref: Ref[Any], stored: Buffer, limit: int) -> tuple[memoryview, Manifest]:
        digest = _digest(ref)
        where = f"{ref!r} in {self._store.url}"
        try:
            root = read_blob(stored, digest, limit, where, self._cipher)
        except IntegrityError as exc:
            raise self._integrity_error(ref, digest, str(exc)) from exc
        manifest = read_root(root, size=ref.size, where=where)
        self._known.note(manifest.digests(digest))
        return root, manifest

    def _read_body(
        self, ref: Ref[Any], manifest: Manifest, assembly: Callable[[Manifest], Assembly]
    ) -> memoryview:
        """Fetch and verify all chunks, and return the body assembled from them.

        Threads decrypt chunks while the next ones arrive.
        """
        if not manifest.chunks:
            return _copied(manifest.body)
        assembled = assembly(manifest)
        limit = max(chunk.size for chunk in manifest.chunks) + MAX_OVERHEAD
        blobs = self.fetch(ref, [chunk.digest for chunk in manifest.chunks], limit)
        whole = f"{ref!r} in {self._store.url}"

        def decode(item: tuple[Piece, Buffer]) -> memoryview:
            piece, stored = item
            digest = piece.chunk.digest
            try:
                return assembled.decode(piece, stored, f"chunk {digest} of {whole}")
            except IntegrityError as exc:
                raise self._integrity_error(ref, digest, str(exc)) from exc

        items = zip(manifest.pieces(), blobs, strict=True)
        for plain in _THREADS.ahead(decode, items, 1 if self._cipher is None else AT_ONCE):
            assembled.keep(plain)
        return assembled.body()

    def _in_memory(self, manifest: Manifest) -> Assembly:
        return InMemory(manifest, self._cipher)

    def _value(self, ref: Ref[T], manifest: Manifest, body: memoryview) -> T:
        if manifest.serializer != ref.serializer:
            raise IntegrityError(
                f"{ref!r} names serializer {ref.serializer!r}, its content {manifest.serializer!r}",
                digest=ref.digest,
                store=self._store.url,
            )
        head, buffers = manifest.split(body)
        with self._counters.timed("decode") as step:
            step.note(ref.size, ref.digest)
            value: T = self._serializers.decode(ref.serializer, head, buffers)
        return value

    def missing_error(self, ref: Ref[Any], digest: str) -> BlobMissing:
        return BlobMissing(
            f"{ref!r} (blob {digest}) is not in the store {self._store.url}; the reference is "
            f"{self._age(ref)} old: it outlived offload_retention, or offload_grace after its task "
            "ended, or the store was emptied or evicts keys. Send it again; if it was needed for "
            "longer, raise offload_retention; celery offload doctor checks the store",
            digest=digest,
            store=self._store.url,
        )

    def _integrity_error(self, ref: Ref[Any], digest: str, reason: str) -> IntegrityError:
        return IntegrityError(
            f"{ref!r} (blob {digest}) was altered in the store {self._store.url}: {reason}; the "
            f"reference is {self._age(ref)} old; delete the blob and publish again",
            digest=digest,
            store=self._store.url,
        )

    def _age(self, ref: Ref[Any]) -> str:
        return f"{max(0.0, self._clock() - ref.created):.0f} s"


def _digest(ref: Ref[Any]) -> Digest:
    assert ref.digest is not None  # noqa: S101 (for the type checker: other refs hold data)
    return ref.digest


def _batches(refs: Iterable[Ref[Any]]) -> Iterator[list[Ref[Any]]]:
    """Split *refs* into those fetched in one round trip: small values, or a single large one."""
    batch: list[Ref[Any]] = []
    size = 0
    for ref in refs:
        is_small = ref.size < SINGLE
        if batch and (not is_small or size + ref.size > _BATCH_BYTES):
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
    """Return a copy of *body* in private, writable, aligned memory."""
    own = allocate(len(body), ALIGNMENT)
    own[:] = body
    return own
