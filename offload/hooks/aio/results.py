"""Wait for results of tasks in coroutines: one thread per process polls for all of them.

Waiting needs no thread of its own, and no lock that could block the event loop. With backends that
store results by key, such as Redis, one request covers many results; other backends are polled for
one result at a time, less often.

For each thread, Celery keeps the result backend and the queue of replies. All threads of offload
share one of each, so that a result that one of them published can be read by others, and one
request asks about all results.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from celery import states
from celery.backends.base import BaseKeyValueStoreBackend, DisabledBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, EagerResult, ResultSet
from kombu.exceptions import OperationalError

from offload.forks import start_thread
from offload.hooks.aio.threads import Outbox, is_calling_thread, outbox_of
from offload.hooks.celery_internals import known_meta, take_meta, use_backend
from offload.stores.processes import PerProcess

_FIRST = 0.01  # seconds before the second poll for a result
_GROWTH = 1.5
_MOST_POLLED = 0.1  # maximum seconds between two polls for all results
_MOST = 0.5  # maximum seconds between two polls for one result, as in Celery
_TOLERATED = 10.0  # seconds that the backend may be unavailable before coroutines get its error
_LATE = 30.0  # seconds after its deadline at which a wait ends even if the backend hangs
_BATCH = 1000  # results per request
_REST = 2e-5  # pause after a request, in seconds per waiting coroutine

_SHARED = "_offload_shared"
"""Attribute of an app with a process ID, and the backend and reply queue of its threads."""

logger = logging.getLogger(__name__)


class Watch:
    """The results that a coroutine waits for.

    Args:
        propagate: whether the first failure ends the wait, including failures of earlier tasks in
            a chain.
        timeout: seconds; None waits without limit, and 0 polls once.

    Attributes:
        nodes: single results, with those of earlier tasks first.
        found: metadata of ready results by ID; None if the result object already has it, or if
            another coroutine took it.
    """

    def __init__(self, result: Any, *, propagate: bool, timeout: float | None) -> None:
        self._targets = dict.fromkeys(single_results(result))
        earlier: list[Any] = []
        while propagate and (result := result.parent) is not None:
            earlier[:0] = single_results(result)
        self.nodes = list(dict.fromkeys([*earlier, *self._targets]))
        self.found: dict[str, Any] = {}
        self._failed: list[Any] = []
        self._propagate = propagate
        self._by_id: dict[str, list[Any]] = {}
        for node in self.nodes:
            self._by_id.setdefault(node.id, []).append(node)
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.due = 0.0
        self.interval = _FIRST
        self.failing_since: float | None = None
        self.outbox: Outbox[BaseException | None] = outbox_of(asyncio.get_running_loop())
        self.future = self.outbox.future()
        for node in self.nodes:
            meta = known_meta(node)
            if meta is not None and meta["status"] in states.READY_STATES:
                self.found[node.id] = None
                self._note(meta["status"], node.id)

    def _note(self, state: str, task_id: str) -> None:
        if state in states.PROPAGATE_STATES:
            self._failed += self._by_id[task_id]

    def add(self, task_id: str, state: str, meta: Any) -> None:
        """Note that a result is ready."""
        if task_id in self._by_id and task_id not in self.found:
            self.found[task_id] = meta
            self._note(state, task_id)

    def missing(self) -> list[Any]:
        """Return the results that aren't known to be ready, one object per ID."""
        return [nodes[0] for task_id, nodes in self._by_id.items() if task_id not in self.found]

    @property
    def is_over(self) -> bool:
        if self._propagate and self._failed:
            return True
        return all(node.id in self.found for node in self._targets)

    def end(self, error: BaseException | None = None) -> None:
        """Wake the coroutine, which raises *error* if given. Callable from any thread."""
        self.outbox.post(self.future, error)

    @property
    def is_taken(self) -> bool:
        """Whether the result objects have all metadata, so that reading them doesn't block."""
        return all(known_meta(node) is not None for node in self._targets)

    def take(self) -> None:
        """Pass the metadata to the result objects, and raise the first failure if requested."""
        for node in self.nodes:
            meta = self.found.get(node.id)
            if meta is not None:
                take_meta(node, meta)
            elif node.id in self.found and known_meta(node) is None:
                _ = node.state  # fetches the metadata again: another coroutine took it
        if self._propagate:
            for node in self.nodes:
                if node in self._failed:
                    node.maybe_throw()


async def wait_for(watch: Watch) -> None:
    """Wait until all results of *watch* are ready or one has failed.

    Raises celery.exceptions.TimeoutError, and whatever the result backend raises.
    """
    if watch.is_over:
        return
    for node in watch.missing():
        if isinstance(node.backend, DisabledBackend):
            node.backend.wait_for(node.id)  # raises NotImplementedError, as in `get`
    watcher = _watcher.get()
    watcher.add(watch)
    timer = None
    if watch.deadline is not None:  # usually the thread checks it, but the backend may hang
        late = CeleryTimeoutError("The result backend timed out.")
        left = max(watch.deadline - time.monotonic(), 0.0)
        timer = watch.outbox.loop.call_later(left + _LATE, watch.end, late)
    try:
        error = await watch.future
    except BaseException:
        watcher.forget_cancelled()
        raise
    finally:
        if timer is not None:
            timer.cancel()
    if error is not None:
        raise error


class _Watcher:
    """The thread of a process that polls for results. It starts on first use, and then stays."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._arrived: SimpleQueue[Watch | None] = SimpleQueue()
        self._watches: dict[Watch, None] = {}  # used only by the thread
        self._rested = 0.0  # when the next request may be sent

    def add(self, watch: Watch) -> None:
        if self._thread is None:
            with self._starting:
                self._thread = self._thread or start_thread(self._run, "offload-results")
        self._arrived.put(watch)

    def forget_cancelled(self) -> None:
        """Make the thread forget cancelled waits now, rather than at its next request."""
        self._arrived.put(None)

    def _run(self) -> None:
        while True:
            try:
                self._look(self._next())
            except Exception:  # if the thread died, no coroutine would get a result again
                logger.exception("can't poll for results; retrying")
                time.sleep(_MOST)

    def _next(self) -> list[Watch]:
        """Wait until a poll is due; return all waits that are due now or soon."""
        while True:
            now = time.monotonic()
            first = min((watch.due for watch in self._watches), default=None)
            if first is not None:
                first = max(first, self._rested)
                if first <= now:
                    return [w for w in self._watches if w.due <= now + w.interval / 2]
            self._accept(None if first is None else first - now)

    def _accept(self, seconds: float | None) -> None:
        """Wait up to *seconds*; accept new waits, and forget finished ones."""
        with suppress(Empty):
            watch = self._arrived.get(timeout=seconds)
            while True:
                if watch is not None:
                    self._watches[watch] = None
                watch = self._arrived.get_nowait()
        for over in [watch for watch in self._watches if watch.future.done()]:
            del self._watches[over]

    def _look(self, watches: list[Watch]) -> None:
        by_backend: dict[int, tuple[Any, dict[str, Any]]] = {}
        for watch in watches:
            for node in watch.missing():
                backend = _backend_for(node)
                by_backend.setdefault(id(backend), (backend, {}))[1][node.id] = None
        found: dict[str, tuple[str, Any]] = {}
        errors: dict[str, Exception] = {}
        for backend, ids in by_backend.values():
            _read(backend, list(ids), found, errors)
        many = all(_is_polled(backend) for backend, _ in by_backend.values())
        now = time.monotonic()
        for watch in watches:
            self._update(watch, found, errors, now)
            watch.interval = min(watch.interval * _GROWTH, _MOST_POLLED if many else _MOST)
            watch.due = now + watch.interval
            if watch.deadline is not None:
                watch.due = min(watch.due, max(watch.deadline, now))
        self._rested = now + len(self._watches) * _REST

    def _update(
        self,
        watch: Watch,
        found: dict[str, tuple[str, Any]],
        errors: dict[str, Exception],
        now: float,
    ) -> None:
        """Pass what was found to *watch*.

        Each result's metadata goes to only one coroutine, because it will contain the value.
        """
        error: Exception | None = None
        for node in watch.missing():
            if node.id in found:
                state, meta = found[node.id]
                found[node.id] = state, None
                watch.add(node.id, state, meta)
            else:
                error = error or errors.get(node.id)
        if watch.is_over:
            self._end(watch, None)
            return
        since = watch.failing_since = None if error is None else watch.failing_since or now
        passes = since is None or (_may_pass(error) and now - since < _TOLERATED)
        if not passes:
            self._end(watch, error)
        elif watch.deadline is not None and now >= watch.deadline:
            self._end(watch, error or CeleryTimeoutError("The operation timed out."))

    def _end(self, watch: Watch, error: BaseException | None) -> None:
        self._watches.pop(watch, None)
        watch.end(error)


def _backend_for(node: Any) -> Any:
    """Return the backend to poll for a result: that of the threads, if it is the same."""
    given = node.backend
    share_backend(node.app)
    own = node.app.backend
    if hasattr(own, "result_consumer") and not _is_polled(own):
        return given  # its replies go to the backend that published it
    same = type(own) is type(given) and getattr(own, "url", None) == getattr(given, "url", None)
    return own if same else given


def _read(
    backend: Any,
    ids: Collection[str],
    found: dict[str, tuple[str, Any]],
    errors: dict[str, Exception],
) -> None:
    """Poll for results; add ready ones to *found*, with their states, and failures to *errors*."""
    rest: Iterable[str] = ids
    if _is_polled(backend):
        try:
            for task_id, meta in _read_many(backend, list(ids)):
                found[task_id] = meta["status"], meta
        except Exception as exc:
            if _may_pass(exc):
                errors.update(dict.fromkeys(ids, exc))
                return
            rest = [task_id for task_id in ids if task_id not in found]  # some can't be read
        else:
            return
    for task_id in rest:
        try:
            meta = backend.get_task_meta(task_id)
        except Exception as exc:
            errors[task_id] = exc
        else:
            if meta["status"] in states.READY_STATES:
                found[task_id] = meta["status"], meta


def _read_many(backend: Any, ids: list[str]) -> Iterator[tuple[str, Any]]:
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        yield from backend.get_many(batch, interval=0, max_iterations=1)


def _may_pass(error: Exception | None) -> bool:
    """Return whether *error* may be temporary: the backend is unavailable."""
    return isinstance(error, (OSError, OperationalError)) or "Connection" in type(error).__name__


_watcher = PerProcess(_Watcher, keep_inherited=True)


# -- the backend shared by threads


def share_backend(app: Any) -> None:
    """Make this thread, which must be one of offload's, use the backend that these threads share.

    Backends without a result consumer may be unsafe to share, so each thread keeps its own.
    """
    pid, backend, queue = vars(app).get(_SHARED) or (None, None, "")
    if pid != os.getpid():
        backend, queue = app.backend, app.thread_oid
        if not hasattr(backend, "result_consumer"):
            return
        _skip_subscribing(backend.result_consumer)
        vars(app)[_SHARED] = os.getpid(), backend, queue
    use_backend(app, backend, queue)


def _skip_subscribing(consumer: Any) -> None:
    """Keep threads that publish from subscribing to results, which are polled instead.

    Otherwise unread notifications would pile up.
    """
    subscribe: Callable[..., Any] = consumer.consume_from

    def consume_from(task_id: str) -> Any:
        return None if is_calling_thread() else subscribe(task_id)

    consumer.consume_from = consume_from


def _is_polled(backend: Any) -> bool:
    """Return whether *backend* returns the states of many results in one request."""
    return isinstance(backend, BaseKeyValueStoreBackend)


def single_results(result: Any) -> Iterator[Any]:
    """Yield the results in *result* to wait for, skipping those of eager and ignored tasks."""
    if isinstance(result, ResultSet):
        for each in result.results:
            yield from single_results(each)
    elif not isinstance(result, EagerResult) and isinstance(result, AsyncResult):
        yield from () if result.ignored else (result,)
