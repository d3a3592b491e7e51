"""Compute once: remember results by the content of arguments."""

from __future__ import annotations

from typing import Any

from offload.errors import ConfigurationError
from offload.memo.functions import Memoized, memoize

__all__ = ("forget", "forget_all", "memoize")


def forget(task: Any, /, *args: Any, **kwargs: Any) -> bool:
    """Forget the result of a call of a memo task or of a memoized function.

    Returns whether there was one. If the call is being computed now, that result isn't remembered,
    either.

    Args:
        task: a task of an app with offload, or a function made by `memoize`.
        args, kwargs: as passed to it.

    Raises:
        TypeError: the arguments don't fit its parameters, or its code can't be hashed.
        SerializationError: an argument can't be serialized.
        ConfigurationError: the task's app has no offload.
        StoreUnavailable, StoreError: the store failed.
    """
    return bool(_memos_of(task).forget(task, *args, **kwargs))


def forget_all(task: Any) -> int:
    """Forget all results of a task or function, in all scopes; return how many there were.

    Raises as `forget` does.
    """
    return int(_memos_of(task).forget_all(task))


def _memos_of(task: Any) -> Any:
    if isinstance(task, Memoized):
        return Memoized
    runtime = getattr(getattr(task, "app", None), "_offload", None)
    if runtime is None:
        raise ConfigurationError(
            f"{task!r:.200} isn't a task of an app with offload, or a function made by memoize"
        )
    return runtime.extension.memo
