"""Memory for values that are put together: aligned, writable, private to the process."""

from __future__ import annotations

import mmap
from contextlib import suppress

__all__ = ("allocate",)

_MAPPED = 256 * 1024
_HUGE = 4 * 1024**2
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)


def allocate(size: int, alignment: int) -> memoryview:
    """Return *size* writable zero bytes that begin at a multiple of *alignment* (≤ 4096).

    Large sizes are an anonymous mapping: pages are given only as they are filled, in
    huge pages where the system has them (page faults cost more than copying), a forked
    child gets its own on write, and all of it goes back to the system with the last view.
    """
    if size >= _MAPPED and _PRIVATE:
        mapping = mmap.mmap(-1, size, flags=_PRIVATE)
        if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            _advise_huge(mapping)
        return memoryview(mapping)
    block = memoryview(bytearray(size + alignment))
    start = -_address(block) % alignment
    return block[start : start + size]


def _advise_huge(mapping: mmap.mmap) -> None:
    with suppress(OSError):  # a kernel built without them: ordinary pages serve as well
        mapping.madvise(mmap.MADV_HUGEPAGE)


def _address(block: memoryview) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(block))
