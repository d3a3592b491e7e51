"""Blobs in S3 as a lower tier has them: an ETag tells one writing from another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from offload.digest import Digest
from offload.stores.places import Noted, Version
from offload.stores.protocols import Parts, SweepItem
from offload.stores.s3.blobs import NONCE, S3Blobs
from offload.stores.s3.client import S3Client
from offload.stores.s3.records import Conditions

__all__ = ("S3Versions",)


class S3Versions:
    """See `offload.stores.places.Versioned`."""

    def __init__(
        self,
        client: S3Client,
        blobs: S3Blobs,
        conditions: Conditions,
        sweep: Callable[..., Iterator[SweepItem]],
    ) -> None:
        self._client = client
        self._blobs = blobs
        self._conditions = conditions
        self._sweep = sweep

    def prolong(self, digests: Sequence[Digest], ttl: float) -> dict[Digest, float]:
        kept = self._client.threads.each(lambda digest: self._blobs.keep(digest, ttl), digests)
        return {d: left for d, left in zip(digests, kept, strict=True) if left is not None}

    def replace(self, blobs: Mapping[Digest, Parts], ttl: float) -> dict[Digest, float]:
        return self._blobs.store(blobs, ttl, anew=True)

    def versions(self, digests: Sequence[Digest]) -> dict[Digest, Version]:
        seen = self._client.threads.each(self._blobs.life_at, digests)
        return {
            digest: Version(life.etag, max((life.size or 0) - NONCE, 0))
            for digest, life in zip(digests, seen, strict=True)
            if life is not None
        }

    def discard(self, versions: Mapping[Digest, Version]) -> set[Digest]:
        self._conditions.require_deletes()
        tags = [(digest, version.tag) for digest, version in versions.items()]
        done = self._client.threads.each(lambda seen: self._blobs.remove(*seen), tags)
        return {digest for digest, is_gone in zip(versions, done, strict=True) if is_gone}

    def sweep(self, noted: Noted, *, dry_run: bool) -> Iterator[SweepItem]:
        return self._sweep(noted, dry_run=dry_run)
