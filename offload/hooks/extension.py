"""`Offload`, which connects apps with their stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from celery import Celery, current_app, current_task
from kombu.utils.imports import symbol_by_name

from offload.catalog import Catalog
from offload.classes.registry import ClassRegistry
from offload.errors import ConfigurationError
from offload.hooks import (
    control,
    direct,
    events,
    execute,
    prefetch,
    requests,
    result_refs,
    results,
    startup,
    usercode,
)
from offload.hooks.celery_internals import GET_BACKEND, app_itself, opened_backend
from offload.hooks.memo import Memos
from offload.hooks.publish import amqp_class
from offload.hooks.results import hook_backend
from offload.hooks.runtime import Runtime
from offload.locks import Lock
from offload.memo.functions import Memoized
from offload.memo.keys import SCOPE
from offload.memo.results import LEASE
from offload.metrics.counters import Counters
from offload.metrics.report import Report, report
from offload.metrics.storage import sums_of
from offload.ref import Ref
from offload.settings import Settings
from offload.settings.checks import as_seconds
from offload.settings.units import Duration
from offload.stores.protocols import Store

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from offload.hooks.aio.calls import Gettable, Publishable
    from offload.settings.typed import SettingsDict

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")


class Offload:
    """Sends large arguments and results of an app's tasks by reference.

    One Offload serves any number of apps, such as those of an application factory; each has its
    own settings, store, and counters. Within a task, it uses the task's app. Otherwise, it uses
    Celery's current app if it is connected with that, or else the app that was connected last.
    Registered classes are registered for all apps.

    Args:
        app: the Celery app; without one, call `init_app` later.
        settings: settings by keyword, see `offload.settings.Settings`; they override the
            ``offload_…`` settings in ``app.conf``.

    Raises:
        ConfigurationError: if a setting is unknown or invalid. Settings in ``app.conf`` are
            checked when the configuration is read: immediately if it is loaded, else at the
            first publish and when a worker starts.
    """

    def __init__(self, app: Celery | None = None, **settings: Unpack[SettingsDict]) -> None:
        given = dict[str, Any](settings)
        Settings.read({}, None, given)
        self._given: Mapping[str, Any] = given
        self._latest = Runtime(self, given)
        self._serves_several = False
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Celery) -> None:
        """Connect with *app*, in addition to earlier apps. Repeated calls have no effect.

        Raises ConfigurationError if the app has another Offload.
        """
        app = app_itself(app)
        present = getattr(app, "_offload", None)
        if present is not None:
            if present.extension is not self:
                raise ConfigurationError(
                    f"app {app.main!r} already has an Offload; an app can have only one"
                )
            return
        runtime, latest = self._latest, self._latest
        if latest.is_connected:
            runtime = Runtime(self, self._given, like=latest)
        runtime.connect(app)
        _install(runtime, app)
        if runtime is not latest:
            self._serves_several, self._latest = True, runtime

    @property
    def _runtime(self) -> Runtime:
        """The runtime of the app to use for a call."""
        if self._serves_several:
            for app in (getattr(current_task, "app", None), current_app):
                runtime = getattr(app, "_offload", None)
                if isinstance(runtime, Runtime) and runtime.extension is self:
                    return runtime
        return self._latest

    def __reduce__(self) -> Any:
        """Pickle as a reference to the reading app's Offload, for example in shipped classes."""
        return self._runtime.__reduce__()

    @property
    def app(self) -> Celery:
        """The app in use. Raises ConfigurationError before `init_app`."""
        return self._runtime.app

    @property
    def settings(self) -> Settings:
        """The app's settings, read once. Raises ConfigurationError if one is invalid."""
        return self._runtime.settings

    @property
    def store(self) -> Store:
        """The app's store, opened on first use. Raises ConfigurationError if there is none."""
        return self._runtime.store

    @property
    def counters(self) -> Counters:
        """The counters of this process; see `offload.metrics.counters.NAMES`."""
        return self._runtime.counters

    @property
    def classes(self) -> ClassRegistry:
        """Classes and functions that are shipped; see `offload.classes.registry`."""
        return self._runtime.classes

    @property
    def catalog(self) -> Catalog:
        """Named, versioned objects in the app's store; see `offload.Catalog`."""
        return self._runtime.catalog

    def stats(self, since: Duration | None = None) -> Report:
        """Return the counters of all processes of the app, in total and by task.

        A notebook shows them as tables. Writes this process's own counters first.

        Args:
            since: count only this period until now, as seconds or a string such as ``"6h"``; by
                default, all time.

        Raises ConfigurationError if the store keeps no statistics, and StoreUnavailable.
        """
        runtime = self._runtime
        runtime.recorder.write()
        seconds = None if since is None else as_seconds("stats: 'since'", since)
        return report(sums_of(runtime.store), seconds, tasks=True)

    def put(self, value: T, *, retention: Duration | None = None, progress: bool = False) -> Ref[T]:
        """Serialize and store *value* now, and return a reference to pass to tasks.

        If *value* is a reference, return it, and hold its value as long as a new one.

        Args:
            retention: how long to hold the value, in seconds or as a string such as ``7d``; by
                default, ``offload_retention``. A quarter is added, so that passing on the
                reference soon costs no round trip.
            progress: whether to show the upload's progress, with tqdm or rich. Bytes that are
                already in the store aren't uploaded.

        Raises:
            ConfigurationError: if *progress* is true and neither tqdm nor rich is installed.
            SerializationError: if no accepted serializer supports it, or it contains references.
            ValueTooLarge: if it is larger than ``offload_max_size``.
            InvalidRef: if a reference is from another app.
            BlobMissing: if a reference's value is no longer in the store.
            StoreError: if the store failed; `StoreUnavailable` if a retry may help.
        """
        return self._runtime.put(value, retention=retention, progress=progress)

    def get(self, ref: Ref[T]) -> T:
        """Return the value of *ref*, no matter where the reference is from.

        Raises InvalidRef if it is from another app, and the errors of `Ref.get`.
        """
        return self._runtime.get(ref)

    @overload
    async def adelay(self, task: Publishable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def adelay(self, task: str, /, *args: Any, **kwargs: Any) -> Any: ...
    async def adelay(self, task: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a task like its ``delay``, without blocking the event loop; return its result.

        See `aapply_async`.
        """
        return await _calls().delay(self._runtime, task, args, kwargs)

    async def aapply_async(
        self,
        task: Any,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Call a task like its ``apply_async``, without blocking the event loop.

        One of at most four threads of the process stores values and sends the message, with a copy
        of the caller's context variables. If the coroutine is cancelled before the thread has
        started, nothing is sent. After that, the message is probably sent; pass a *task_id* to be
        able to revoke it.

        Args:
            task: a task, a signature (such as a chain or a group), or a task's name.
            args: positional arguments of the task.
            kwargs: keyword arguments of the task.
            options: further options of ``apply_async``.

        Returns the same result as Celery, and raises the same errors.
        """
        return await _calls().apply_async(self._runtime, task, args, kwargs, options)

    async def aget(
        self,
        source: Gettable[T],
        timeout: float | None = None,
        *,
        propagate: bool = True,
        disable_sync_subtasks: bool = True,
    ) -> T:
        """Return the value of a result or a reference, without blocking the event loop.

        One thread of the process waits for all results. If the coroutine is cancelled, the thread
        forgets this result, and the task continues.

        Args:
            source: a result of ``delay``, ``apply_async``, or a group; or a `Ref`.
            timeout: seconds to wait for the task, not including the time to read its value; 0
                doesn't wait. For a reference, seconds to read its value.
            propagate: whether to raise the task's exception, rather than return it.
            disable_sync_subtasks: whether to raise RuntimeError within a task, as Celery does.

        Raises the task's exception, celery.exceptions.TimeoutError, the errors of `get`, and
        ValueError if *timeout* isn't a number.
        """
        value: T = await _calls().get(
            self._runtime,
            source,
            timeout=timeout,
            propagate=propagate,
            disable_sync_subtasks=disable_sync_subtasks,
        )
        return value

    async def aput(
        self, value: T, *, retention: Duration | None = None, progress: bool = False
    ) -> Ref[T]:
        """Store *value* and return its reference like `put`, without blocking the event loop."""
        ref: Ref[T] = await _calls().put(
            self._runtime, value, retention=retention, progress=progress
        )
        return ref

    def read_event(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return a received event, in which values replace the text of large fields.

        The values of events are held for an hour. Raises the errors of `get`.
        """
        return events.read_event(self._runtime, event)

    def pin(self, ref: Ref[Any], name: str) -> None:
        """Hold the value of *ref* until `unpin`, replacing an existing pin with this name.

        Raises BlobMissing if the value is missing, ConfigurationError if the store doesn't track
        holds (S3 or files alone), and ValueError if the name is invalid.
        """
        self._runtime.pin(ref, name)

    def unpin(self, name: str) -> bool:
        """Remove the pin; return whether there was one.

        The value expires after ``offload_grace``, or later if something else holds it: a `put`
        holds it for its retention and a quarter more, messages and results for their own time.
        """
        return self._runtime.pins.unpin(name)

    def pinned(self, name: str) -> Ref[Any] | None:
        """Return the reference pinned under *name*; None if there is none."""
        return self._runtime.pins.find(name)

    def memoize(
        self,
        ttl: Duration | None = None,
        *,
        version: str | None = None,
        ignore: Iterable[str] = (),
        key: Callable[[dict[str, Any]], Any] | None = None,
        scope: str = SCOPE,
        lease: Duration = LEASE,
    ) -> Callable[[Callable[..., T]], Memoized[T]]:
        """Return a decorator that remembers the results of a plain function in the app's store.

        For arguments and errors, see `offload.memoize`. Without *ttl*, results are remembered as
        long as the app's task results are kept.
        """
        return self._runtime.part(Memos).decorator(
            ttl, version=version, ignore=ignore, key=key, scope=scope, lease=lease
        )

    @property
    def memo(self) -> Memos:
        """The remembered results of the app: ``forget(task, …)`` and ``forget_all(task)``."""
        return self._runtime.part(Memos)

    def lock(self, name: str, *, ttl: Duration = 30.0, heartbeat: bool = True) -> Lock:
        """Return a lock by *name* in the app's store, shared by all its processes; see `Lock`.

        Args:
            ttl: time after which others can acquire it if its owner has died, in seconds or as a
                string such as ``90s``.
            heartbeat: whether a thread renews it while it is held.

        Raises ValueError if the name is invalid, ConfigurationError if *ttl* is.
        """
        return Lock(self.store, name, ttl=as_seconds("lock: 'ttl'", ttl), heartbeat=heartbeat)


def _calls() -> Any:
    """Import the coroutine API on first use; it needs asyncio, which most callers don't."""
    from offload.hooks.aio import calls

    return calls


def _install(runtime: Runtime, app: Any) -> None:
    """Hook publishing, executing, and results of *app*, and register offload's own tasks."""
    app._offload = runtime  # noqa: SLF001 (set by offload)
    app.amqp_cls = amqp_class(symbol_by_name(app.amqp_cls))
    before = app.__dict__.pop("amqp", None)  # an instance of the old class
    if before is not None and "queues" in before.__dict__:
        app.amqp.__dict__["queues"] = before.queues  # with queues added to them
    usercode.guard_send_task(runtime, app)
    get_backend = getattr(app, GET_BACKEND)

    def offload_get_backend() -> Any:
        return hook_backend(runtime, get_backend())

    setattr(app, GET_BACKEND, offload_get_backend)
    hook_backend(runtime, opened_backend(app))
    app.steps["worker"].add(execute.CheckConfiguration)
    app.steps["consumer"].add(execute.CheckTracers)
    control.register_gc_task(runtime, app)
    control.register_check_task(runtime, app)
    for hooks in (execute, requests, control, usercode, direct, results, result_refs, prefetch):
        hooks.install()
    events.install()
    startup.check_early(runtime, app)
