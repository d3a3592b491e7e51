"""Stored blobs as operators look at them: found by their digests alone, and never decoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from offload.content.manifest import (
    INSPECTED,
    ROOT_LIMIT,
    Chunk,
    Manifest,
    Sketch,
    aligned,
    is_fragmented,
    is_root,
    read_root,
    root_limit,
    sketch,
)
from offload.content.stored import MAX_OVERHEAD, decode, decode_begin
from offload.digest import Digest, digest_of
from offload.errors import IntegrityError
from offload.stores.capabilities import BlobPeek, blob_inspection_of
from offload.stores.protocols import Store

__all__ = ("Content", "Glance", "content_of", "glance")

_BEGINS = (4 << 10, 256 << 10, INSPECTED + (64 << 10))
"""Stored bytes by which it is tried to tell what a blob is: most need few of them. The second
has the first block of a compressed blob, the third the longest header that is read."""
_AT_ONCE = 16 << 20  # bytes of beginnings
_MANY = 512  # blobs of which what was seen is kept
_USUAL = 64 << 10  # plain bytes in which a root's header ends


@dataclass(frozen=True)
class Glance:
    """What a blob seems to be, by its beginning; not verified.

    Attributes:
        seen: what the store says.
        root: what it says as the root of a value; None for one that is none.
        known: False if it is not one of ours, or stored in an unknown way.
    """

    digest: Digest
    seen: BlobPeek
    root: Sketch | None
    known: bool = True


def glance(store: Store, digests: Sequence[Digest]) -> Iterator[Glance | None]:
    """Yield what each blob seems to be, in their order; None for one that is not there.

    Raises ConfigurationError for a store that cannot be looked at.
    """
    for at in range(0, len(digests), _MANY):
        some = digests[at : at + _MANY]
        found: dict[Digest, Glance | None] = dict.fromkeys(some)
        wanted: Sequence[Digest] = some
        for size in _BEGINS:
            unclear = []
            each = max(_AT_ONCE // size, 1)
            for begin in range(0, len(wanted), each):
                batch = wanted[begin : begin + each]
                for digest, seen in zip(
                    batch, blob_inspection_of(store).peek(batch, size), strict=True
                ):
                    told = None if seen is None else _told(digest, seen)
                    found[digest] = told
                    if told is not None and not told.known and told.seen.size > size:
                        unclear.append(digest)
            wanted = unclear
            if not wanted:
                break
        yield from map(found.__getitem__, some)


def _told(digest: Digest, seen: BlobPeek) -> Glance:
    plain = decode_begin(seen.prefix, _USUAL)
    whole = len(seen.prefix) == seen.size
    starts = is_root(plain)
    root = sketch(plain) if starts else None
    if starts and root is None and len(plain) == _USUAL:
        root = sketch(decode_begin(seen.prefix, INSPECTED + _USUAL))
    known = root is not None or starts is False or (whole and len(plain) > 0 and not starts)
    return Glance(digest, replace(seen, prefix=b""), root, known)


class Content:
    """What a blob holds, verified: the content of a value if it is the root of one, else its own.

    Attributes:
        digest: of the blob; None for a value that travelled within its reference.
        manifest: None where it is no root.
        size: bytes of the content.
    """

    def __init__(
        self, store: Store, digest: Digest | None, plain: memoryview, manifest: Manifest | None
    ) -> None:
        self.digest = digest
        self.manifest = manifest
        self.size = len(plain) if manifest is None else manifest.value_size
        self._store = store
        self._plain = plain

    def head(self) -> bytes:
        """Return the serializer's head; empty for what is no root."""
        if self.manifest is None:
            return b""
        if self.manifest.head is not None:
            return bytes(self.manifest.head)
        return self.read(0, ROOT_LIMIT)

    @property
    def first(self) -> int:
        """The number of the first buffer that is not the head."""
        return int(self.manifest is not None and self.manifest.head is None)

    def read(self, number: int, limit: int) -> bytes:
        """Return up to the first *limit* bytes of a buffer, fetching the chunks that have them."""
        if self.manifest is None:
            return bytes(self._plain[:limit])
        sizes = self.manifest.sizes
        begin = sum(map(aligned, sizes[:number]))
        end = begin + min(sizes[number], limit)
        found = bytearray()
        for at, piece in self._pieces(begin, end):
            found += piece[max(begin - at, 0) : end - at]
        return bytes(found)

    def buffers(self) -> Iterator[memoryview]:
        """Yield the content but the head, in pieces of up to some MiB, each verified."""
        if self.manifest is None:
            yield self._plain
            return
        sizes = self.manifest.sizes[self.first :]
        begin = sum(map(aligned, self.manifest.sizes[: self.first]))
        end = begin + sum(map(aligned, sizes))
        pieces = (piece[max(begin - at, 0) :] for at, piece in self._pieces(begin, end))
        yield from _without_padding(pieces, sizes)

    def _pieces(self, begin: int, end: int) -> Iterator[tuple[int, memoryview]]:
        """Yield the pieces of the body that have what lies there, and where each begins."""
        manifest = self.manifest
        assert manifest is not None  # noqa: S101 (for the type checker: roots only come here)
        if not manifest.chunks:
            yield 0, manifest.body
            return
        at = 0
        wanted: list[tuple[int, Chunk]] = []
        for chunk in manifest.chunks:
            if at < end and at + chunk.size > begin:
                wanted.append((at, chunk))
            at += chunk.size
        limit = max((chunk.size for _, chunk in wanted), default=0)
        if limit > ROOT_LIMIT:
            raise self._altered(f"it has a chunk of {limit} bytes")
        blobs = self._store.blobs.get([c.digest for _, c in wanted], limit + MAX_OVERHEAD)
        for (start, chunk), stored in zip(wanted, blobs, strict=True):
            plain = _verified(self._store, chunk.digest, stored, chunk.size)
            if len(plain) != chunk.size:
                raise self._altered(f"its chunk {chunk.digest} has {len(plain)} bytes")
            yield start, plain

    def _altered(self, what: str) -> IntegrityError:
        return IntegrityError(
            f"{self.digest} in {self._store.url} is not a stored value: {what}",
            digest=self.digest,
            store=self._store.url,
        )


def content_of(
    store: Store, digest: Digest | None, *, data: bytes | None = None, size: int | None = None
) -> Content:
    """Return what a blob holds.

    Args:
        data: the root itself, where it travelled within a reference; *digest* is None then.
        size: what the reference says, which makes it an error if it is no such root.

    Raises BlobMissing, IntegrityError, StoreUnavailable.
    """
    if data is not None:
        root = memoryview(data)
        return Content(store, None, root, read_root(root, size=size, where="the reference"))
    assert digest is not None  # noqa: S101 (for the type checker: one of them is given)
    limit = ROOT_LIMIT if size is None else root_limit(size)
    (stored,) = store.blobs.get([digest], limit + MAX_OVERHEAD)
    plain = _verified(store, digest, stored, limit)
    where = f"{digest} in {store.url}"
    try:
        manifest = read_root(plain, size=size, where=where)
    except IntegrityError:
        if size is not None or is_fragmented(plain):
            raise
        return Content(store, digest, plain, None)
    return Content(store, digest, plain, manifest)


def _verified(store: Store, digest: Digest, stored: object, limit: int) -> memoryview:
    plain = decode(stored, limit, f"{digest} in {store.url}")  # type: ignore[arg-type]
    found = digest_of([plain])
    if found != digest:
        raise IntegrityError(
            f"{digest} was altered in {store.url}: its content has the digest {found}",
            digest=digest,
            store=store.url,
        )
    return plain


def _without_padding(pieces: Iterable[memoryview], sizes: Sequence[int]) -> Iterator[memoryview]:
    """Yield the bytes of buffers of these *sizes* that lie in *pieces*, each padded."""
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
