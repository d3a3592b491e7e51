"""Ask Celery's Redis backend for a task's state while the task's values are on their way.

Before Celery stores a state, it reads the stored one, to keep a success. Over a network, that is a
round trip in which nothing else happens, and offload makes one of its own for values. Both take
place at the same time here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from celery.backends.base import KeyValueStoreBackend

from offload.hooks.celery_internals import READ_META, STORE_STATE

_FRESH = 0.25
"""Seconds for which an answer is used. After that, Celery asks the backend itself: another worker
that got the message again may have stored a success meanwhile."""
_PATIENCE = 0.02  # seconds to wait for the answer after the values have arrived
_PAUSE = 10.0  # seconds until a backend that failed, or took longer, is asked ahead again
_HOOKED = "_offload_ahead"
_PAUSED = "_offload_ahead_paused_until"

_answer: ContextVar[StateAhead | None] = ContextVar("offload_state_ahead", default=None)


class StateAhead:
    """The stored state of a task, read before Celery's backend asks for it.

    Attributes:
        value: the stored state, encoded; None: there is none.
    """

    __slots__ = ("_asked", "_key", "value")

    def __init__(self, key: str, value: Any, asked: float) -> None:
        self.value = value
        self._key = key
        self._asked = asked

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() - self._asked < _FRESH

    def is_for(self, key: Any) -> bool:
        return bool(key == self._key) and self.is_fresh

    def during(self, store: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call *store*; it uses this state once, instead of asking for it."""
        token = _answer.set(self)
        try:
            return store(*args, **options)
        finally:
            _answer.reset(token)


@contextmanager
def asked_ahead(
    backend: Any, task_id: Any, take: Callable[[StateAhead | None], None]
) -> Iterator[None]:
    """Ask *backend* for the state of a task, if it is in Redis, while this block runs.

    Calls *take* with the answer at the end. If there is none, calls it with None: the backend then
    asks itself, and raises any error.
    """
    take(None)
    pool = _pool_of(backend)
    if pool is None:
        yield
        return
    from redis.exceptions import RedisError

    from offload.stores.redis.redis_internals import has_spare, send

    receive, asked, answers = None, time.monotonic(), list[Any]()
    key = backend.get_key_for_task(task_id)
    if has_spare(pool):
        try:
            receive = send(pool, [("GET", key)])
        except (RedisError, OSError):
            _pause(backend)
    patience = 0.0  # if the block raises
    try:
        yield
        patience = _PATIENCE
    finally:
        if receive is not None:
            with suppress(RedisError, OSError):
                answers = receive(patience)
            if not answers:
                _pause(backend)
            elif not isinstance(answers[0], Exception):
                _hook(backend)
                take(StateAhead(key, answers[0], asked))


def _pause(backend: Any) -> None:
    setattr(backend, _PAUSED, time.monotonic() + _PAUSE)


def _pool_of(backend: Any) -> Any:
    """Return the connection pool of a backend that reads states as Celery's Redis backend does."""
    module = sys.modules.get("celery.backends.redis")
    if module is None or not isinstance(backend, module.RedisBackend):
        return None
    kind = type(backend)
    for name, base in (
        ("get", module.RedisBackend),
        (READ_META, KeyValueStoreBackend),
        (STORE_STATE, KeyValueStoreBackend),
    ):
        if getattr(kind, name) is not getattr(base, name):  # a subclass does it in another way
            return None
    if time.monotonic() < getattr(backend, _PAUSED, 0.0):
        return None
    return getattr(backend.client, "connection_pool", None)


def _hook(backend: Any) -> None:
    """Have a backend's ``get`` use the answer of this context, if there is one."""
    if _HOOKED in vars(backend):
        return
    get: Callable[[Any], Any] = backend.get

    def offload_get(key: Any) -> Any:
        ahead = _answer.get()
        if ahead is None or not ahead.is_for(key):
            return get(key)
        _answer.set(None)
        return ahead.value

    backend.get = offload_get
    setattr(backend, _HOOKED, True)
