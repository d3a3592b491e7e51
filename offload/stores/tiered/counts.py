"""Counters of each tier's uploads, downloads, and errors."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from offload.digest import Buffer, Digest
from offload.errors import BlobMissing, IntegrityError, StoreError
from offload.stores.capabilities import StoreCounters
from offload.stores.errors import TierNotConfigured
from offload.stores.protocols import Parts

__all__ = ("TierCounts",)


class TierCounts:
    """Count under the URL of each tier, once `counters` is set."""

    def __init__(self, urls: Collection[str]) -> None:
        self._urls = urls
        self.counters: StoreCounters | None = None

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Count a tier's failed call. A missing blob doesn't count."""
        try:
            yield
        except (BlobMissing, TierNotConfigured, IntegrityError):
            raise
        except StoreError as exc:
            if self.counters is not None and exc.store and exc.store in self._urls:
                self.counters.of_store(exc.store, calls_failed=1)
            raise

    @contextmanager
    def uploading(self, url: str, blobs: Mapping[Digest, Parts]) -> Iterator[None]:
        """Count the blobs that this block writes."""
        started = time.perf_counter()
        yield
        if self.counters is not None:
            took = time.perf_counter() - started
            size = sum(memoryview(part).nbytes for parts in blobs.values() for part in parts)
            self.counters.of_store(url, blobs_uploaded=len(blobs), bytes_stored=size)
            self.counters.took("upload", took, store=url)

    def fetching(self, url: str, contents: Iterator[Buffer]) -> Iterator[Buffer]:
        """Yield and count blobs that are read."""
        number = size = 0
        took = 0.0
        try:
            while True:
                started = time.perf_counter()
                content = next(contents, None)
                took += time.perf_counter() - started
                if content is None:
                    return
                number += 1
                size += memoryview(content).nbytes
                yield content
                del content  # keep no reference to what the caller has finished with
        finally:
            if self.counters is not None and number:
                self.counters.of_store(url, blobs_fetched=number, bytes_fetched=size)
                self.counters.took("fetch", took, store=url)
