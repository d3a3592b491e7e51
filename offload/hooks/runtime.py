"""State shared by all hooks of one app: settings, store, counters, options.

This module imports no hook. Hooks keep their own state with `Runtime.part`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

from celery import Celery

from offload.catalog import Catalog
from offload.catalog.late import pin
from offload.classes.keys import own_key
from offload.classes.policy import Policy, RegistryConfig
from offload.classes.registry import ClassRegistry
from offload.classes.scope import own_app
from offload.classes.shipping import Shipping
from offload.content.cache import NodeCache, open_cache
from offload.content.holds import Hold
from offload.content.observe import LEAST, Observer
from offload.content.progress_bar import progress_bar
from offload.content.retrying import Retrying
from offload.content.store import ContentStore, Pins
from offload.encryption.keys import Keyring, keyring_of
from offload.errors import ConfigurationError, InvalidRef, OffloadError, SerializationError
from offload.hooks.default_store import check_store, open_app_store
from offload.hooks.limit import MessageLimit, message_limit
from offload.hooks.options import TaskFacts, Tasks, effective
from offload.hooks.paths import contains
from offload.metrics.counters import Counters
from offload.metrics.recorder import Recorder
from offload.ref import Ref
from offload.serializers.choose import Registry
from offload.serializers.types.register import load_types
from offload.settings import Settings, TaskOptions
from offload.settings.checks import as_seconds
from offload.settings.units import Duration
from offload.stores.capabilities import Tiered
from offload.stores.protocols import Store

T = TypeVar("T")
P = TypeVar("P")

logger = logging.getLogger(__name__)

_VISIBILITY_TIMEOUTS = {
    **dict.fromkeys(("redis", "rediss", "sentinel"), 3600.0),
    **dict.fromkeys(("sqs", "pgmq", "slmq"), 1800.0),
}
RETENTION_HELD = 7 * 86400.0
"""Default of ``offload_retention`` if the store tracks holds, in seconds. Only values that are
never released live that long: after a killed publisher or a purged queue, or in messages that may
have copies."""
RETENTION_BY_AGE = 86400.0
"""Default of ``offload_retention`` if values expire by age, in seconds."""


class Runtime:
    """State shared by the hooks of one app. Users have `offload.hooks.extension.Offload`.

    Args:
        extension: the Offload that connects this app, and perhaps others.
        given: settings by keyword.
        like: the runtime of another app, whose registered classes are shipped here, too.
    """

    def __init__(
        self, extension: Any, given: Mapping[str, Any], like: Runtime | None = None
    ) -> None:
        self.extension = extension
        self.given = given
        self._settings: Settings | None = None
        self._app: Celery | None = None
        self._contents: tuple[int, ContentStore, ContentStore] | None = None
        self._store: Store | None = None
        self.is_worker = False
        """Whether this process belongs to a worker."""
        self._no_call = TaskOptions()
        self._options: dict[str, tuple[TaskFacts, TaskOptions]] = {}
        self.counters = Counters()
        """Counters of this process; see `offload.metrics.counters.NAMES`."""
        self.classes: ClassRegistry = ClassRegistry.from_config(
            self._class_config, self.counters, like=None if like is None else like.classes
        )
        """Classes and functions that are shipped; see `offload.classes.registry`."""
        self.keyring: Keyring | None = None
        """Encryption keys; None without ``offload_encryption_keys``. Set with `settings`."""
        self.clock = time.time
        """Seconds since 1970; tests replace it."""
        self._parts: dict[Any, Any] = {}

    def connect(self, app: Celery) -> None:
        """Take *app*'s settings and tasks. Raises ConfigurationError for wrong settings."""
        self._app = app
        self.tasks = Tasks(app)
        if app.configured:
            _ = self.settings

    @property
    def is_connected(self) -> bool:
        return self._app is not None

    @property
    def app(self) -> Celery:
        """The app. Raises ConfigurationError before `init_app`."""
        if self._app is None:
            raise ConfigurationError("this Offload has no app yet: call init_app(app)")
        return self._app

    @property
    def settings(self) -> Settings:
        """The settings, read once. Raises ConfigurationError naming the key."""
        return self._settings if self._settings is not None else self._keep_settings()

    def _keep_settings(self) -> Settings:
        settings = self.read_settings()
        self.keyring = keyring_of(settings)
        load_types(settings.types)
        self._settings = settings
        return settings

    def read_settings(self) -> Settings:
        """Return the settings without keeping them: the app may be configured further until they
        are used. Raises ConfigurationError naming the key.
        """
        conf = self.app.conf
        settings = Settings.read(conf, self.app.namespace, self.given)
        if settings.mode != "off" and conf.task_protocol != 2:
            raise ConfigurationError(
                f"task_protocol is {conf.task_protocol}: offload needs Celery's message protocol "
                "2, which can list a message's references; remove the setting, or set "
                "offload_mode to 'off'"
            )
        return settings

    # -- for users: documented by `Offload`

    def put(self, value: T, *, retention: Duration | None = None, progress: bool = False) -> Ref[T]:
        ttl = self.retention
        if retention is not None:
            ttl = as_seconds("put: 'retention'", retention)
        if isinstance(value, Ref):
            if not value.is_local:
                ref: Ref[T] = self._with_content(value)
                self.content.holds.add([ref], Hold(ttl))
                return ref
            value = value.get()
        if contains(value, (Ref,)):
            raise SerializationError(
                f"this {type(value).__name__} contains a Ref: put the values, or pass the "
                "references as arguments, which may contain them in lists, tuples, and dicts"
            )
        with progress_bar(shown=progress):
            return self.content.writer.put(
                value, celery_serializer=self.app.conf.task_serializer, hold=Hold(ttl)
            )

    def get(self, ref: Ref[T]) -> T:
        if not isinstance(ref, Ref):
            raise InvalidRef(f"expected a Ref, got a {type(ref).__name__}")
        if ref.is_local:
            return ref.get()
        opened: Ref[T] = self.content.open(ref.wire)
        return self.pinned_ref(opened).get()

    def pinned_ref(self, ref: Ref[T]) -> Ref[T]:
        """Return a reference to what *ref* stands for now, if it is late; else *ref*, verified.

        Raises ObjectNotFound and what reading the catalog raises.
        """
        opened = self.content.opened(ref)
        if opened.late is None:
            return opened
        (found,) = pin(self.content, [opened.late])
        if isinstance(found, OffloadError):
            raise found
        late = opened.late
        self.counters.of_object(late.bucket, late.name, catalog_late=1)
        return found

    def pin(self, ref: Ref[Any], name: str) -> None:
        self.pins.pin(self._with_content(ref), name)

    def _with_content(self, ref: Ref[T]) -> Ref[T]:
        """Return *ref* verified; raises InvalidRef for a late one, which has nothing to hold."""
        opened: Ref[T] = self.content.open(ref.wire)
        if opened.late is not None:
            raise InvalidRef(f"{opened!r} stands for no content yet: use Catalog.ref instead")
        return opened

    @property
    def pins(self) -> Pins:
        return Pins(self.content, self.grace)

    @cached_property
    def catalog(self) -> Catalog:
        return Catalog.of(
            lambda: self.content,
            serializer=lambda: str(self.app.conf.task_serializer),
            grace=lambda: self.grace,
        )

    @property
    def store(self) -> Store:
        """The store, opened at first use. Raises ConfigurationError if there is none."""
        if self._store is None:
            # Opening doesn't connect, so concurrent threads may each do it.
            store = open_app_store(self.settings, self.app)
            if self.settings.mode != "observe" or self.settings.store is not None:
                self.recorder.attach(store)  # observing writes only to a server chosen for it
            if isinstance(store, Tiered):
                store.count_by_tier(self.counters)
            self._store = store
        return self._store

    def __reduce__(self) -> Any:
        """Unpickle as the Offload of the reading app, for example in shipped classes."""
        return _current, ()

    # -- for the hooks

    def part(self, kind: Callable[[Runtime], P]) -> P:
        """Return this app's only instance of class *kind*, created at first use.

        Hooks keep their own state in it, without this module knowing them.
        """
        found: P | None = self._parts.get(kind)
        return found if found is not None else self._parts.setdefault(kind, kind(self))

    def _class_config(self) -> RegistryConfig:
        settings = self.settings
        key = settings.signing_key
        keys = (*settings.verify_keys, *own_key(key))
        policy = Policy(settings.code, keys=keys, allow=settings.code_allow)
        retrying = Retrying(settings.retry, on_retry=lambda: self.counters.add(store_retries=1))
        return RegistryConfig(
            self.store, policy, key, settings.ship_source, retrying, self.app, self.keyring
        )

    @property
    def content(self) -> ContentStore:
        """This process's content store, which accepts the serializers that messages may have."""
        contents = self._contents
        if contents is None or contents[0] != os.getpid():
            contents = self._make_contents()
        return contents[1]

    @property
    def results_content(self) -> ContentStore:
        """This process's content store, which accepts the serializers that results may have."""
        contents = self._contents
        if contents is None or contents[0] != os.getpid():
            contents = self._make_contents()
        return contents[2]

    def _make_contents(self) -> tuple[int, ContentStore, ContentStore]:
        """Create this process's content stores: a fork must not inherit locks and caches."""
        conf = self.app.conf
        cache = open_cache(self.store.url, self.settings, self.counters)
        if cache is not None and self.is_worker:
            cache.occupy()
        content = results = self._content(conf.accept_content, cache)
        if conf.result_accept_content not in (None, conf.accept_content):
            results = self._content(conf.result_accept_content, cache)
        contents = self._contents = os.getpid(), content, results
        return contents

    def _content(self, accepted: Iterable[str] | None, cache: NodeCache | None) -> ContentStore:
        return ContentStore(
            self.store,
            self._serializers(accepted),
            self.settings,
            self.counters,
            cache=cache,
            keyring=self.keyring,
        )

    def start_worker(self, name: str = "") -> None:
        """Mark the node cache as used, from now on also by processes forked from this one.

        Args:
            name: the worker's node name, by which the counters of its processes are added up.
        """
        self.is_worker = True
        self.recorder.worker = name
        if self.settings.mode != "observe":
            with suppress(ConfigurationError):  # without a store, there is nothing to cache
                cache = self.content.cache
                if cache is not None:
                    cache.occupy()

    def stop_worker(self) -> None:
        """Remove this process's mark on the node cache."""
        self.is_worker = False
        cache = None if self._contents is None else self._contents[1].cache
        if cache is not None:
            cache.vacate()

    @cached_property
    def recorder(self) -> Recorder:
        """Writes this process's counters to the store."""
        settings = self.settings
        return Recorder(self.counters, settings.stats_interval, behind=settings.mode == "observe")

    @property
    def retention(self) -> float:
        """Seconds for which a message, or a put, holds its values by default."""
        if self.settings.retention is not None:
            return self.settings.retention
        try:
            tracked = self.store.blobs.tracks_holds
        except ConfigurationError:  # without a store, storing a value raises
            tracked = True
        return RETENTION_HELD if tracked else RETENTION_BY_AGE

    @cached_property
    def grace(self) -> float:
        """Seconds for which released values are kept."""
        return self.settings.grace + redelivery_time(self.app.conf)

    @cached_property
    def observer(self) -> Observer:
        """Counts values in mode ``observe``. It needs no store, and pushes no classes.

        If a store is set, a thread writes the counters there.
        """
        if self.settings.store is not None and self.settings.stats_interval:
            try:
                _ = self.store  # now, as Python can't import a driver while a process exits
            except Exception as exc:  # publishing goes on
                logger.warning("observed counters are not written: %s", exc)
        return Observer(Registry(self.accepted), self.counters)

    @cached_property
    def message_limit(self) -> MessageLimit | None:
        """The limit on this app's messages; None if there is none.

        Its first use is the app's first message. So wrong settings are reported even if the app is
        never finalized, as if it only sends tasks by name.
        """
        self.check_publisher()
        return message_limit(self.settings, self.app)

    def inspection_threshold(self, options: TaskOptions) -> int:
        """Return the size in bytes from which values of a task with *options* are inspected."""
        threshold = options.threshold or 0
        return min(threshold, LEAST) if self.settings.mode == "observe" else threshold

    def _serializers(self, accepted: Iterable[str] | None) -> Registry:
        return Registry(self._accepted(accepted), Shipping(self.classes))

    @property
    def accepted(self) -> frozenset[str]:
        """The serializers accepted in messages, by Celery's names."""
        return self._accepted(self.app.conf.accept_content)

    def _accepted(self, accepted: Iterable[str] | None) -> frozenset[str]:
        return frozenset((*(accepted or ()), *self.settings.accept))

    def options(self, name: str, call: Any = None) -> tuple[TaskOptions, TaskFacts]:
        """Return the options in force for a call of task *name*, and the facts about it."""
        facts = self.tasks[name]
        if call is not None:
            given = TaskOptions.read(call, f"apply_async(offload=…) of {name!r}")
            given.check_call(f"apply_async(offload=…) of {name!r}")
            if given.inline:
                self.tasks.check_inline(name, given)
            return effective(given, facts.options, self.settings), facts
        known = self._options.get(name)
        if known is None or known[0] is not facts:
            options = effective(self._no_call, facts.options, self.settings)
            if len(self._options) >= _NAMES_KEPT:
                self._options.clear()
            known = self._options[name] = (facts, options)
        return known[1], facts

    def check_task(self, name: str) -> None:
        """Raise ConfigurationError if the settings or the task's options are wrong."""
        _ = self.settings
        _ = self.tasks[name]

    def check_publisher(self) -> None:
        """Raise ConfigurationError for wrong settings, or if there is no store for large values.

        Imports no driver, connects to nothing, and keeps no settings.
        """
        settings = self._settings or self.read_settings()
        keyring_of(settings)
        check_store(settings, self.app)

    def check_start(self) -> None:
        """Raise ConfigurationError if workers of the app must not start."""
        if self.settings.mode == "on":
            _ = self.store  # opened, but not connected: its server may be down now
        if self.settings.code != "off":
            self.classes.check_keys()
        if self.keyring is not None:
            self.keyring.load()

    @property
    def result_expires(self) -> float | None:
        """Seconds after which the backend deletes a result; None: never."""
        expires = self.app.conf.result_expires
        seconds = expires.total_seconds() if hasattr(expires, "total_seconds") else expires
        return float(seconds) if seconds else None


_NAMES_KEPT = 10_000


reading_as_refs: ContextVar[bool] = ContextVar("offload_results_as_refs", default=False)
"""Whether stored results are read as their Refs."""


@contextmanager
def results_as_refs() -> Iterator[None]:
    """Read stored results as their Refs in this block: nothing is downloaded."""
    token = reading_as_refs.set(True)
    try:
        yield
    finally:
        reading_as_refs.reset(token)


def _current() -> Any:
    return own_app()._offload.extension  # noqa: SLF001 (set by offload)


def redelivery_time(conf: Any) -> float:
    """Return the seconds after which the broker redelivers an unacknowledged message, for example
    of a worker that was killed.
    """
    options = conf.broker_transport_options or {}
    url = conf.broker_read_url or conf.broker_url
    first = url[0] if isinstance(url, (list, tuple)) and url else url
    default = _VISIBILITY_TIMEOUTS.get(urlsplit(str(first)).scheme.partition("+")[0], 0.0)
    return float(options.get("visibility_timeout", default) or 0.0)
