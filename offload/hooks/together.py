"""Values of one group's tasks: serialized once, though each task's message is its own.

``group([train.s(frame, n) for n in range(50)])()`` builds 50 messages one after another
within one call. An object that stood in the first of them is unchanged in the others where
no user code runs between them, or where it is immutable; then its reference serves all.
(A group made from a generator runs user code between messages: there every object is
serialized again.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from celery.canvas import group

from offload.content.digest_cache import is_immutable
from offload.hooks.celery_internals import patch
from offload.hooks.runtime import Runtime
from offload.hooks.usercode import is_user_code, publishes
from offload.ref import Ref

__all__ = ("Together", "install", "published_together")


class Together:
    """References by the objects they were made of. Keeps the objects alive meanwhile.

    Args:
        undisturbed: whether no user code runs that might change them.
    """

    def __init__(self, *, undisturbed: bool) -> None:
        self._undisturbed = undisturbed
        self._refs: dict[tuple[int, str], tuple[Any, Ref[Any]]] = {}

    def find(self, value: object, native: str) -> Ref[Any] | None:
        """Return the reference that was made of this very object for this serializer."""
        found = self._refs.get((id(value), native))
        return found[1] if found is not None else None

    def remember(self, value: object, native: str, ref: Ref[Any]) -> None:
        if self._undisturbed or is_immutable(value):
            self._refs[id(value), native] = (value, ref)


_current: ContextVar[Together | None] = ContextVar("offload_together", default=None)


def published_together() -> Together | None:
    """Return what the group call that this thread is in has published so far."""
    return _current.get()


def install() -> None:
    """Have a group's ``apply_async`` say where it begins and ends; once per process."""
    patch(group, "apply_async", _publishing_together)


def _publishing_together(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        runtime = getattr(self.app, "_offload", None)
        together = None
        if runtime is not None and type(self.tasks) is list:
            together = Together(undisturbed=_undisturbed(runtime, self.tasks))
        token = _current.set(together)
        try:
            return original(self, *args, **kwargs)
        finally:
            _current.reset(token)

    return apply_async


def _undisturbed(runtime: Runtime, tasks: Iterable[Any]) -> bool:
    """Return whether no user code runs while *tasks* are published one after another."""
    if publishes(runtime.app) or is_user_code(runtime.app.backend.on_task_call):
        return False
    return not any(name is None or runtime.tasks[name].overrides for name in _names(tasks))


def _names(signatures: Any) -> Iterator[str | None]:
    """Yield the names of all tasks in *signatures*, of groups, chains and chords, too; None
    for those that a generator is still to make, or that are of a class of the user's.
    """
    if isinstance(signatures, dict):
        if type(signatures).__module__.partition(".")[0] not in ("builtins", "celery"):
            yield None
        yield str(signatures["task"])
        kwargs = signatures["kwargs"] or {}
        if str(signatures["task"]).startswith("celery."):
            for part in ("tasks", "header", "body"):
                yield from _names(kwargs.get(part))
    elif type(signatures) in (list, tuple):
        for each in signatures:
            yield from _names(each)
    elif signatures is not None:
        yield None
