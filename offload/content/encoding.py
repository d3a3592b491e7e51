"""The stored form of blobs: compressed, then encrypted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from offload.content.compression import Encoder
from offload.content.memory import Memory
from offload.digest import Digest
from offload.stores.processes import Threads
from offload.stores.protocols import Parts, size_of

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher
    from offload.encryption.keys import EncryptionKey

__all__ = ("BlobEncoder",)

_BATCH = 8  # chunks encoded ahead of the network: bounds the memory of compressed copies
_AHEAD = 2  # chunks that are encrypted while others are sent
_THREADS = Threads(2, "offload-encrypt")  # of all apps


class BlobEncoder:
    """Compresses blobs, and encrypts them.

    Args:
        compress: returns a blob's parts in their compressed form, and the byte that says so.
        cipher: encrypts; None without encryption.
        at_once: blobs that the store stores at once.

    Attributes:
        overhead: most bytes by which encryption makes a blob longer.
    """

    def __init__(self, compress: Encoder, cipher: BlobCipher | None, at_once: int = 1) -> None:
        self.compress = compress
        self._cipher = cipher
        self.overhead = 0 if cipher is None else cipher.overhead
        # Touching new memory takes twice as long as encrypting, so there is as little as possible.
        self._batch = min(max(at_once, _AHEAD), _BATCH - _AHEAD)

    def encode(
        self,
        digest: Digest,
        parts: Parts,
        key: EncryptionKey | None,
        room: Callable[[int], memoryview] | None = None,
    ) -> Parts:
        """Return a blob as it is stored, encrypted with *key*.

        Args:
            room: returns memory of that many bytes for the ciphertext.
        """
        compressed = self.compress(parts)
        if self._cipher is None or key is None:
            return compressed
        memory = None if room is None else room(self._cipher.memory_for(compressed))
        return self._cipher.encrypt(compressed, digest, key, memory)

    def batches(
        self, wanted: Mapping[Digest, Parts], key: EncryptionKey | None, memory: Memory
    ) -> Iterator[tuple[int, dict[Digest, Parts]]]:
        """Yield some blobs at a time, as they are stored, after the size of their plain bytes.

        Threads encrypt some of the next ones meanwhile. A batch must have been stored before the
        next one is taken, which is put into the same *memory*.
        """
        if self._cipher is None or key is None:
            rest = iter(wanted.items())
            while plain := dict(islice(rest, _BATCH)):
                yield (
                    sum(map(size_of, plain.values())),
                    {digest: self.compress(parts) for digest, parts in plain.items()},
                )
            return

        def encoded(item: tuple[int, tuple[Digest, Parts]]) -> tuple[Digest, int, Parts]:
            number, (digest, parts) = item
            room = partial(memory.block, number % (self._batch + _AHEAD))
            return digest, size_of(parts), self.encode(digest, parts, key, room)

        ahead = _THREADS.ahead(encoded, enumerate(wanted.items()), _AHEAD)
        while batch := list(islice(ahead, self._batch)):
            yield sum(size for _, size, _ in batch), {d: stored for d, _, stored in batch}
