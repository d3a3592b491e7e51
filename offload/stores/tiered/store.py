"""`TieredStore`: several stores as one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise

from offload.errors import ConfigurationError, StoreUnavailable
from offload.stores.capabilities import StoreCounters
from offload.stores.protocols import LeaseStore, PointerStore, Store, SweepItem
from offload.stores.tiered.blobs import TierCounts, TieredBlobs
from offload.stores.tiered.index import Tier, index_of, sweep, tier_name

logger = logging.getLogger(__name__)

SIZES = (1 << 20,)
"""Default minimum size in bytes of values in the second of two tiers."""
SMALL = 64 << 10


class TieredStore:
    """Several stores as one; see `offload.stores.tiered`.

    Args:
        first: has the pointers, leases, small blobs, and the tier index; a `RedisStore` (or, in
            tests, a `MemoryStore`).
        lower: the lower tiers, at least one.
        sizes: for each lower tier, the minimum size in bytes of its values, in ascending order.
        small: blobs with fewer bytes stay in the first tier.
        clock: returns monotonic seconds.

    Attributes:
        tiers: all stores, the first tier first.

    Raises ConfigurationError if the arguments don't fit together.
    """

    def __init__(
        self,
        first: Store,
        lower: Sequence[Store],
        sizes: Sequence[int] = SIZES,
        *,
        small: int = SMALL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tiers = (first, *lower)
        self.url = " + ".join(store.url for store in self.tiers)
        index = index_of(first)
        if index is None:
            raise ConfigurationError(
                f"{first.url} can't be the first of several stores, because it has no tier index: "
                "put a Redis before it",
                store=self.url,
            )
        self.index = index
        self._lower = [Tier(store, clock) for store in lower]
        _check(self.tiers, self._lower, sizes, self.url)
        self._first = first
        self._counts = TierCounts([store.url for store in self.tiers])
        self.blobs = TieredBlobs(
            first,
            index,
            self._lower,
            sizes=sizes,
            small=small,
            url=self.url,
            counts=self._counts,
        )

    def count_by_tier(self, counters: StoreCounters) -> None:
        """Count uploads, downloads, and errors of each tier from now on."""
        self._counts.counters = counters

    @property
    def pointers(self) -> PointerStore:
        return self._first.pointers

    @property
    def leases(self) -> LeaseStore:
        return self._first.leases

    def sweep(self, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Delete unreferenced blobs, and those that expired in each tier; yield each item.

        If a tier is unavailable, the others are swept, and its StoreUnavailable is raised at the
        end. A tier that can't be swept safely is skipped, with a warning in the log: it needs
        lifecycle rules.
        """
        unavailable: list[StoreUnavailable] = []
        for each in (
            self._first.sweep(dry_run=dry_run),
            *(sweep(self.index, tier, dry_run=dry_run) for tier in self._lower),
        ):
            try:
                yield from each
            except ConfigurationError as exc:
                logger.warning("not swept: %s", exc)
            except StoreUnavailable as exc:
                unavailable.append(exc)
        if unavailable:
            raise unavailable[0]

    def close(self) -> None:
        """Close all tiers; the next call opens them again."""
        for store in self.tiers:
            store.close()


def _check(stores: Sequence[Store], lower: Sequence[Tier], sizes: Sequence[int], url: str) -> None:
    if not lower:
        raise ConfigurationError(f"{url}: combine at least two stores", store=url)
    seen = sorted([tier_name(stores[0].url), *(tier.name for tier in lower)])
    for name, group in groupby(seen):
        if len(list(group)) > 1:
            raise ConfigurationError(f"{url}: {name} is listed twice", store=url)
    if len(sizes) != len(lower):
        raise ConfigurationError(
            f"{url}: {len(stores)} stores need {len(lower)} sizes (offload_tier_sizes) at which "
            f"values go to the next store, not {len(sizes)}",
            store=url,
        )
    if sizes[0] <= 0 or any(a >= b for a, b in pairwise(sizes)):
        raise ConfigurationError(
            f"{url}: the sizes of tiers must be ascending, in bytes above 0, not {tuple(sizes)}",
            store=url,
        )
