"""NodeCache: large values are fetched once per machine and mapped by every task.

Each value of 1 MiB and more is one file, named by its digest, in a folder on tmpfs. A task
gets it mapped ``MAP_PRIVATE``: nothing is copied, and what the task writes stays its own.
The cache is optional: if it fails in any way, values come from the store as they would
without it.
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

from offload.content.cache.file import (
    CachedValue,
    FileWriter,
    InFile,
    InMemory,
    body_start,
    map_value,
)
from offload.content.manifest import Manifest, Packed
from offload.digest import Buffer, Digest
from offload.errors import ConfigurationError, IntegrityError
from offload.metrics.counters import Counters
from offload.settings import Settings

if TYPE_CHECKING:
    from offload.content.cache.folder import Folder, PartialFile
    from offload.encryption.blobs import BlobCipher

logger = logging.getLogger(__name__)

Assembly = Union[InMemory, InFile]

PATIENCE = 10.0
"""Seconds that another process may fetch without progress before this one fetches itself."""
_LOCAL = ("memory:", "file:")  # stores that are no slower than a cache of them
_PREFETCH_SHARE = 4  # prefetched values may fill this fraction of the cache: a quarter
_UNUSED = 86400.0  # seconds after which an unused file is removed, if no retention is set
_POLLS = (0.001, 0.005)  # shortest and longest seconds between checks on another process
_SHM = Path("/dev/shm")  # noqa: S108 (a private folder in it, checked before each use)


def open_cache(url: str, settings: Settings, counters: Counters) -> NodeCache | None:
    """Return the cache in front of the store at *url*; None if it is off or the store is local.

    Raises ConfigurationError if values are encrypted, and the cache would write them to a disk.
    """
    is_local = all(tier.startswith(_LOCAL) for tier in url.split(" + "))
    if settings.cache == "off" or not settings.cache_size or is_local:
        return None
    try:
        from offload.content.cache.folder import Folder, is_in_memory, is_tmpfs
    except ImportError:  # an operating system without flock
        return None
    shared = settings.cache == "auto"
    if shared and not is_tmpfs(_SHM):
        return None
    path = _SHM / f"offload-{os.geteuid()}" if shared else Path(settings.cache)
    if settings.encryption_keys and not (shared or settings.cache_plain or is_in_memory(path)):
        raise ConfigurationError(
            f"offload_cache: {path} isn't on a tmpfs, and the node cache keeps values unencrypted, "
            "while offload_encryption_keys is set: use 'auto' or a folder on a tmpfs, or set "
            "offload_cache_plain=True if that disk itself is encrypted"
        )
    folder = Folder(path, settings.cache_size, shared=shared, unused=settings.retention or _UNUSED)
    return NodeCache(folder, counters, verify=settings.verify)


class NodeCache:
    """A cache in *folder*. Safe among threads, processes, and containers that share it.

    Args:
        verify: ``always`` hashes a cached file at each use; ``entry`` hashes only its root, which
            takes microseconds; ``none`` trusts it. Values from a store are
            always verified before they are cached.
        patience: see `PATIENCE`.
        sleep: waits that many seconds.
        clock: returns seconds that only increase.

    Attributes:
        cipher: decrypts chunks, and verifies names, if values are encrypted in the store. Cached
            ones never are.
    """

    cipher: BlobCipher | None = None

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
        self._logged: set[str] = set()

    @contextmanager
    def fill(self, digest: Digest, size: int, *, wait: bool = True) -> Iterator[CacheFill]:
        """Find a value, or become the one process that fetches it.

        While another process fetches it, waits as long as that makes progress, unless *wait* is
        False. *size* is the value's, as its reference states.
        """
        fill = CacheFill(self)
        try:
            try:
                self._start(fill, digest, size, wait)
            except (OSError, ConfigurationError) as exc:
                self.log_unusable(exc)
            yield fill
        finally:
            fill.release()

    def _start(self, fill: CacheFill, digest: Digest, size: int, wait: bool) -> None:
        self.folder.check()
        fill.found = self.find(digest, size)
        if fill.found is not None:
            return
        if size > self.folder.limit():
            return
        pause, longest = _POLLS
        progress = None
        deadline = self._clock() + self._patience
        while True:
            fill.part = self.folder.lock(digest)
            fill.found = self.find(digest, size)
            if fill.found is not None:
                fill.release()
                return
            if fill.part is not None:
                return
            if not wait:
                fill.is_busy = True
                return
            before, progress = progress, self.folder.progress(digest)
            # A different file means that a different process tries, which is not progress.
            if before and progress and before[0] == progress[0] and before != progress:
                deadline = self._clock() + self._patience
            if self._clock() >= deadline:
                self._log_once(f"another process has held {digest} for {self._patience:g} s")
                return
            self._sleep(pause)
            pause = min(pause * 1.5, longest)

    def occupy(self) -> None:
        """Let publishers on this machine know that a worker uses the cache, until `vacate`."""
        try:
            self.folder.occupy()
        except (OSError, ConfigurationError) as exc:
            self.log_unusable(exc)

    def vacate(self) -> None:
        """See `occupy`."""
        self.folder.vacate()

    def prefetch_limit(self) -> int:
        """Return the bytes of values that may be fetched before a task asks for them."""
        try:
            self.folder.check()
            return self.folder.limit() // _PREFETCH_SHARE
        except (OSError, ConfigurationError) as exc:
            self.log_unusable(exc)
            return 0

    def find(self, digest: Digest, size: int) -> CachedValue | None:
        """Return the value cached under *digest*; remove it if it is invalid."""
        try:
            fd = self.folder.open(digest)
            if fd is None:
                return None
            try:
                return self._mapped(fd, digest, size)
            finally:
                os.close(fd)
        except IntegrityError as exc:
            self._drop_altered(digest, exc)
            return None

    def _mapped(self, fd: int, digest: Digest, size: int) -> CachedValue | None:
        where = f"{digest} in {self.folder.path}"
        cached = map_value(fd, digest, size, where=where, cipher=self.cipher)
        if cached is None:
            self.folder.remove(digest)
            return None
        if self._verify != "none":
            cached.check_root()
        if self._verify == "always":
            cached.check_body()
        with suppress(OSError):  # a read-only folder works as well
            os.utime(fd)  # used now: the least recently used file is removed first
        return cached

    def is_intact(self, cached: CachedValue) -> bool:
        """Return whether the content of *cached* has its digest; remove its file if not."""
        try:
            cached.check_root()
            cached.check_body()
        except IntegrityError as exc:
            self._drop_altered(cached.digest, exc)
            return False
        return True

    def _drop_altered(self, digest: Digest, exc: IntegrityError) -> None:
        self._counters.add(cache_altered=1)
        logger.warning("node cache: %s; fetching the value from the store", exc)
        with suppress(OSError):
            self.folder.remove(digest)

    def log_unusable(self, exc: Exception) -> None:
        """Log, once for each reason, why values are not cached."""
        self._log_once(str(exc))

    def _log_once(self, reason: str) -> None:
        if reason not in self._logged and len(self._logged) < 100:
            self._logged.add(reason)
            logger.warning(
                "running without the node cache: %s; to use one, set offload_cache to a private, "
                "writable folder with free space; to end this warning, set it to 'off'",
                reason,
            )

    def count_evicted(self, count: int) -> None:
        """Count files that were removed to make room."""
        self._counters.add(cache_evicted=count)

    def count_uncached(self) -> None:
        """Count a value that was fetched and could not be kept."""
        self._counters.add(cache_unused=1)


@dataclass
class CacheFill:
    """One process's chance to fill the cache with a value; see `NodeCache.fill`.

    Attributes:
        found: the value, if it was cached.
        part: the file to fill, if it was not; None if there can be none.
        is_busy: whether another process or thread fills it, and wasn't waited for.
    """

    cache: NodeCache
    found: CachedValue | None = None
    part: PartialFile | None = None
    is_busy: bool = False

    def assembly(self, root: Buffer, manifest: Manifest) -> Assembly:
        """Return where to assemble the value: a cache file, or private memory."""
        found = self._file(root, manifest, self._failed)
        if found is None:
            self._failed(None)
            return InMemory(manifest, self.cache.cipher)
        return found

    def file(self, root: Buffer, manifest: Manifest) -> InFile | None:
        """Return the cache file in which to assemble the value; None if the cache is full.

        If space runs out later, writing raises OSError.
        """
        return self._file(root, manifest, self._reraise)

    def writer(self, packed: Packed) -> FileWriter | None:
        """Return a writer of the file of a value that this process has; None if it has no room.

        Its root is written. If space runs out later, writing raises OSError.
        """
        body = sum(chunk.size for chunk, _ in packed.chunks)
        part = self._reserved(sum(map(len, packed.root)), body)
        return None if part is None else FileWriter(self.cache.folder, part, packed.root)

    def _file(
        self, root: Buffer, manifest: Manifest, on_failure: Callable[[OSError], None]
    ) -> InFile | None:
        part = self._reserved(len(root), manifest.body_size)
        if part is not None:
            try:
                folder, cipher = self.cache.folder, self.cache.cipher
                return InFile(folder, part, root, manifest, on_failure, cipher)
            except OSError as exc:
                self.cache.log_unusable(exc)
        return None

    def _reserved(self, root: int, body: int) -> PartialFile | None:
        """Return the file to fill, with space for these bytes; None if there is none."""
        if self.part is None:
            return None
        try:
            fits, evicted = self.cache.folder.reserve(self.part, body_start(root) + body)
        except (OSError, ConfigurationError) as exc:
            self.cache.log_unusable(exc)
            return None
        self.cache.count_evicted(evicted)
        return self.part if fits else None

    def _failed(self, exc: OSError | None) -> None:
        if exc is not None:
            self.cache.log_unusable(exc)
        self.cache.count_uncached()
        self.release()  # other processes need not wait for this one

    @staticmethod
    def _reraise(exc: OSError) -> None:
        raise exc

    def release(self) -> None:
        """Let other processes fill; an incomplete file is removed."""
        part, self.part = self.part, None
        if part is not None:
            part.close()
