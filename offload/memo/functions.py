"""`memoize`: remember the results of plain functions, under the rules of memo tasks."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from offload.classes.scope import Scope
from offload.content.store import ContentStore
from offload.errors import ConfigurationError
from offload.memo.asyncio_internals import mark_coroutine_function
from offload.memo.flight import Busy, Computation
from offload.memo.keys import SCOPE, Function, NotRemembered, Remembered
from offload.memo.records import forget_record, forget_records, record_name
from offload.memo.results import LEASE, Answer, Results, is_lasting
from offload.metrics.counters import Counters
from offload.serializers.choose import Registry
from offload.settings import Settings
from offload.settings.checks import as_seconds, refuse
from offload.settings.units import Duration
from offload.stores.checks import check_ttl
from offload.stores.processes import PerProcess
from offload.stores.protocols import Store

T = TypeVar("T")

_FOREVER = 10 * 365 * 86400.0  # seconds
_GRACE = 300.0  # seconds for which the blobs of a forgotten result are kept


def memoize(
    store: Store,
    ttl: Duration | None = None,
    *,
    version: str | None = None,
    ignore: Iterable[str] = (),
    key: Callable[[dict[str, Any]], Any] | None = None,
    scope: str = SCOPE,
    lease: Duration = LEASE,
) -> Callable[[Callable[..., T]], Memoized[T]]:
    """Return a decorator that remembers a function's results in *store*.

    ::

        @memoize(open_store("redis://localhost:6379/2"), ttl=3600)
        def load(path): ...

    Apps have `Offload.memoize`, which uses the app's store and settings.

    Args:
        ttl: seconds, or a string such as ``7d``, for which a result is returned to equal calls;
            None: ten years.
        version: replaces the hash of the function's code.
        ignore: names of parameters that don't identify a call.
        key: takes a dict of the arguments, and returns what identifies the call instead of them;
            None: don't remember the call.
        scope: only functions in one scope share results.
        lease: seconds, or a string, after which another process takes over from one that died.

    Of equal calls in all processes, one is computed, and the others wait for its result. If the
    store fails, calls are computed as without it. A coroutine function stays one; threads access
    the store.

    Raises ConfigurationError for a wrong argument or a generator function.
    """
    if isinstance(store, str) or not hasattr(store, "blobs"):
        raise ConfigurationError(
            f"memoize: a {type(store).__name__} isn't a store: pass an open one, as in "
            "@memoize(open_store('redis://…')); with an app, use @offload.memoize(…)"
        )
    counters, own_code = Counters(), Scope()
    contents = PerProcess(lambda: ContentStore(store, Registry(("json",)), Settings(), counters))
    return remembering(
        contents.get,
        Results(contents.get, counters),
        counters,
        default_ttl=lambda: _FOREVER,
        given_ttl=ttl,
        code_scope=lambda: own_code,
        version=version,
        ignore=ignore,
        key=key,
        scope=lambda: scope,
        lease=lease,
        grace=lambda: _GRACE,
    )


def remembering(
    content: Callable[[], ContentStore],
    results: Results,
    counters: Counters,
    *,
    default_ttl: Callable[[], float],
    given_ttl: Duration | None,
    code_scope: Callable[[], Scope],
    version: str | None,
    ignore: Iterable[str],
    key: Callable[[dict[str, Any]], Any] | None,
    scope: Callable[[], str],
    lease: Duration,
    grace: Callable[[], float],
) -> Callable[[Callable[..., T]], Memoized[T]]:
    """Return the decorator that `memoize` and `Offload.memoize` describe."""
    if callable(given_ttl):
        raise ConfigurationError("memoize: add parentheses, as in @offload.memoize()")
    if given_ttl is not None:
        seconds = as_seconds("memoize: 'ttl'", given_ttl)
        ttl: Callable[[], float] = lambda: seconds  # noqa: E731 (as the other branch)
    else:
        ttl = default_ttl
    lease_seconds = check_ttl(as_seconds("memoize: 'lease'", lease))
    if version is not None and not isinstance(version, str):
        refuse("memoize: 'version'", version, "a string such as '2'")
    if isinstance(ignore, str):
        refuse("memoize: 'ignore'", ignore, "a list of parameter names")
    if key is not None and not callable(key):
        refuse("memoize: 'key'", key, "a function of a dict of arguments")

    def decorate(function: Callable[..., T]) -> Memoized[T]:
        if hasattr(function, "apply_async"):
            raise ConfigurationError(
                f"memoize: {getattr(function, 'name', function)!s:.200} is a task, whose calls by "
                "message would not be remembered: use @app.task(offload={'memo': …}), or put "
                "@app.task above @memoize"
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(
                f"memoize: {function.__qualname__} returns a generator, which can't be remembered"
            )
        name = f"{function.__module__}.{function.__qualname__}"
        described = Function("function", name, function, version, frozenset(ignore), key)
        missing = described.ignored - {*described.signature.parameters}
        if missing:
            raise ConfigurationError(f"memoize: {name} has no parameter {min(missing)!r}")
        kind = MemoizedCoroutine if inspect.iscoroutinefunction(function) else Memoized
        return kind(
            described, content, results, counters, ttl, code_scope, scope, lease_seconds, grace
        )

    return decorate


class Memoized(Remembered, Generic[T]):
    """A function whose results are remembered: a call computes one, or returns a remembered one."""

    def __init__(
        self,
        function: Function,
        content: Callable[[], ContentStore],
        results: Results,
        counters: Counters,
        ttl: Callable[[], float],
        code_scope: Callable[[], Scope],
        scope: Callable[[], str],
        lease: float,
        grace: Callable[[], float],
    ) -> None:
        functools.update_wrapper(self, function.run)
        self._function = function
        self._content = content
        self._results = results
        self._counters = counters
        self._ttl = ttl
        self._code_scope = code_scope
        self._scope = scope
        self._lease = lease
        self._grace = grace

    def __call__(self, *args: Any, **kwargs: Any) -> T:
        """Return the result of an equal call, or compute it."""
        __tracebackhide__ = True  # for Sentry and pytest
        run = self._function.run
        found = self._find(args, kwargs, block=True)
        if isinstance(found, Answer):
            value: T = found.value
            return value
        if not isinstance(found, Computation):
            computed: T = run(*args, **kwargs)
            return computed
        try:
            begun = time.perf_counter()
            result: T = run(*args, **kwargs)
            self._remember(found, result, time.perf_counter() - begun)
        finally:
            self._results.flights.abandon(found)
        return result

    def _find(self, args: Any, kwargs: Any, *, block: bool) -> Answer | Computation | Busy | None:
        """Call `Results.find`; return None if the call can't be remembered or looked up."""
        name = self._function.name
        with self._counters.about(name):
            try:
                record = self._name_of(args, kwargs)
                return self._results.find(record, self._lease, block=block, read=True)
            except NotRemembered:
                return None
            except Exception as exc:
                self._results.uncached(name, exc)
                return None

    def _remember(self, computation: Computation, result: Any, seconds: float) -> None:
        if not is_lasting(result):
            return
        name = self._function.name
        with self._counters.about(name):
            try:
                self._results.remember(
                    computation,
                    result,
                    task=name,
                    scope=self._scope(),
                    ttl=self._ttl(),
                    seconds=seconds,
                )()
            except Exception as exc:
                self._results.uncached(name, exc)

    def _name_of(self, args: Any, kwargs: Any) -> str:
        key = self._results.key_of(self._function, args, kwargs, self._code_scope())
        return record_name(self._function.name, self._scope(), key)

    def forget(self, *args: Any, **kwargs: Any) -> bool:
        """Forget the result of a call with these arguments; return whether there was one.

        Raises TypeError, SerializationError, StoreUnavailable, or StoreError.
        """
        try:
            name = self._name_of(args, kwargs)
        except NotRemembered:
            return False
        return forget_record(self._content(), name, self._grace())

    def forget_all(self) -> int:
        """Forget all results of this function, in all scopes; return how many there were.

        Raises StoreUnavailable or StoreError.
        """
        return forget_records(self._content(), self._function.name, self._grace())

    def __reduce__(self) -> str:
        """Pickle and copy it by name, as plain functions."""
        return str(self._function.run.__qualname__)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Refuse to become a method: the instance would be an argument."""
        if instance is None:
            return self
        raise ConfigurationError(
            f"memoize: {self._function.name} is called as a method; memoize functions, and pass "
            "them what they need of the instance"
        )


class MemoizedCoroutine(Memoized[Any]):
    """A coroutine function whose results are remembered. Awaiting a call computes, or returns a
    result.

    The event loop isn't blocked: a thread asks the store, and no thread waits for another
    computation.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        mark_coroutine_function(self)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result of an equal call, or compute it."""
        __tracebackhide__ = True  # for Sentry and pytest
        found = await self._found(args, kwargs)
        if isinstance(found, Answer):
            return found.value
        if not isinstance(found, Computation):
            return await self._function.run(*args, **kwargs)
        try:
            begun = time.perf_counter()
            result = await self._function.run(*args, **kwargs)
            seconds = time.perf_counter() - begun
            await asyncio.to_thread(self._remember, found, result, seconds)
        finally:
            if not found.ended:
                await asyncio.shield(asyncio.to_thread(self._results.flights.abandon, found))
        return result

    async def _found(self, args: Any, kwargs: Any) -> Answer | Computation | None:
        """Return what was found, or is computed here, once no equal call computes."""
        attempt = 0
        while True:
            asked = asyncio.ensure_future(asyncio.to_thread(self._find, args, kwargs, block=False))
            try:
                found = await asyncio.shield(asked)
            except asyncio.CancelledError:
                asked.add_done_callback(self._give_back)
                raise
            if not isinstance(found, Busy):
                return found
            if not attempt:
                with self._counters.about(self._function.name):
                    self._counters.add(memo_waits=1)
            await asyncio.sleep(self._results.flights.pause(found, attempt))
            attempt += 1

    def _give_back(self, asked: asyncio.Future[Any]) -> None:
        """Release the computation of a call that was cancelled."""
        found = None if asked.cancelled() or asked.exception() else asked.result()
        if isinstance(found, Computation):
            flights = self._results.flights
            asyncio.get_running_loop().run_in_executor(None, flights.abandon, found)
