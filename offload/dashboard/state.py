"""State that all pages of one dashboard share, read from the store at most every few seconds."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request

from offload.catalog import Record
from offload.classes.registry import ClassRegistry
from offload.dashboard.caching import BackgroundRefresh, TTLCache
from offload.dashboard.statistics import Statistics
from offload.dashboard.stored import Stored
from offload.doctor.retention import check_messages
from offload.doctor.store import StoreState, inspect_store
from offload.errors import CodeError, ObjectNotFound
from offload.hooks.runtime import Runtime
from offload.inspect import Finding
from offload.inspect.catalog import VersionState, usage_of, versions_of
from offload.inspect.classes import ClassState, History, classes_of, history_of
from offload.inspect.config_drift import config_drift
from offload.inspect.workers import Worker, Workers, ask_workers, this_process
from offload.metrics.report import Usage

_STORES = 10.0  # seconds between two checks of the stores
_WORKERS = 15.0  # of the workers
_WAITING = 60.0  # of messages about to lose their values
_CLASSES = 10.0  # seconds between two reads of all classes: Redis scans all its keys
_OBJECTS = 10.0  # of the catalog
_BUCKETS = 4  # whose records are kept
_MAX_DIFF = 200_000  # characters


@dataclass(frozen=True)
class Compared:
    """The replies of workers, and how they differ.

    Attributes:
        own: this process.
    """

    asked: Workers
    findings: Sequence[Finding]
    own: Worker


class ClusterStatus:
    """The stores and workers of an app. Nothing is requested before a page is."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.stores: BackgroundRefresh[StoreState] = BackgroundRefresh(
            self._inspect, every=_STORES, share=2
        )
        self.workers: BackgroundRefresh[Compared] = BackgroundRefresh(
            self._compare, every=_WORKERS, share=2
        )
        self.waiting: BackgroundRefresh[Sequence[Finding]] = BackgroundRefresh(
            lambda: tuple(check_messages(runtime)), every=_WAITING
        )

    def _inspect(self) -> StoreState:
        return inspect_store(self._runtime.store, self._runtime.settings.tier_sizes)

    def _compare(self) -> Compared:
        asked = ask_workers(self._runtime.app)
        own = this_process(self._runtime)
        return Compared(asked, tuple(config_drift(own, asked)), own)


class Classes:
    """The classes of an app's registry. Nothing is read before a page is requested.

    Attributes:
        registry: the app's.
        all: classes in the store or registered here.
    """

    def __init__(self, registry: ClassRegistry) -> None:
        self.registry = registry
        self.all: BackgroundRefresh[list[ClassState]] = BackgroundRefresh(self._all, every=_CLASSES)
        self._histories: TTLCache[History] = TTLCache(self._history, _CLASSES)
        self._diffs: TTLCache[str] = TTLCache(self._diff, _CLASSES)

    def history(self, name: str) -> History:
        """Return the versions of the class with exactly this name; none if there is no such class.

        Raises StoreUnavailable.
        """
        return self._histories.get(name)

    def diff(self, name: str, a: str, b: str) -> str:
        """Return the diff of the sources of versions *a* and *b*, or why there is none.

        Raises StoreUnavailable.
        """
        return self._diffs.get(name, a, b)

    def _all(self) -> list[ClassState]:
        return classes_of(self.registry)

    def _history(self, name: str) -> History:
        for state in self.all.get().value or ():
            if state.name == name:
                return history_of(self.registry, state)
        return History(name, ())

    def _diff(self, name: str, a: str, b: str) -> str:
        try:
            text = self.registry.diff(name, a, b)
        except (CodeError, ValueError) as exc:
            return str(exc)
        if not text:
            return "The sources are the same; values, defaults, or the Python version differ."
        return text if len(text) <= _MAX_DIFF else f"{text[:_MAX_DIFF]}\n… cut"


class Objects:
    """The catalog of an app. Nothing is read before a page is requested."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._buckets: TTLCache[list[str]] = TTLCache(runtime.catalog.buckets, _OBJECTS)
        self._records: TTLCache[list[Record]] = TTLCache(self._find, _OBJECTS, most=_BUCKETS)
        self._versions: TTLCache[list[VersionState]] = TTLCache(self._inspect, _OBJECTS)
        self._usage: TTLCache[dict[tuple[str, str], Usage]] = TTLCache(
            lambda: usage_of(runtime), _OBJECTS
        )

    def buckets(self) -> list[str]:
        """Return the names of all buckets. Raises StoreUnavailable."""
        return self._buckets.get()

    def records(self, bucket: str) -> list[Record]:
        """Return the records of a bucket, by name and version. Raises StoreUnavailable."""
        return self._records.get(bucket)

    def usage(self, bucket: str, name: str) -> Usage:
        """Return how an object was used in the last 90 days. Raises StoreUnavailable."""
        return self._usage.get().get((bucket, name), Usage())

    def versions(self, bucket: str, name: str) -> list[VersionState]:
        """Return the versions of an object, the lowest first; [] if there is no such object.

        Raises StoreUnavailable.
        """
        return self._versions.get(bucket, name)

    def _find(self, bucket: str) -> list[Record]:
        return self._runtime.catalog.bucket(bucket).find()

    def _inspect(self, bucket: str, name: str) -> list[VersionState]:
        try:
            records = self._runtime.catalog.bucket(bucket).info(name)
        except (ObjectNotFound, ValueError):  # or it can't be the name of one
            return []
        return versions_of(self._runtime.content, records)


class DashboardState:
    """An app's runtime, and what was read from its store recently.

    Attributes:
        runtime: the app's.
        allow_delete: whether blobs may be removed.
        statistics: the counters.
        stored: the blobs.
        cluster: stores and workers.
        classes: shipped classes.
        catalog: named objects.
        secret: signs the forms of this dashboard.
    """

    def __init__(self, runtime: Runtime, *, allow_delete: bool) -> None:
        self.runtime = runtime
        self.allow_delete = allow_delete
        self.statistics = Statistics(runtime)
        self.stored = Stored(runtime)
        self.cluster = ClusterStatus(runtime)
        self.classes = Classes(runtime.classes)
        self.catalog = Objects(runtime)
        self.secret = secrets.token_bytes(32)


def state_of(request: Request) -> DashboardState:
    """Return the state of the dashboard that serves *request*."""
    state: DashboardState = request.app.state.state
    return state
