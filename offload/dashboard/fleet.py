"""What stores and workers said of themselves, asked behind the scenes for all browsers alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offload.dashboard.caching import BackgroundRefresh
from offload.doctor.health import StoreState, inspect_store
from offload.doctor.messages import check_messages
from offload.hooks.runtime import Runtime
from offload.inspect.config_drift import config_drift
from offload.inspect.findings import Finding
from offload.inspect.workers import Workers, ask_workers, this_process

__all__ = ("Compared", "Fleet")

_STORES = 10.0  # seconds between two looks
_WORKERS = 15.0
_WAITING = 60.0


@dataclass(frozen=True)
class Compared:
    """What workers answered, and what of it does not go together."""

    asked: Workers
    findings: Sequence[Finding]


class Fleet:
    """The stores and workers of an app. Nothing is asked before somebody looks."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.stores: BackgroundRefresh[StoreState] = BackgroundRefresh(
            self._look, every=_STORES, share=2
        )
        self.workers: BackgroundRefresh[Compared] = BackgroundRefresh(
            self._compare, every=_WORKERS, share=2
        )

        self.waiting: BackgroundRefresh[Sequence[Finding]] = BackgroundRefresh(
            lambda: tuple(check_messages(runtime)), every=_WAITING
        )

    def _look(self) -> StoreState:
        return inspect_store(self._runtime.store, self._runtime.settings.tier_sizes)

    def _compare(self) -> Compared:
        asked = ask_workers(self._runtime.app)
        return Compared(asked, tuple(config_drift(this_process(self._runtime), asked)))
