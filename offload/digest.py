"""Content digests: BLAKE3, written ``b3:`` and 64 hexadecimal digits.

BLAKE3 is specified at https://github.com/BLAKE3-team/BLAKE3-specs; the digest here is
its default 256-bit output. With encryption, it is its keyed mode.
"""

from __future__ import annotations

import queue
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NewType, Union

from blake3 import blake3

from offload.forks import start_thread

Digest = NewType("Digest", str)
Buffer = Union[bytes, bytearray, memoryview]

_FORM = re.compile(r"b3:[0-9a-f]{64}", re.ASCII)
_PARALLEL = 1 << 20  # bytes from which a second thread saves time
_THREADS = 2
_AHEAD = 8 << 20  # bytes from which a thread of our own saves time


def digest_of(
    parts: Iterable[Buffer], key: bytes | None = None, *, threads: int = _THREADS
) -> Digest:
    """Return the digest of the concatenation of *parts*, computed by at most *threads* threads.

    Buffers must be contiguous and of single bytes. Nothing is copied. With *key*, 32 bytes, it is
    BLAKE3's keyed hash, which can't be computed without the key.
    """
    parts = list(parts)
    return _hash(parts, key, threads if sum(map(len, parts)) >= _PARALLEL else 1)


def digest_of_few(content: bytes, key: bytes | None = None) -> Digest:
    """Return the `digest_of` a few bytes, with nothing else to call."""
    if key is None:
        return Digest("b3:" + blake3(content, max_threads=1).hexdigest())
    return Digest("b3:" + blake3(content, key=key, max_threads=1).hexdigest())


def digests_of(many: Sequence[Sequence[Buffer]], key: bytes | None = None) -> Iterator[Digest]:
    """Yield `digest_of` each, in order.

    If they are many and large, a thread computes every second one ahead: threads for each would
    have to be started and joined for each.
    """
    size = sum(sum(map(len, parts)) for parts in many)
    if size < max(_AHEAD, _PARALLEL * len(many)):
        yield from (digest_of(parts, key) for parts in many)
        return
    found: queue.Queue[Digest | Exception] = queue.Queue()
    is_stopped = False

    def hash_ahead() -> None:
        try:
            for parts in many[1::2]:
                if is_stopped:
                    return
                found.put(_hash(parts, key, 1))
        except Exception as exc:  # raised by the caller's thread, which would wait forever
            found.put(exc)

    try:
        thread = start_thread(hash_ahead, "offload-hash")
    except RuntimeError:  # the interpreter is exiting, or there are too many threads
        yield from (digest_of(parts, key) for parts in many)
        return
    try:
        for at, parts in enumerate(many):
            digest = found.get() if at % 2 else _hash(parts, key, 1)
            if isinstance(digest, Exception):
                raise digest
            yield digest
    finally:
        is_stopped = True
        thread.join()


def _hash(parts: Iterable[Buffer], key: bytes | None, threads: int) -> Digest:
    # With a fixed number of threads, the pool belongs to this hasher; a forked child would
    # inherit the library's shared pool.
    hasher = blake3(max_threads=threads) if key is None else blake3(key=key, max_threads=threads)
    for part in parts:
        hasher.update(part)
    return Digest("b3:" + hasher.hexdigest())


def parse_digest(text: str) -> Digest:
    """Return *text* as a Digest; raises ValueError if it isn't one."""
    if not _FORM.fullmatch(text):
        raise ValueError(f"not a content digest: {text[:100]!r}")
    return Digest(text)
