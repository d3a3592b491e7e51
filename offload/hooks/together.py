"""Values of one group's tasks: serialised once, though each task's message is its own.

``group([train.s(frame, n) for n in range(50)])()`` builds 50 messages one after another
within one call, and no code of the user's runs between them. So an object that stood in
the first of them is unchanged in the others, and the reference made for it serves all.
(A group made from a generator runs the user's code between messages: there every object
is looked at anew.)
"""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import Any

from celery.canvas import group

from offload.ref import Ref

__all__ = ("Together", "install", "published_together")


class Together:
    """References by the objects they were made of. Keeps the objects alive meanwhile."""

    def __init__(self) -> None:
        self._refs: dict[tuple[int, str], tuple[Any, Ref[Any]]] = {}

    def find(self, value: object, native: str) -> Ref[Any] | None:
        """Return the reference that was made of this very object for this serializer."""
        found = self._refs.get((id(value), native))
        return found[1] if found is not None else None

    def remember(self, value: object, native: str, ref: Ref[Any]) -> None:
        self._refs[id(value), native] = (value, ref)


_current: ContextVar[Together | None] = ContextVar("offload_together", default=None)
_PATCH = "_offload_original"


def published_together() -> Together | None:
    """Return what the group call that this thread is in has published so far."""
    return _current.get()


def install() -> None:
    """Have a group's ``apply_async`` say where it begins and ends; once per process."""
    original = group.apply_async
    if hasattr(original, _PATCH):
        return

    @functools.wraps(original)
    def apply_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = _current.set(Together() if type(self.tasks) is list else None)
        try:
            return original(self, *args, **kwargs)
        finally:
            _current.reset(token)

    setattr(apply_async, _PATCH, original)
    setattr(group, original.__name__, apply_async)
