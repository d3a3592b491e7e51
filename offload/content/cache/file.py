"""Files of cached values: their format, and how values are assembled in them.

A file, in bytes::

    0   8   magic "OFFCACH1"
    8   8   length of the root blob, little-endian
    16  16  id of the machine's boot, see `boot`
    64  .   the root blob, see `offload.content.manifest`
    .       zeros up to a multiple of 4096
    .       the body: all chunks, one after another

So a hit needs nothing from the store, and the file's name is enough to verify all of it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from offload.content.encoding import read_blob, read_blob_into
from offload.content.manifest import ALIGNMENT, CHUNK, ROOT_LIMIT, Manifest, Piece, read_root
from offload.content.memory import Memory, allocate, map_file
from offload.digest import Buffer, Digest, digest_of
from offload.errors import IntegrityError

if TYPE_CHECKING:
    from offload.content.cache.folder import Folder, PartialFile
    from offload.encryption.blobs import BlobCipher

_MAGIC = b"OFFCACH1"
_PREFIX = struct.Struct("<8sQ16s")
_ROOT = ALIGNMENT
_PAGE = 4096
_PARTS = 512  # written by one system call; POSIX lets a system refuse more than 1,024

AT_ONCE = 2
"""Chunks that threads may decrypt while the store is read."""


def body_start(root_size: int) -> int:
    """Return the offset of the body after a root of *root_size* bytes."""
    return -(-(_ROOT + root_size) // _PAGE) * _PAGE


@dataclass(frozen=True)
class CachedValue:
    """A cached value, mapped: writable, but private to this process."""

    digest: Digest
    root: memoryview
    manifest: Manifest
    body: memoryview
    where: str
    cipher: BlobCipher | None = None

    def check_root(self) -> None:
        """Raise IntegrityError unless the root has the digest in the file's name."""
        self._check(self.digest, self.root)

    def check_body(self) -> None:
        """Raise IntegrityError unless each chunk has the digest that the root lists."""
        offset = 0
        for chunk in self.manifest.chunks:
            self._check(chunk.digest, self.body[offset : offset + chunk.size])
            offset += chunk.size

    def _check(self, digest: Digest, plain: memoryview) -> None:
        if self.cipher is not None:
            if not self.cipher.matches(plain, digest):
                raise IntegrityError(f"{self.where} was altered: it doesn't match {digest}")
            return
        found = digest_of([plain])
        if found != digest:
            raise IntegrityError(f"{self.where} was altered: {found} instead of {digest}")


def map_value(
    fd: int, digest: Digest, size: int, *, where: str, cipher: BlobCipher | None = None
) -> CachedValue | None:
    """Map a complete file; return None if it was written before the machine's last boot.

    Raises IntegrityError if it doesn't have the format of a value of *size* bytes.
    """
    length = os.fstat(fd).st_size
    try:
        view = map_file(fd, length)
        magic, root_size, booted = _PREFIX.unpack_from(view)
        start = body_start(root_size)
        if magic != _MAGIC or root_size > ROOT_LIMIT or start > length:
            raise ValueError("its first bytes are wrong")
    except (ValueError, struct.error) as exc:
        raise IntegrityError(f"{where} is not a cached value: {exc}") from exc
    if booted != boot():
        return None
    root = view[_ROOT : _ROOT + root_size]
    manifest = read_root(root, size=size, where=where)
    if not manifest.chunks or start + manifest.body_size != length:
        raise IntegrityError(f"{where} does not have the size that its root states")
    return CachedValue(digest, root, manifest, view[start:], where, cipher)


@cache
def boot() -> bytes:
    """Return the id of the machine's current boot.

    After a power failure, a file on disk that was not flushed may have its name but not
    its content. Flushing would cost more than fetching such files again.
    """
    try:
        return UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes
    except (OSError, ValueError):
        return bytes(16)


class InMemory:
    """Assembles a value in private memory.

    Args:
        cipher: decrypts chunks; None without encryption.
    """

    def __init__(self, manifest: Manifest, cipher: BlobCipher | None = None) -> None:
        self._body = allocate(manifest.body_size, ALIGNMENT)
        self._filled = 0
        self._cipher = cipher

    def decode(self, piece: Piece, stored: Buffer, where: str) -> memoryview:
        """Return the plain bytes of a chunk, verified; `keep` takes them, in order.

        Threads may decode `AT_ONCE` chunks at once.

        Raises IntegrityError, also if they aren't as long as *piece* says; KeyUnavailable.
        """
        plain = self._body[piece.offset : piece.offset + piece.chunk.size]
        read_blob_into(stored, piece.chunk.digest, plain, where, self._cipher)
        return plain

    def keep(self, plain: memoryview) -> None:
        """Append a chunk: the one that `decode` returned, or any other."""
        end = self._filled + len(plain)
        if plain.obj is not self._body.obj:
            self._body[self._filled : end] = plain
        self._filled = end

    def body(self) -> memoryview:
        """Return the body, once all chunks are appended."""
        return self._body


class FileWriter:
    """Writes a value to a cache file: its root, then its body from front to back.

    Uses system calls, not a mapping, so that a full disk is an error instead of a SIGBUS.

    Attributes:
        start: offset of the body in the file.
        filled: bytes of the body written so far.
    """

    def __init__(self, folder: Folder, part: PartialFile, root: Sequence[Buffer]) -> None:
        size = sum(map(len, root))
        self._folder = folder
        self._part = part
        self.start = body_start(size)
        self.filled = 0
        self._write([_PREFIX.pack(_MAGIC, size, boot())], 0)
        self._write(root, _ROOT)

    def append(self, parts: Sequence[Buffer]) -> None:
        """Append *parts* to the body. Raises OSError if the disk is full."""
        self._write(parts, self.start + self.filled)
        self.filled += sum(map(len, parts))

    def finish(self) -> None:
        """Give the file its final name; everything must have been written."""
        self._folder.finish(self._part)

    def _write(self, parts: Sequence[Buffer], offset: int) -> None:
        for at in range(0, len(parts), _PARTS):
            rest = [memoryview(part) for part in parts[at : at + _PARTS]]
            while rest:
                if len(rest) == 1:
                    count = os.pwrite(self._part.fd, rest[0], offset)
                else:
                    count = os.pwritev(self._part.fd, rest, offset)
                offset += count
                while rest and count >= len(rest[0]):
                    count -= len(rest.pop(0))
                if count:
                    rest[0] = rest[0][count:]


class InFile:
    """Assembles a value in a cache file; in memory after that fails.

    Args:
        on_failure: called with the error.
        cipher: decrypts chunks; None without encryption.
    """

    def __init__(
        self,
        folder: Folder,
        part: PartialFile,
        root: Buffer,
        manifest: Manifest,
        on_failure: Callable[[OSError], None],
        cipher: BlobCipher | None = None,
    ) -> None:
        self._part = part
        self._cipher = cipher
        self._decrypted = Memory()
        self._manifest = manifest
        self._on_failure = on_failure
        self._memory: InMemory | None = None
        self._file = FileWriter(folder, part, [root])

    def decode(self, piece: Piece, stored: Buffer, where: str) -> memoryview:
        """See `InMemory.decode`."""
        memory = self._memory
        if memory is not None:
            return memory.decode(piece, stored, where)
        size, digest = piece.chunk.size, piece.chunk.digest
        if self._cipher is not None:
            plain = self._decrypted.block(piece.number % AT_ONCE, size)
            read_blob_into(stored, digest, plain, where, self._cipher)
            return plain
        plain = read_blob(stored, digest, size, where, None)
        if len(plain) != size:
            raise IntegrityError(f"{where} has {len(plain)} bytes instead of {size}")
        return plain

    def keep(self, plain: memoryview) -> None:
        """See `InMemory.keep`."""
        if self._memory is None:
            try:
                self._file.append([plain])
                return
            except OSError as exc:
                self._memory = self._moved_to_memory(exc)
        self._memory.keep(plain)

    def body(self) -> memoryview:
        """Give the file its final name, and return the body mapped from it."""
        if self._memory is None:
            start = self._file.start
            try:
                mapped = map_file(self._part.fd, start + self._manifest.body_size)
                self._file.finish()
                return mapped[start:]
            except (OSError, ValueError) as exc:
                self._memory = self._moved_to_memory(OSError(*exc.args))
        return self._memory.body()

    def _moved_to_memory(self, exc: OSError) -> InMemory:
        """Return the chunks written so far, read back into memory."""
        memory = InMemory(self._manifest, self._cipher)
        copied, filled = 0, self._file.filled
        while copied < filled:
            size = min(CHUNK, filled - copied)
            piece = os.pread(self._part.fd, size, self._file.start + copied)
            if not piece:
                raise IntegrityError("a cache file became shorter while it was written") from exc
            memory.keep(memoryview(piece))
            copied += len(piece)
        self._on_failure(exc)
        return memory
