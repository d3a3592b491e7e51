"""`RedisStore`: the three parts over one link."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from offload.stores.base import Swept
from offload.stores.capacity import Capacity
from offload.stores.findings import Finding
from offload.stores.redis.blobs import RedisBlobs
from offload.stores.redis.diagnose import capacity, diagnose
from offload.stores.redis.leases import RedisLeases
from offload.stores.redis.link import Client, Link
from offload.stores.redis.places import RedisPlaces
from offload.stores.redis.pointers import RedisPointers
from offload.stores.redis.tallies import RedisTallies

__all__ = ("RedisStore",)


class RedisStore:
    """A store over the redis-py clients that *connect* makes, one for each process.

    Their connections must use `offload.stores.redis.packer.PACKER` and answer in bytes.
    See `offload.stores.redis.connect.open_redis` for the usual way.

    Args:
        url: what errors and operators are shown; no credentials.
        prefix: what all keys begin with: ``<prefix>:blob:{<digest>}``,
            ``<prefix>:holds:{<digest>}``, ``<prefix>:place:{<digest>}``,
            ``<prefix>:pointer:<name>``, ``<prefix>:lease:<name>``, ``<prefix>:{stats}…``.
        replicas, patience: see `Link`.
    """

    def __init__(
        self,
        connect: Callable[[], Client],
        *,
        url: str,
        prefix: str = "offload",
        replicas: int = 0,
        patience: float = 1.0,
    ) -> None:
        self._link = Link(connect, url, prefix, replicas=replicas, patience=patience)
        self.url = url
        self.places = RedisPlaces(self._link)
        self.blobs = RedisBlobs(self._link, self.places)
        self.pointers = RedisPointers(self._link)
        self.leases = RedisLeases(self._link)
        self.tallies = RedisTallies(self._link)

    def sweep(self, *, dry_run: bool = False) -> Iterator[Swept]:  # noqa: ARG002
        """Do nothing: the server removes what has expired."""
        return iter(())

    def diagnose(self, *, longest: float) -> Iterator[Finding]:  # noqa: ARG002
        """Look at the server's version, memory, persistence and clock."""
        return diagnose(self._link)

    def capacity(self) -> Iterator[Capacity]:
        """Ask the server for memory and keys."""
        return capacity(self._link)

    def close(self) -> None:
        """Close this process's connections; the next call makes new ones."""
        self._link.close()
