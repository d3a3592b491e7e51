"""`S3Store`: blobs, pointers, and leases in one bucket."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from offload.stores.capabilities import Known
from offload.stores.leases import RecordLeases
from offload.stores.protocols import SweepItem
from offload.stores.s3.blobs import S3Blobs
from offload.stores.s3.client import Connect, S3Client
from offload.stores.s3.records import Conditions, S3Pointers, S3Records
from offload.stores.s3.small_files import S3Files

__all__ = ("S3Store",)


class S3Store:
    """A store that uses the boto3 clients that *connect* creates in each process.

    `offload.stores.s3.connect.open_s3` sets that up; `offload.stores.s3` describes the objects
    and what the store relies on.

    Args:
        url: for errors and operators; without credentials.
        prefix: of all keys; empty for the bucket's top.
        threads: requests at once in each process.
        skew: seconds by which the clocks of the servers behind one endpoint may differ, and
            that a write may take; added to every life. At least 1, as S3 counts whole seconds.
        ahead: extra share of life that is written.
        common: arguments of every request.
        writing: arguments of every request that writes.
        clock: returns seconds since 1970; replaces the server's (for tests).
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        bucket: str,
        url: str,
        prefix: str = "offload",
        threads: int = 16,
        skew: float = 60.0,
        ahead: float = 1.0,
        common: Mapping[str, Any] | None = None,
        writing: Mapping[str, Any] | None = None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.client = S3Client(
            connect,
            bucket=bucket,
            url=url,
            prefix=f"{prefix}/" if prefix else "",
            threads=threads,
            common=common,
            writing=writing,
            clock=clock,
            sleep=sleep,
        )
        self.conditions = Conditions(self.client)
        self.url = url
        self.blobs = S3Blobs(self.client, self.conditions, skew=skew, ahead=ahead)
        self.versions = self.blobs
        self.pointers = S3Pointers(S3Records(self.client, "pointers", self.conditions))
        self.leases = RecordLeases(S3Records(self.client, "leases", self.conditions))
        self.files = S3Files(self.client)

    def sweep(self, *, dry_run: bool = False, known: Known | None = None) -> Iterator[SweepItem]:
        """Delete what expired, but not blobs *known* to a tier index, and yield it.

        Raises ConfigurationError if the server ignores conditions on deletions.
        """
        if not dry_run:
            self.conditions.require_deletes()
        yield from self.blobs.sweep(known, dry_run=dry_run)
        yield from self.pointers.sweep(dry_run=dry_run)
        yield from self.leases.sweep(dry_run=dry_run)
        yield from self.conditions.sweep(dry_run=dry_run)

    def close(self) -> None:
        """Close this process's connections and end its threads; the next call opens new ones."""
        self.client.close()
