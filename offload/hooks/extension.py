"""Offload: the object that connects apps with their stores."""

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
    own settings, store, and counters. Within a task, an Offload uses the task's app; otherwise
    Celery's current app, if that is one of its apps; otherwise the app that was connected last.
    Registered classes are registered for all apps.

    Args:
        app: the Celery app; without one, call `init_app` later.
        settings: any of `offload.settings.Settings` by keyword; they override what
            ``app.conf`` says under ``offload_…``.

    Raises:
        ConfigurationError: a setting is unknown or invalid. Settings that come from
            ``app.conf`` are checked when the configuration is read: immediately if it is
            loaded, else at the first publish and when a worker starts.
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
        """Connect with *app*, in addition to earlier apps. Repeated calls change nothing.

        Raises ConfigurationError if the app has another Offload.
        """
        app = app_itself(app)
        present = getattr(app, "_offload", None)
        if present is not None:
            if present.extension is not self:
                raise ConfigurationError(
                    f"app {app.main!r} has an Offload already; an app takes one"
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
        """The runtime of the app that the call is for."""
        if self._serves_several:
            for app in (getattr(current_task, "app", None), current_app):
                runtime = getattr(app, "_offload", None)
                if isinstance(runtime, Runtime) and runtime.extension is self:
                    return runtime
        return self._latest

    def __reduce__(self) -> Any:
        """Unpickle as the Offload of the reading app, for example in shipped classes."""
        return self._runtime.__reduce__()

    @property
    def app(self) -> Celery:
        """The app. Raises ConfigurationError before `init_app`."""
        return self._runtime.app

    @property
    def settings(self) -> Settings:
        """The settings, read once. Raises ConfigurationError naming the key."""
        return self._runtime.settings

    @property
    def store(self) -> Store:
        """The store, opened at first use. Raises ConfigurationError if there is none."""
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
            since: only those of this time until now, such as ``"6h"``; default: of all time.

        Raises what reading the store raises.
        """
        runtime = self._runtime
        runtime.recorder.write()
        seconds = None if since is None else as_seconds("stats: 'since'", since)
        return report(sums_of(runtime.store), seconds, tasks=True)

    def put(self, value: T, *, retention: Duration | None = None, progress: bool = False) -> Ref[T]:
        """Serialize and store *value* now, and return its reference to pass to tasks.

        For a reference, return it, held as long as a value would be.

        Args:
            retention: seconds, or a text such as ``7d``, to hold it (and a quarter more, so that
                passing the reference on soon costs no round trip); default ``offload_retention``.
            progress: whether to show the upload's progress, with tqdm or rich. Bytes that the store
                has already aren't uploaded.

        Raises:
            ConfigurationError: neither tqdm nor rich is installed.
            SerializationError: no accepted serializer can carry it, or it contains references.
            ValueTooLarge: it is larger than ``offload_max_size``.
            InvalidRef: a reference is of another app.
            BlobMissing: the value of a reference is no longer in the store.
            StoreError: the store failed; `StoreUnavailable` if a retry may help.
        """
        return self._runtime.put(value, retention=retention, progress=progress)

    def get(self, ref: Ref[T]) -> T:
        """Return the value of *ref*, wherever the reference comes from.

        Raises InvalidRef if it is not one of the app's, and what `Ref.get` raises.
        """
        return self._runtime.get(ref)

    @overload
    async def adelay(self, task: Publishable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def adelay(self, task: str, /, *args: Any, **kwargs: Any) -> Any: ...
    async def adelay(self, task: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a task as its ``delay`` does, without blocking the event loop; return its result.

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
        """Call a task as its ``apply_async`` does, without blocking the event loop.

        Values are stored, and the message is sent, in one of at most four threads of the process,
        with a copy of the caller's context variables. If the coroutine is cancelled before a thread
        has started, nothing is sent. After that, the message is probably sent; give it a *task_id*
        to revoke it by.

        Args:
            task: a task, a signature (such as a chain or a group), or a task's name.
            args: positional arguments of the task.
            kwargs: keyword arguments of the task.
            options: of ``apply_async``.

        Returns the result, as Celery does. Raises what ``apply_async`` raises.
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

        One thread of the process waits for all results. If the coroutine is cancelled, it forgets
        this one, and the task goes on.

        Args:
            source: a result as a task's ``delay`` or a group returns it, or a `Ref`.
            timeout: seconds to wait for the task; reading its value takes more. 0 doesn't wait.
                For a reference, seconds to read its value.
            propagate: whether to raise the task's exception, rather than to return it.
            disable_sync_subtasks: whether to raise RuntimeError in a worker's task, as Celery does.

        Raises what the task raised, celery.exceptions.TimeoutError, and what `get` raises;
        ValueError for a *timeout* that isn't a number.
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
        """Store *value* and return its reference as `put` does, without blocking the event loop."""
        ref: Ref[T] = await _calls().put(
            self._runtime, value, retention=retention, progress=progress
        )
        return ref

    def read_event(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return a received event with values in place of the text that stands for large fields.

        Values of events are held for an hour. Raises what `get` raises.
        """
        return events.read_event(self._runtime, event)

    def pin(self, ref: Ref[Any], name: str) -> None:
        """Hold the value of *ref* until `unpin`; replaces an existing pin of this name.

        Raises BlobMissing if it is missing, ConfigurationError for a store that doesn't track holds
        (S3 or files alone), ValueError for an invalid name.
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
            ttl: seconds, or a text such as ``90s``, after which others may take it over if its
                owner has died.
            heartbeat: whether a thread renews it while it is held.

        Raises ValueError for an invalid name, ConfigurationError for an invalid *ttl*.
        """
        return Lock(self.store, name, ttl=as_seconds("lock: 'ttl'", ttl), heartbeat=heartbeat)


def _calls() -> Any:
    """Import what only coroutines need: asyncio, which they have imported already."""
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
