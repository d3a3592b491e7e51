"""Content of stored blobs, found by digest alone and never decoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from offload.content.encoding import MAX_OVERHEAD, decode_prefix, read_blob
from offload.content.manifest import (
    INSPECTED,
    ROOT_LIMIT,
    Chunk,
    Manifest,
    ManifestPrefix,
    aligned,
    is_fragmented,
    is_root,
    read_prefix,
    read_root,
    root_limit,
)
from offload.digest import Buffer, Digest
from offload.errors import IntegrityError
from offload.stores.capabilities import BlobPeek, blob_inspection_of
from offload.stores.protocols import Store

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher

_PREFIX_SIZES = (4 << 10, 256 << 10, INSPECTED + (64 << 10))
"""How many stored bytes to read to identify a blob: each size is tried if the one before was too
small. The second covers the first block of a compressed blob, the third the longest header."""
_BATCH_BYTES = 16 << 20  # bytes of prefixes in one request
_BATCH = 512  # blobs whose summaries are in memory at a time
_USUAL_HEADER = 64 << 10  # plain bytes within which a root's header usually ends


@dataclass(frozen=True)
class BlobSummary:
    """The probable kind of a blob, judged by its first bytes, which aren't verified.

    Attributes:
        seen: its size, expiry, and first bytes.
        root: its manifest; None if it isn't the root of a value.
        known: False if offload didn't write it, or if its encoding is unknown.
    """

    digest: Digest
    seen: BlobPeek
    root: ManifestPrefix | None
    known: bool = True


def summarize_blobs(
    store: Store, digests: Sequence[Digest], cipher: BlobCipher | None = None
) -> Iterator[BlobSummary | None]:
    """Yield a summary of each blob, in order; None for a missing blob.

    Args:
        cipher: decrypts blobs; None without encryption.

    Raises ConfigurationError if the store doesn't support inspection.
    """
    for at in range(0, len(digests), _BATCH):
        some = digests[at : at + _BATCH]
        found: dict[Digest, BlobSummary | None] = {}
        unclear: Sequence[Digest] = some
        for size in _PREFIX_SIZES:
            longer = []
            for digest, seen in _peek(store, unclear, size):
                summary = None if seen is None else _summary(digest, seen, cipher)
                found[digest] = summary
                if summary is not None and not summary.known and summary.seen.size > size:
                    longer.append(digest)
            unclear = longer
        yield from map(found.__getitem__, some)


def _peek(
    store: Store, digests: Sequence[Digest], size: int
) -> Iterator[tuple[Digest, BlobPeek | None]]:
    """Yield the first *size* bytes of each blob, reading at most `_BATCH_BYTES` per request."""
    most = max(_BATCH_BYTES // size, 1)
    for start in range(0, len(digests), most):
        batch = digests[start : start + most]
        yield from zip(batch, blob_inspection_of(store).peek(batch, size), strict=True)


def _summary(digest: Digest, seen: BlobPeek, cipher: BlobCipher | None) -> BlobSummary:
    prefix = seen.prefix if cipher is None else cipher.decrypt_prefix(seen.prefix, digest)
    plain = decode_prefix(prefix, _USUAL_HEADER)
    whole = len(seen.prefix) == seen.size
    starts = is_root(plain)
    root = read_prefix(plain) if starts else None
    if starts and root is None and len(plain) == _USUAL_HEADER:
        root = read_prefix(decode_prefix(prefix, INSPECTED + _USUAL_HEADER))
    is_chunk = starts is False or (starts is None and whole and len(plain) > 0)
    return BlobSummary(digest, replace(seen, prefix=b""), root, root is not None or is_chunk)


class BlobContent:
    """The verified content of a blob, or of a whole value if the blob is its root.

    Attributes:
        digest: the blob's digest; None for a value inside its reference.
        manifest: the value's manifest; None if the blob isn't a root.
        size: bytes of the content.
    """

    def __init__(
        self,
        store: Store,
        digest: Digest | None,
        plain: memoryview,
        manifest: Manifest | None,
        cipher: BlobCipher | None = None,
    ) -> None:
        self.digest = digest
        self.manifest = manifest
        self.size = len(plain) if manifest is None else manifest.value_size
        self._store = store
        self._cipher = cipher
        self._plain = plain

    def head(self) -> bytes:
        """Return the serializer's head; empty if the blob isn't a root."""
        if self.manifest is None:
            return b""
        if self.manifest.head is not None:
            return bytes(self.manifest.head)
        return self.read(0, ROOT_LIMIT)

    @property
    def first(self) -> int:
        """The index of the first buffer after the head."""
        return int(self.manifest is not None and self.manifest.head is None)

    def read(self, number: int, limit: int) -> bytes:
        """Return the first *limit* bytes of a buffer, or all, fetching only the chunks needed.

        Raises BlobMissing, IntegrityError, StoreUnavailable.
        """
        if self.manifest is None:
            return bytes(self._plain[:limit])
        sizes = self.manifest.sizes
        start = sum(map(aligned, sizes[:number]))
        end = start + min(sizes[number], limit)
        found = bytearray()
        for at, piece in self._pieces(start, end):
            found += piece[max(start - at, 0) : end - at]
        return bytes(found)

    def buffers(self) -> Iterator[memoryview]:
        """Yield the content without the head, in verified pieces of a few MiB.

        Raises BlobMissing, IntegrityError, StoreUnavailable.
        """
        if self.manifest is None:
            yield self._plain
            return
        sizes = self.manifest.sizes[self.first :]
        start = sum(map(aligned, self.manifest.sizes[: self.first]))
        end = start + sum(map(aligned, sizes))
        pieces = (piece[max(start - at, 0) :] for at, piece in self._pieces(start, end))
        yield from _without_padding(pieces, sizes)

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, memoryview]]:
        """Yield the chunks that overlap this range of the body, each with its offset."""
        manifest = self.manifest
        assert manifest is not None  # noqa: S101 (for the type checker: roots only come here)
        if not manifest.chunks:
            yield 0, manifest.body
            return
        at = 0
        wanted: list[tuple[int, Chunk]] = []
        for chunk in manifest.chunks:
            if at < end and at + chunk.size > start:
                wanted.append((at, chunk))
            at += chunk.size
        limit = max((chunk.size for _, chunk in wanted), default=0)
        if limit > ROOT_LIMIT:
            raise self._integrity_error(f"it has a chunk of {limit} bytes")
        blobs = self._store.blobs.get([c.digest for _, c in wanted], limit + MAX_OVERHEAD)
        for (position, chunk), stored in zip(wanted, blobs, strict=True):
            plain = _verified(self._store, chunk.digest, stored, chunk.size, self._cipher)
            if len(plain) != chunk.size:
                raise self._integrity_error(f"its chunk {chunk.digest} has {len(plain)} bytes")
            yield position, plain

    def _integrity_error(self, reason: str) -> IntegrityError:
        return IntegrityError(
            f"{self.digest} in {self._store.url} is not a stored value: {reason}",
            digest=self.digest,
            store=self._store.url,
        )


def read_content(
    store: Store,
    digest: Digest | None,
    *,
    data: bytes | None = None,
    size: int | None = None,
    cipher: BlobCipher | None = None,
) -> BlobContent:
    """Read and verify a blob; if it is a root, its chunks are read later.

    Args:
        data: the root if it is inside a reference; *digest* is then None.
        size: bytes of the value as its reference states; if given, the blob must be its root.
        cipher: decrypts blobs; None without encryption.

    Raises BlobMissing, IntegrityError, StoreUnavailable.
    """
    if data is not None:
        if cipher is not None:
            data = cipher.open_inline(data, "the reference")
        root = memoryview(data)
        return BlobContent(store, None, root, read_root(root, size=size, where="the reference"))
    assert digest is not None  # noqa: S101 (for the type checker: one of them is given)
    limit = ROOT_LIMIT if size is None else root_limit(size)
    (stored,) = store.blobs.get([digest], limit + MAX_OVERHEAD)
    plain = _verified(store, digest, stored, limit, cipher)
    where = f"{digest} in {store.url}"
    try:
        manifest = read_root(plain, size=size, where=where)
    except IntegrityError:
        if size is not None or is_fragmented(plain):
            raise
        return BlobContent(store, digest, plain, None, cipher)
    return BlobContent(store, digest, plain, manifest, cipher)


def _verified(
    store: Store, digest: Digest, stored: Buffer, limit: int, cipher: BlobCipher | None
) -> memoryview:
    try:
        return read_blob(stored, digest, limit, f"{digest} in {store.url}", cipher)
    except IntegrityError as exc:
        raise IntegrityError(str(exc), digest=digest, store=store.url) from exc


def _without_padding(pieces: Iterable[memoryview], sizes: Sequence[int]) -> Iterator[memoryview]:
    """Yield the bytes of buffers of these *sizes* from *pieces*, dropping the padding."""
    spans = iter([span for s in sizes for span in ((s, True), (aligned(s) - s, False))])
    left, wanted = next(spans, (0, False))
    for piece in pieces:
        rest = piece
        while True:
            taken = rest[:left]
            if wanted and len(taken):
                yield taken
            rest, left = rest[len(taken) :], left - len(taken)
            if left:
                break
            following = next(spans, None)
            if following is None:
                return
            left, wanted = following
