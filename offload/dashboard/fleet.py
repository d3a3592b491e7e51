"""What stores and workers said of themselves, asked behind the scenes for all browsers alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offload.catalog.agreement import agreement
from offload.catalog.expiring import waiting_too_long
from offload.catalog.findings import Finding
from offload.catalog.refreshed import Refreshed
from offload.catalog.workers import Asked, ask_workers, this_process
from offload.doctor.health import StoreState, look_at_stores
from offload.hooks.runtime import Runtime

__all__ = ("Compared", "Fleet")

_STORES = 10.0  # seconds between two looks
_WORKERS = 15.0
_WAITING = 60.0


@dataclass(frozen=True)
class Compared:
    """What workers answered, and what of it does not go together."""

    asked: Asked
    findings: Sequence[Finding]


class Fleet:
    """The stores and workers of an app. Nothing is asked before somebody looks."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.stores: Refreshed[StoreState] = Refreshed(self._look, every=_STORES, share=2)
        self.workers: Refreshed[Compared] = Refreshed(self._compare, every=_WORKERS, share=2)

        self.waiting: Refreshed[Sequence[Finding]] = Refreshed(
            lambda: tuple(waiting_too_long(runtime)), every=_WAITING
        )

    def _look(self) -> StoreState:
        return look_at_stores(self._runtime.store, self._runtime.settings.tier_sizes)

    def _compare(self) -> Compared:
        asked = ask_workers(self._runtime.app)
        return Compared(asked, tuple(agreement(this_process(self._runtime), asked)))
