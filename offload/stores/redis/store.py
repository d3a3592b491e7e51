"""`RedisStore`: blobs, pointers, and leases through one client."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from offload.stores.protocols import SweepItem
from offload.stores.redis.blobs import RedisBlobs
from offload.stores.redis.client import Driver, RedisClient
from offload.stores.redis.records import RedisLeases, RedisPointers
from offload.stores.redis.sums import RedisSums

__all__ = ("RedisStore",)


class RedisStore:
    """A store that uses the redis-py clients that *connect* creates, one per process.

    Their connections must use `offload.stores.redis.packer.PACKER` and answer in bytes.
    `offload.stores.redis.connect.open_redis` sets that up.

    Args:
        url: for errors and operators; without credentials.
        prefix: of all keys: ``<prefix>:blob:{<digest>}``,
            ``<prefix>:holds:{<digest>}``, ``<prefix>:place:{<digest>}``,
            ``<prefix>:pointer:<name>``, ``<prefix>:lease:<name>``, ``<prefix>:{stats}…``.
        replicas, patience: see `RedisClient`.
    """

    def __init__(
        self,
        connect: Callable[[], Driver],
        *,
        url: str,
        prefix: str = "offload",
        replicas: int = 0,
        patience: float = 1.0,
    ) -> None:
        self.client = RedisClient(connect, url, prefix, replicas=replicas, patience=patience)
        self.url = url
        self.blobs = RedisBlobs(self.client)
        self.pointers = RedisPointers(self.client)
        self.leases = RedisLeases(self.client)
        self.sums = RedisSums(self.client)

    def sweep(self, *, dry_run: bool = False) -> Iterator[SweepItem]:  # noqa: ARG002
        """Do nothing: the server deletes what has expired."""
        return iter(())

    def close(self) -> None:
        """Close this process's connections; the next call opens new ones."""
        self.client.close()
