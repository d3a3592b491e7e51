"""The node cache: values read from a remote store are put together once per machine.

Each value of 1 MiB and more is one file, named by its digest, in a folder on tmpfs. A task
gets it mapped ``MAP_PRIVATE``: nothing is copied, and what the task writes stays its own.
The cache can only help: whatever is wrong with it, a value comes from the store as if
there were none.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

from offload.content.cache_file import Cached, InFile, InMemory, body_start, map_value
from offload.content.manifest import Manifest
from offload.counters import Counters
from offload.digest import Buffer, Digest
from offload.errors import ConfigurationError, IntegrityError
from offload.settings import Settings

if TYPE_CHECKING:
    from offload.content.cache_folder import Folder, Part

__all__ = ("Assembly", "NodeCache", "Turn", "open_cache")

logger = logging.getLogger(__name__)

Assembly = Union[InMemory, InFile]

PATIENCE = 10.0
"""Seconds that another process's download may make no progress before this one does its own."""
_LOCAL = ("memory:", "file:")  # stores that are no slower than a cache of them
_AHEAD = 4  # what nobody asked for yet takes one part in so many
_UNUSED = 86400.0  # seconds after which an unused file goes, if no retention is set
_POLLS = (0.001, 0.005)  # seconds between looks at what another process is filling
_SHM = Path("/dev/shm")  # noqa: S108 (a folder of our own in it, checked before each use)


def open_cache(url: str, settings: Settings, counters: Counters) -> NodeCache | None:
    """Return the cache in front of the store at *url*, or None where there is to be none."""
    is_local = all(tier.startswith(_LOCAL) for tier in url.split(" + "))
    if settings.cache == "off" or not settings.cache_size or is_local:
        return None
    try:
        from offload.content.cache_folder import Folder, is_tmpfs
    except ImportError:  # an operating system without flock
        return None
    shared = settings.cache == "auto"
    if shared and not is_tmpfs(_SHM):
        return None
    path = _SHM / f"offload-{os.geteuid()}" if shared else Path(settings.cache)
    folder = Folder(path, settings.cache_size, shared=shared, unused=settings.retention or _UNUSED)
    return NodeCache(folder, counters, verify=settings.verify)


class NodeCache:
    """A cache in *folder*. Safe among threads, processes and containers that share it.

    Args:
        verify: ``always`` hashes a cached file at each use; ``entry`` only its root, which
            costs microseconds; ``none`` takes it as it is. What comes from a store has
            been verified before it gets here, in any case.
        patience: see `PATIENCE`.
        sleep, clock: wait so many seconds; seconds that only rise.
    """

    def __init__(
        self,
        folder: Folder,
        counters: Counters,
        *,
        verify: str = "entry",
        patience: float = PATIENCE,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self._counters = counters
        self._verify = verify
        self._patience = patience
        self._sleep = sleep
        self._clock = clock
        self._said: set[str] = set()

    @contextmanager
    def turn(self, digest: Digest, size: int, *, wait: bool = True) -> Iterator[Turn]:
        """Hold this process's turn at a value: it is there, or this process is to fetch it.

        While another process fetches it, this one waits, as long as that makes progress,
        unless told not to. *size* is the value's, as its reference says.
        """
        turn = Turn(self)
        try:
            try:
                self._take(turn, digest, size, wait)
            except (OSError, ConfigurationError) as exc:
                self.without(exc)
            yield turn
        finally:
            turn.end()

    def _take(self, turn: Turn, digest: Digest, size: int, wait: bool) -> None:
        self.folder.check()
        turn.found = self.find(digest, size)
        if turn.found is not None:
            return
        if size > self.folder.limit():
            return
        pause, longest = _POLLS
        progress = None
        deadline = self._clock() + self._patience
        while True:
            turn.part = self.folder.lock(digest)
            turn.found = self.find(digest, size)
            if turn.found is not None:
                turn.end()
                return
            if turn.part is not None or not wait:
                return
            before, progress = progress, self.folder.progress(digest)
            # Another file is another process that tries: that alone is no progress.
            if before and progress and before[0] == progress[0] and before != progress:
                deadline = self._clock() + self._patience
            if self._clock() >= deadline:
                self._say(f"another process has held {digest} for {self._patience:g} s")
                return
            self._sleep(pause)
            pause = min(pause * 1.5, longest)

    def ahead(self) -> int:
        """Return how many bytes of values may be fetched before anybody asks for them."""
        try:
            self.folder.check()
            return self.folder.limit() // _AHEAD
        except (OSError, ConfigurationError) as exc:
            self.without(exc)
            return 0

    def find(self, digest: Digest, size: int) -> Cached | None:
        """Return what is cached under *digest*; drop it if it is not what it should be."""
        try:
            fd = self.folder.open(digest)
            if fd is None:
                return None
            try:
                return self._mapped(fd, digest, size)
            finally:
                os.close(fd)
        except IntegrityError as exc:
            self._altered(digest, exc)
            return None

    def _mapped(self, fd: int, digest: Digest, size: int) -> Cached | None:
        cached = map_value(fd, digest, size, where=f"{digest} in {self.folder.path}")
        if cached is None:
            self.folder.remove(digest)
            return None
        if self._verify != "none":
            cached.check_root()
        if self._verify == "always":
            cached.check_body()
        with suppress(OSError):  # a folder that can only be read serves as well
            os.utime(fd)  # it was used now: what was unused for longest goes first
        return cached

    def is_intact(self, cached: Cached) -> bool:
        """Return whether the content of *cached* has its digest; drop its file if not."""
        try:
            cached.check_root()
            cached.check_body()
        except IntegrityError as exc:
            self._altered(cached.digest, exc)
            return False
        return True

    def _altered(self, digest: Digest, exc: IntegrityError) -> None:
        self._counters.add(cache_altered=1)
        logger.warning("node cache: %s; dropped, and fetched from the store again", exc)
        with suppress(OSError):
            self.folder.remove(digest)

    def without(self, exc: Exception) -> None:
        """Say, once for each reason, why values are not cached."""
        self._say(str(exc))

    def _say(self, why: str) -> None:
        if why not in self._said and len(self._said) < 100:
            self._said.add(why)
            logger.warning("works without the node cache: %s", why)

    def evicted(self, count: int) -> None:
        """Count files that were removed to make room."""
        self._counters.add(cache_evicted=count)

    def uncached(self) -> None:
        """Count a value that was fetched and could not be kept."""
        self._counters.add(cache_unused=1)


@dataclass
class Turn:
    """What `NodeCache.turn` holds.

    Attributes:
        found: the value, where it was cached.
        part: the file to fill, where it was not; None where there can be none.
    """

    cache: NodeCache
    found: Cached | None = None
    part: Part | None = None

    def assembly(self, root: Buffer, manifest: Manifest) -> Assembly:
        """Return what the value is put together in: a cache file, or private memory."""
        found = self._file(root, manifest, self._failed)
        if found is None:
            self._failed(None)
            return InMemory(manifest)
        return found

    def file(self, root: Buffer, manifest: Manifest) -> InFile | None:
        """Return the cache file that the value is put together in, None if there is no room.

        Where it proves to be too little later, that is an OSError.
        """
        return self._file(root, manifest, self._given_up)

    def _file(
        self, root: Buffer, manifest: Manifest, failed: Callable[[OSError], None]
    ) -> InFile | None:
        part, folder = self.part, self.cache.folder
        if part is not None:
            try:
                fits, evicted = folder.reserve(part, body_start(len(root)) + manifest.body_size)
                self.cache.evicted(evicted)
                if fits:
                    return InFile(folder, part, root, manifest, failed)
            except (OSError, ConfigurationError) as exc:
                self.cache.without(exc)
        return None

    def _failed(self, exc: OSError | None) -> None:
        if exc is not None:
            self.cache.without(exc)
        self.cache.uncached()
        self.end()  # others need not wait for what will not come

    @staticmethod
    def _given_up(exc: OSError) -> None:
        raise exc

    def end(self) -> None:
        """Give the turn up; a file that is not complete goes away."""
        part, self.part = self.part, None
        if part is not None:
            part.close()
