"""Write-through: put values into the node cache while they are stored.

Their readers on this machine then fetch nothing. The bytes are those that the digests of the value
were computed from, so they aren't verified again; a cached file may be `verify`-ed as any other.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from offload.content.cache import NodeCache
from offload.content.manifest import SINGLE, Packed
from offload.errors import ConfigurationError
from offload.forks import start_thread_or_call
from offload.metrics.counters import Counters

logger = logging.getLogger(__name__)


class WriteThrough:
    """Decides whether values are put into *cache*, and does so.

    Args:
        mode: ``on``; ``auto`` if a worker uses the cache; ``off``.
    """

    def __init__(self, cache: NodeCache | None, counters: Counters, mode: str) -> None:
        self._cache = None if mode == "off" else cache
        self._counters = counters
        self._always = mode == "on"

    @contextmanager
    def writing(self, packed: Packed, size: int) -> Iterator[None]:
        """Write a value of *size* bytes to the cache while this block stores it.

        The block ends when both are done, as they read the caller's memory. Nothing is written if
        the value is cached already. An error of the cache is counted and never raised.
        """
        cache = self._cache
        if cache is None or size < SINGLE or not packed.chunks or not self._is_used(cache):
            yield
            return
        if cache.folder.touch(packed.digest):
            yield
            return
        write = _Write(cache, packed, size)
        try:
            write.start()
            yield
            write.join()
        except BaseException:
            write.is_stopped = True
            write.join()
            raise
        if write.is_done:
            self._counters.add(cache_written=1, cache_written_bytes=size)
        elif not write.is_needless:
            self._counters.add(cache_unwritten=1)

    def _is_used(self, cache: NodeCache) -> bool:
        if self._always:
            return True
        try:
            return cache.folder.is_used()
        except (OSError, ConfigurationError) as exc:
            logger.debug("stored values aren't put into the node cache: %s", exc)
            self._counters.add(cache_unwritten=1)
            return False


class _Write:
    """Writes one value to the cache, in a thread.

    Attributes:
        is_done: whether the value was written.
        is_needless: whether it was cached already, or another process or thread writes it.
        is_stopped: set to end it early, without a file.
    """

    def __init__(self, cache: NodeCache, packed: Packed, size: int) -> None:
        self._cache = cache
        self._packed = packed
        self._size = size
        self._thread: threading.Thread | None = None
        self.is_done = self.is_needless = self.is_stopped = False

    def start(self) -> None:
        self._thread = start_thread_or_call(self._run, "offload-through")

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._write()
        except Exception as exc:
            logger.debug("a value isn't put into the node cache", exc_info=True)
            self._cache.log_unusable(exc)

    def _write(self) -> None:
        packed = self._packed
        with self._cache.fill(packed.digest, self._size, wait=False) as fill:
            self.is_needless = fill.found is not None or fill.is_busy
            file = fill.writer(packed)
            if file is None:
                return
            for _, parts in packed.chunks:
                if self.is_stopped:
                    return
                file.append(parts)
            if not self.is_stopped:
                file.finish()
                self.is_done = True
