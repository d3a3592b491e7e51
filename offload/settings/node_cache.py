"""Settings of the node cache, which the processes of one machine share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from offload.settings.checks import check_choice, check_whole, refuse

__all__ = ("NodeCacheSettings",)

CACHES = ("auto", "off")
PREFETCHES = ("auto", "on", "off")
VERIFICATIONS = ("none", "entry", "always")


@dataclass(frozen=True)
class NodeCacheSettings:
    """The node cache, which the processes of one machine share.

    Attributes:
        cache: folder that keeps large values from a remote store for all processes of a
            machine; ``auto`` is one in ``/dev/shm``; ``off``.
        cache_size: most bytes in it; see `offload.content.cache.folder.Folder`.
        prefetch: whether a worker fetches large values into the node cache for tasks that
            wait in it: ``auto`` in prefork workers; ``on`` in every pool; ``off``.
        verify: when cached files are verified, in addition to all that is read from a store:
            ``none``; ``entry`` (their roots at each use); ``always``.
    """

    cache: str = "auto"
    cache_size: int = 1024**3
    prefetch: str = "auto"
    verify: str = "entry"

    def __post_init__(self) -> None:
        if isinstance(self.cache, os.PathLike):
            object.__setattr__(self, "cache", os.fspath(self.cache))
        if not isinstance(self.cache, str) or (
            self.cache not in CACHES and not Path(self.cache).is_absolute()
        ):
            refuse("offload_cache", self.cache, "'auto', 'off' or the absolute path of a folder")
        check_whole("offload_cache_size", self.cache_size)
        check_choice("offload_prefetch", self.prefetch, PREFETCHES)
        check_choice("offload_verify", self.verify, VERIFICATIONS)
