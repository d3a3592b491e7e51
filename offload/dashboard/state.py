"""State that all pages of a dashboard share, refreshed at most every few seconds."""

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

# Seconds between two reads:
_STORES = 10.0
_WORKERS = 15.0
_WAITING = 60.0  # of queues, for messages that wait longer than their values are kept
_CLASSES = 10.0  # Redis scans all its keys
_OBJECTS = 10.0

_BUCKETS = 4  # buckets whose records are cached
_MAX_DIFF = 200_000  # characters


@dataclass(frozen=True)
class Compared:
    """Workers' replies and configuration drift.

    Attributes:
        asked: the workers that replied, and those that didn't.
        findings: drift between them and this process.
        own: this process, described as a worker.
    """

    asked: Workers
    findings: Sequence[Finding]
    own: Worker


class ClusterStatus:
    """The stores and workers of an app, checked only while pages are requested."""

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
    """The classes of an app's registry, read only while pages are requested.

    Attributes:
        registry: the app's class registry.
        all: classes in the store or registered in this process.
    """

    def __init__(self, registry: ClassRegistry) -> None:
        self.registry = registry
        self.all: BackgroundRefresh[list[ClassState]] = BackgroundRefresh(self._all, every=_CLASSES)
        self._histories: TTLCache[History] = TTLCache(self._history, _CLASSES)
        self._diffs: TTLCache[str] = TTLCache(self._diff, _CLASSES)

    def history(self, name: str) -> History:
        """Return the versions of the class named *name*; empty if there is no such class.

        Raises StoreUnavailable.
        """
        return self._histories.get(name)

    def diff(self, name: str, a: str, b: str) -> str:
        """Return the source diff of versions *a* and *b* (hashes), or a text saying why it's empty.

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
            return "The sources are identical; values, defaults, or the Python version differ."
        return text if len(text) <= _MAX_DIFF else f"{text[:_MAX_DIFF]}\n… cut"


class Objects:
    """The catalog of an app, read only while pages are requested."""

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
        """Return the records of a bucket, sorted by name and version. Raises StoreUnavailable."""
        return self._records.get(bucket)

    def usage(self, bucket: str, name: str) -> Usage:
        """Return how an object was used in the last 90 days. Raises StoreUnavailable."""
        return self._usage.get().get((bucket, name), Usage())

    def versions(self, bucket: str, name: str) -> list[VersionState]:
        """Return the versions of an object, lowest first; empty if there is no such object.

        Raises StoreUnavailable.
        """
        return self._versions.get(bucket, name)

    def _find(self, bucket: str) -> list[Record]:
        return self._runtime.catalog.bucket(bucket).find()

    def _inspect(self, bucket: str, name: str) -> list[VersionState]:
        try:
            records = self._runtime.catalog.bucket(bucket).info(name)
        except (ObjectNotFound, ValueError):  # ValueError: not a valid name
            return []
        return versions_of(self._runtime.content, records)


class DashboardState:
    """An app's runtime, with cached data about its stores and workers.

    Attributes:
        runtime: the app's runtime.
        allow_delete: whether users may remove blobs.
        statistics: the counters.
        stored: blobs and values.
        cluster: stores and workers.
        classes: shipped classes.
        catalog: named objects.
        secret: signs the CSRF tokens of forms.
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
