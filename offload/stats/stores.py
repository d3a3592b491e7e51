"""What was counted, by store."""

from __future__ import annotations

from offload.stats.figures import Figures
from offload.stats.report import Report
from offload.stores.capabilities import tiers_of
from offload.stores.protocols import Store

__all__ = ("by_store",)


def by_store(found: Report, store: Store) -> dict[str, Figures]:
    """Return the figures of *store*, or of each of its tiers, by URL.

    Of a single store that is all; ``bytes_fetched`` are then those of values. Of tiers it is what
    stands in `offload.counters.OF_STORE`, and what uploading and fetching took. Stores that are
    not among the tiers any more come last.
    """
    tiers = tiers_of(store)
    if len(tiers) == 1:
        total = found.total
        failed = total["store_retries"] + total["errors_unavailable"]
        return {store.url: Figures({**total.counts, "calls_failed": failed})}
    figures = {tier.url: found.stores.get(tier.url, Figures({})) for tier in tiers}
    gone = {url: found.stores[url] for url in sorted(found.stores.keys() - figures.keys())}
    return {**figures, **gone}
