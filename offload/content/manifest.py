"""The stored form of a value: a root blob, and chunks where the value is large.

Root blob, in bytes::

    0   8   magic "OFFLOAD1"
    8   4   length H of the header, little-endian
    12  4   length P of the serializer's head, little-endian
    16  H   header: JSON, see below
    .   P   the serializer's head
    .       zeros up to a multiple of 64
    .       the body, unless the header lists chunks

The body is the value's buffers one after another, each followed by zeros up to a
multiple of 64, so that every buffer can be used where it lies. The header is
``{"b": [size, …], "s": serializer}``. It may also have:

- ``"c": [[digest, size], …]`` if the body is cut into chunks;
- ``"x": 1`` if the first buffer is the serializer's head, which is too long for the root;
- ``"u": text`` if the root must differ from that of an equal value.

The digest of the root blob names the value: it covers the chunks by their digests.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import orjson

from offload.digest import Buffer, Digest, digest_of, digests_of, parse_digest
from offload.encryption.keys import EncryptionKey
from offload.errors import IntegrityError, SerializationError
from offload.serializers.base import Payload

ALIGNMENT = 64
CHUNK = 4 * 1024**2
"""Bytes of a chunk: the fastest size on Redis, see benchmarks."""
SINGLE = 1024**2
"""Values below this many bytes are one blob; larger buffers start a chunk of their own."""
HEAD_LIMIT = 64 * 1024
_TINY = 1024  # a value with fewer bytes, in one buffer, has one of a few layouts, which are cached
_LEAST_LIMIT = 16 * 1024  # bytes; a tiny value's blob certainly fits into such a limit of blobs
_ROOM = 4096  # bytes of a root blob besides head and body, for values of few buffers
INSPECTED = 256 * 1024
"""Bytes of a header that is read where no reference says how large the value is."""
ROOT_LIMIT = 16 * 1024**2
"""Bytes that no root blob exceeds."""

_LEAST = 256
"""Bytes of a buffer, except for a few: serializers leave smaller ones in their heads."""
_SMALLEST_CHUNK = 64 * 1024  # bytes, see the option chunk_size of stores
_FIXED = 256  # bytes of a header besides its lists
_PER_BUFFER, _PER_CHUNK = 22, 100  # bytes in a header

_GREATEST = 1 << 63  # more than any size
_MAGIC = b"OFFLOAD1"
_PREFIX = struct.Struct("<8sII")
_ZEROS = bytes(ALIGNMENT)


def aligned(size: int) -> int:
    """Return *size* rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _most_buffers(size: int) -> int:
    return 16 + size // _LEAST


def _most_chunks(size: int) -> int:
    return 4 + 4 * size // _SMALLEST_CHUNK


def _header_limit(size: int) -> int:
    return _FIXED + _PER_BUFFER * _most_buffers(size) + _PER_CHUNK * _most_chunks(size)


def root_limit(size: int) -> int:
    """Return the maximum bytes of the root blob of a value of *size* bytes."""
    padding = ALIGNMENT * (_most_buffers(size) + 2)
    return min(ROOT_LIMIT, _PREFIX.size + _header_limit(size) + size + padding)


@dataclass(frozen=True)
class Chunk:
    """A piece of a value's body: *size* plain bytes, named *digest*."""

    digest: Digest
    size: int


class Piece(NamedTuple):
    """A chunk of a value, and where it belongs.

    Attributes:
        number: of the chunk.
        offset: of its bytes in the body.
    """

    number: int
    offset: int
    chunk: Chunk


@dataclass(frozen=True)
class Packed:
    """A value ready to be stored; its parts are the value's own memory.

    Attributes:
        digest: of the root, and so the name of the value.
        root: the root blob's parts.
        chunks: each chunk and its parts, in order.
        key: by which the blobs are named, and encrypted; None without encryption.
    """

    digest: Digest
    root: Sequence[Buffer]
    chunks: Sequence[tuple[Chunk, Sequence[Buffer]]]
    key: EncryptionKey | None = None

    @property
    def digests(self) -> list[Digest]:
        return [self.digest, *(chunk.digest for chunk, _ in self.chunks)]

    def deduplicated(self, size: int, missing: AbstractSet[Digest]) -> int:
        """Return how many of the value's *size* bytes are already in the store.

        *missing* are the blobs that are not; of a chunk that occurs twice, only one is.
        """
        if not missing:
            return size
        new = {chunk.digest: chunk.size for chunk, _ in self.chunks if chunk.digest in missing}
        there = sum(chunk.size for chunk, _ in self.chunks) - sum(new.values())
        return min(size, there)  # chunks are padded


@dataclass(frozen=True)
class Manifest:
    """The content of a root blob.

    Attributes:
        serializer: name of the serializer that reads the value.
        head: the serializer's head; None if it is the first buffer.
        sizes: bytes of each buffer.
        chunks: the pieces of the body; empty if the body is in the root itself.
        body: the body in the root, if there are no chunks.
    """

    serializer: str
    head: memoryview | None
    sizes: Sequence[int]
    chunks: Sequence[Chunk]
    body: memoryview

    @property
    def body_size(self) -> int:
        return sum(map(aligned, self.sizes))

    @property
    def value_size(self) -> int:
        return sum(self.sizes) + (len(self.head) if self.head is not None else 0)

    def digests(self, root: Digest) -> list[Digest]:
        """Return the digests of all blobs of the value: its *root*, then its chunks."""
        return [root, *(chunk.digest for chunk in self.chunks)]

    def pieces(self) -> Iterator[Piece]:
        """Yield the chunks and their offsets."""
        offset = 0
        for number, chunk in enumerate(self.chunks):
            yield Piece(number, offset, chunk)
            offset += chunk.size

    def split(self, body: memoryview) -> tuple[memoryview, list[memoryview]]:
        """Return the head and the buffers, as views of *body*."""
        buffers = []
        offset = 0
        for size in self.sizes:
            buffers.append(body[offset : offset + size])
            offset += aligned(size)
        return (buffers[0], buffers[1:]) if self.head is None else (self.head, buffers)


def pack(
    payload: Payload,
    *,
    whole: bool = False,
    limit: int | None = None,
    key: EncryptionKey | None = None,
    each: Callable[[Chunk, Sequence[Buffer]], None] | None = None,
) -> Packed:
    """Lay out *payload* as blobs, hash them, and copy nothing.

    With *whole*, a value of less than half of `ROOT_LIMIT` is one blob. *limit* is the maximum
    bytes of a blob, except the root, which grows by 90 bytes with each chunk. With *key*, blobs
    have keyed names. *each* is called with each chunk and its parts, in order, once it is hashed.
    Raises SerializationError if the value has too many buffers.
    """
    names = None if key is None else key.names
    head, buffers = payload.head, list(payload.buffers)
    is_tiny = payload.size < _TINY and len(buffers) == 1 and not payload.salt
    if is_tiny and (limit or CHUNK) >= _LEAST_LIMIT:
        [only] = buffers
        start = _tiny_start(payload.serializer, head, only.nbytes)
        root: list[Buffer] = [start, only, _padding(only.nbytes)]
        return Packed(digest_of(root, names), root, (), key)
    header: dict[str, object] = {"s": payload.serializer}
    if payload.salt:
        header["u"] = payload.salt
    if len(head) > (HEAD_LIMIT if limit is None else min(HEAD_LIMIT, limit // 4)):
        buffers.insert(0, memoryview(head))
        header["x"] = 1
        head = b""
    header["b"] = [buffer.nbytes for buffer in buffers]
    body = [part for buffer in buffers for part in (buffer, _padding(buffer.nbytes)) if len(part)]
    chunks: list[tuple[Chunk, list[Buffer]]] = []
    single = SINGLE
    if limit is not None and sum(map(len, body)) + len(head) + _ROOM > limit:
        single = 0
    if payload.size >= single and not (whole and payload.size < ROOT_LIMIT // 2):
        cut = list(_cut(buffers) if limit is None else _cut_within(buffers, limit))
        for parts, digest in zip(cut, digests_of(cut, names), strict=True):
            chunks.append((Chunk(digest, sum(map(len, parts))), parts))
            if each is not None:
                each(*chunks[-1])
        header["c"] = [[chunk.digest, chunk.size] for chunk, _ in chunks]
        body = []
    start = _start(header, head)
    if len(start) + HEAD_LIMIT > ROOT_LIMIT:
        raise SerializationError(
            f"a {payload.type or 'value'} of {len(buffers)} buffers is too fragmented to be stored"
        )
    root = [start, *body]
    return Packed(digest_of(root, names), root, chunks, key)


def small_root(
    serializer: str, head: bytes, body: bytes, *, limit: int | None = None
) -> bytes | None:
    """Return the root blob of a value of one small buffer, *body*; None if it isn't small.

    It is what `pack` would make of its payload, in a fraction of the time. *limit* is as there.
    """
    size = len(body)
    if len(head) + size >= _TINY or (limit or CHUNK) < _LEAST_LIMIT:
        return None
    return _tiny_start(serializer, head, size) + body + _ZEROS[: -size % ALIGNMENT]


def read_small_root(serializer: str, head: bytes, root: bytes, size: int) -> bytes | None:
    """Return the buffer, of *size* bytes, in a *root* that `small_root` made; None if it didn't."""
    if not 0 <= size < _TINY - len(head):
        return None
    start = _tiny_start(serializer, head, size)
    body = root[len(start) : len(start) + size]
    is_whole = len(body) == size and root == start + body + _ZEROS[: -size % ALIGNMENT]
    return body if is_whole else None


@lru_cache(1024)
def _tiny_start(serializer: str, head: bytes, size: int) -> bytes:
    """Return `_start` of a value of one small buffer of *size* bytes; most have the same few."""
    return _start({"s": serializer, "b": [size]}, head)


def _start(header: dict[str, object], head: bytes) -> bytes:
    """Return a root blob up to its body."""
    text = orjson.dumps(header, option=orjson.OPT_SORT_KEYS)
    start = _PREFIX.pack(_MAGIC, len(text), len(head)) + text + head
    return start + _padding(len(start))


def _padding(size: int) -> bytes:
    return _ZEROS[: -size % ALIGNMENT]


def _cut(buffers: Sequence[memoryview]) -> Iterator[list[Buffer]]:
    """Yield the parts of each chunk.

    A large buffer starts a chunk, so that values that share the buffer share its chunks,
    whatever precedes it.
    """
    group: list[Buffer] = []
    filled = 0
    for buffer in buffers:
        if buffer.nbytes >= SINGLE and group:
            yield group
            group, filled = [], 0
        for start in range(0, buffer.nbytes, CHUNK):
            piece = buffer[start : start + CHUNK]
            group.append(piece)
            filled += len(piece)
            if start + CHUNK >= buffer.nbytes and (padding := _padding(buffer.nbytes)):
                group.append(padding)
                filled += len(padding)
            if filled >= CHUNK or buffer.nbytes >= SINGLE:
                yield group
                group, filled = [], 0
    if group:
        yield group


def _cut_within(buffers: Sequence[memoryview], limit: int) -> Iterator[list[Buffer]]:
    """Yield the parts of each chunk as `_cut` does, but of at most *limit* stored bytes."""
    most = min(CHUNK, (limit - 1) // ALIGNMENT * ALIGNMENT)  # one byte says how it is encoded
    group: list[Buffer] = []
    filled = 0
    for buffer in buffers:
        starts_chunk = buffer.nbytes >= min(SINGLE, most)
        for start in range(0, buffer.nbytes, most):
            piece = buffer[start : start + most]
            if group and (filled + aligned(len(piece)) > most or (starts_chunk and not start)):
                yield group
                group, filled = [], 0
            group.append(piece)
            if padding := _padding(len(piece)):
                group.append(padding)
            filled += aligned(len(piece))
    if group:
        yield group


def read_root(root: memoryview, *, size: int | None, where: str) -> Manifest:
    """Return the manifest in a verified root blob.

    *size* is the value's, as its reference states; a root that doesn't fit it raises
    IntegrityError, so that nothing is reserved by what a blob alone claims. None is for
    inspection without a reference: long headers are then not read. *where* is for the message.
    """
    try:
        magic, header_size, head_size = _PREFIX.unpack_from(root)
        if magic != _MAGIC:
            raise ValueError("its first bytes are wrong")
        end = _PREFIX.size + header_size + head_size
        if end > len(root):
            raise ValueError("it is cut short")
        if head_size > HEAD_LIMIT:
            raise ValueError(f"its serializer's head has {head_size} bytes")
        if size is None and header_size > INSPECTED:
            raise ValueError(f"a header of {header_size} bytes is read only with its reference")
        if size is not None and header_size > _header_limit(size):
            raise ValueError(f"a value of {size} bytes has no header of {header_size}")
        header = orjson.loads(root[_PREFIX.size : _PREFIX.size + header_size])
        head = None if header.get("x") else root[end - head_size : end]
        sizes = [_size(s) for s in header["b"]]
        chunks = [Chunk(parse_digest(d), _size(s)) for d, s in header.get("c", ())]
        manifest = Manifest(header["s"], head, sizes, chunks, root[aligned(end) :])
        held = sum(chunk.size for chunk in chunks) if chunks else len(manifest.body)
        if held != manifest.body_size or size not in (None, manifest.value_size):
            raise ValueError(f"it describes {manifest.value_size} bytes, its reference {size}")
        _check_counts(manifest)
        if head is None and not sizes:
            raise ValueError("its head is missing")
        if not isinstance(manifest.serializer, str):
            raise ValueError("it names no serializer")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise IntegrityError(f"{where} is not a stored value: {exc}") from exc
    return manifest


def rewrite_chunks(root: memoryview, digests: Sequence[Digest]) -> bytes:
    """Return a root that lists the same chunks by other *digests*, as `pack` would write it."""
    _, header_size, _ = _PREFIX.unpack_from(root)
    end = _PREFIX.size + header_size
    header = orjson.loads(root[_PREFIX.size : end])
    header["c"] = [[digest, size] for digest, (_, size) in zip(digests, header["c"], strict=True)]
    text = orjson.dumps(header, option=orjson.OPT_SORT_KEYS)  # as long as before
    return bytes(root[: _PREFIX.size]) + text + bytes(root[end:])


def _check_counts(manifest: Manifest) -> None:
    size = manifest.value_size
    if len(manifest.sizes) > _most_buffers(size) or len(manifest.chunks) > _most_chunks(size):
        raise ValueError(f"{len(manifest.sizes)} buffers and {len(manifest.chunks)} chunks")
    if not all(chunk.size for chunk in manifest.chunks):
        raise ValueError("it has an empty chunk")


@dataclass(frozen=True)
class ManifestPrefix:
    """The first bytes of a root blob, parsed but not verified.

    Attributes:
        head: the serializer's head; None if it isn't in these bytes.
        body: the first few bytes of the body, if there are no chunks.
        size: bytes of the value.
    """

    serializer: str
    head: bytes | None
    body: bytes
    size: int
    chunks: Sequence[Chunk]


def is_root(prefix: bytes) -> bool | None:
    """Return whether a blob with this prefix is a root; None if the prefix is too short."""
    return prefix[: len(_MAGIC)] == _MAGIC if len(prefix) >= len(_MAGIC) else None


def is_fragmented(root: memoryview) -> bool:
    """Return whether a blob may be a root whose header is too long to inspect."""
    if len(root) < _PREFIX.size:
        return False
    magic, header_size, head_size = _PREFIX.unpack_from(root)
    room = len(root) - _PREFIX.size - head_size
    return bool(magic == _MAGIC and INSPECTED < header_size <= room)


def read_prefix(prefix: bytes) -> ManifestPrefix | None:
    """Parse the first bytes of a root; return None if its header is incomplete or invalid."""
    try:
        _, header_size, head_size = _PREFIX.unpack_from(prefix)
        at = _PREFIX.size + header_size
        end = at + head_size
        if at > len(prefix) or header_size > INSPECTED or head_size > HEAD_LIMIT:
            return None
        header = orjson.loads(prefix[_PREFIX.size : at])
        chunks = [Chunk(parse_digest(d), _size(s)) for d, s in header.get("c", ())]
        size = _size(sum(map(_size, header["b"])) + head_size)
        head = None if header.get("x") or end > len(prefix) else prefix[at:end]
        body = b"" if chunks else prefix[aligned(end) : aligned(end) + ALIGNMENT]
        return ManifestPrefix(_text(header["s"]), head, body, size, chunks)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < _GREATEST:
        raise ValueError(f"{value!r} is not a size")
    return value
