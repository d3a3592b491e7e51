"""Memory for large values: aligned, writable, private to the process."""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import finalize

if TYPE_CHECKING:
    import ctypes

_MAPPED = 256 * 1024
_REUSED = 1024 * 1024
_PAGE = 4096
_HUGE = 4 * 1024**2
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)


def allocate(size: int, alignment: int) -> memoryview:
    """Return *size* writable zero bytes that start at a multiple of *alignment* (≤ 4096).

    For a large size, the memory is an anonymous mapping. Its pages are allocated when they are
    first written, as huge pages where available, because page faults cost more than copying. A
    forked child copies them on write. When the last view is dropped, the memory is returned to the
    system.
    """
    if size >= _MAPPED and _PRIVATE:
        mapping = mmap.mmap(-1, size, flags=_PRIVATE)
        if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            _advise_huge(mapping)
        return memoryview(mapping)
    block = memoryview(bytearray(size + alignment))
    start = -_address(block) % alignment
    return block[start : start + size]


class Memory:
    """Blocks of memory that are used again for each piece of a value.

    Using new memory for the first time takes longer than encrypting or decrypting its content.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, memoryview] = {}

    def block(self, number: int, size: int) -> memoryview:
        """Return *size* bytes of block *number*; small ones are new."""
        if size < _REUSED:
            return memoryview(bytearray(size))
        block = self._blocks.get(number)
        if block is None or len(block) < size:
            block = self._blocks[number] = allocate(size, _PAGE)
        return block[:size]


def _advise_huge(mapping: mmap.mmap) -> None:
    with suppress(OSError):  # a kernel without huge pages uses ordinary ones
        mapping.madvise(mmap.MADV_HUGEPAGE)


def _address(block: memoryview) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(block))


def map_file(fd: int, length: int) -> memoryview:
    """Map a file privately, so that writes to the memory don't change the file.

    The mapping doesn't keep *fd* open.

    Raises OSError if mapping fails, ValueError for an empty file.
    """
    if sys.version_info >= (3, 13):
        return memoryview(mmap.mmap(fd, length, access=mmap.ACCESS_COPY, trackfd=False))
    libc = _libc()
    if libc is None or not length:
        return memoryview(mmap.mmap(fd, length, access=mmap.ACCESS_COPY))
    return _mapped_by_libc(libc, fd, length)


# Before Python 3.13, each mapping of `mmap` keeps a duplicate of the file descriptor. A task with
# many large values would run out of descriptors, so it maps files by calling libc.


@cache
def _libc() -> Any:
    """Return the C library; None on platforms where the signature of its mmap() isn't known."""
    import ctypes

    if sys.maxsize <= 1 << 32 or not hasattr(mmap, "MAP_PRIVATE"):
        return None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        libc.mmap.argtypes = (address, size, number, number, number, ctypes.c_int64)
        libc.mmap.restype = address
        libc.munmap.argtypes = (address, size)
    except (OSError, AttributeError):
        return None
    return libc


def _mapped_by_libc(libc: Any, fd: int, length: int) -> memoryview:
    import ctypes

    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = libc.mmap(None, length, protection, mmap.MAP_PRIVATE, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    array: ctypes.Array[ctypes.c_char] = (ctypes.c_char * length).from_address(address)
    # Every view keeps the array alive. When the process exits, the system unmaps the file.
    finalize(array, libc.munmap, address, length).atexit = False
    return memoryview(array).cast("B")
