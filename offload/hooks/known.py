"""Values that arrived by reference, and by which: passed on, they are not stored again.

User code that runs while a worker publishes the next step, and signatures that a task is
called with, hold values. Where such a value is published again, and is still what it was,
its reference goes instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from offload.content.digest_cache import is_immutable
from offload.digest import digest_of
from offload.hooks.paths import contains, replace_refs
from offload.hooks.runtime import Runtime
from offload.ref import Ref

__all__ = ("KnownRefs", "Snapshot", "knowing", "known_refs")

_SCALARS = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes),
        *(datetime, date, time, timedelta, Decimal, UUID),
    }
)
_EMBEDDED = ("link", "link_error", "chain", "chord")


class KnownRefs:
    """References by the values that they were resolved to, while a task runs.

    Keeps the values alive meanwhile.

    Args:
        in_task: whether a task runs. Elsewhere, a Ref that is bound to an app is one that a user
            passes, and stays one; only what came in a message is resolved.
    """

    def __init__(self, *, in_task: bool = True) -> None:
        self._in_task = in_task
        self._by_value: dict[int, tuple[Any, Ref[Any], Snapshot]] = {}
        self._values: dict[int, tuple[Ref[Any], Ref[Any], Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_value)

    def remember(self, value: Any, ref: Ref[Any]) -> None:
        """Remember that *ref* was resolved to *value*, if a change of it can be seen."""
        snapshot = Snapshot.of(value)
        if snapshot is not None:
            self._by_value[id(value)] = value, ref, snapshot

    def find(self, value: Any) -> Ref[Any] | None:
        """Return the reference that gave this very object; None if it was changed."""
        found = self._by_value.get(id(value))
        if found is None or not found[2].holds():
            return None
        return found[1]

    def within(self, value: Any) -> bool:
        """Return whether *value* is a container that holds one of the objects."""
        seen = set()
        waiting = [value]
        while waiting:
            each = waiting.pop()
            if not isinstance(each, (list, tuple, dict)) or id(each) in seen:
                continue
            seen.add(id(each))
            items = list(each.values() if isinstance(each, dict) else each)
            if not self._by_value.keys().isdisjoint(map(id, items)):
                return True
            if not set(map(type, items)) <= _SCALARS:
                waiting += items
        return False

    def resolve(self, runtime: Runtime, value: Any, *, remember: bool = True) -> Any:
        """Return *value* with the value of each Ref in it; *remember* those, to be published."""
        refs: dict[int, Ref[Any]] = {}
        replace_refs(value, lambda ref: refs.setdefault(id(ref), ref))
        refs = {key: ref for key, ref in refs.items() if self._in_task or ref.resolve is None}
        new = [ref for key, ref in refs.items() if key not in self._values]
        self._values.update({id(ref): (ref, ref, ref.get()) for ref in new if ref.is_local})
        new = [ref for ref in new if not ref.is_local]
        opened = [runtime.content.opened(ref) for ref in new]
        for ref, own, found in zip(
            new, opened, runtime.content.reader.get_all(opened), strict=True
        ):
            self._values[id(ref)] = ref, own, found
        for _, ref, found in map(self._values.__getitem__, refs if remember else ()):
            if id(found) not in self._by_value and not ref.is_local:
                self.remember(found, ref)
        return replace_refs(value, lambda ref: self._values[id(ref)][2] if id(ref) in refs else ref)

    def resolve_call(
        self, runtime: Runtime, task: str, args: Any, kwargs: Any, *, remember: bool = True
    ) -> tuple[Any, Any]:
        """Return the arguments of a call with values, but where *task* asks for references."""
        if not contains((args, kwargs), (Ref,)):
            return args, kwargs
        facts = runtime.tasks[task]
        found = [
            value if facts.asks_for_ref(i) else self.resolve(runtime, value, remember=remember)
            for i, value in enumerate(args or ())
        ]
        return tuple(found) if isinstance(args, tuple) else found, {
            key: value
            if facts.asks_for_ref(key)
            else self.resolve(runtime, value, remember=remember)
            for key, value in (kwargs or {}).items()
        }

    def resolve_options(self, runtime: Runtime, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options of a call with values in the signatures that it carries along."""
        return {
            key: self.resolve(runtime, value) if key in _EMBEDDED else value
            for key, value in options.items()
        }


class Snapshot:
    """The content of containers, by identity; immutable leaves are known by that alone."""

    def __init__(self) -> None:
        self._held: list[tuple[Any, tuple[Any, ...]]] = []

    @classmethod
    def of(cls, value: Any) -> Snapshot | None:
        """Return the snapshot of *value*; None if it holds what can change unseen."""
        made = cls()
        seen = set()
        waiting = [value]
        while waiting:
            each = waiting.pop()
            if type(each) in _SCALARS or id(each) in seen:
                continue
            seen.add(id(each))
            content = _content(each)
            if content is None:
                if not is_immutable(each):
                    return None
                continue
            if type(each) is not tuple:
                made._held.append((each, content))
            if not set(map(type, content)) <= _SCALARS:
                waiting += content
        return made

    def holds(self) -> bool:
        """Return whether all is as it was."""
        for each, before in self._held:
            now = _content(each) or ()
            if len(now) != len(before) or not all(map(_is_same, now, before)):
                return False
        return True


def _content(value: Any) -> tuple[Any, ...] | None:
    """Return the parts of *value*; None for an object that isn't inspected."""
    kind = type(value)
    if kind is list or kind is tuple:
        return tuple(value)
    if kind is dict:
        return (*value.keys(), *value.values())
    if kind is bytearray:
        return (digest_of([value]),)
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        if value.dtype.hasobject or not (value.flags.c_contiguous or value.flags.f_contiguous):
            return None
        layout = (value.dtype.str, repr(value.dtype), value.shape, value.strides)
        return (*map(str, layout), digest_of([memoryview(value.ravel("A").view("u1"))]))
    return None


def _is_same(now: Any, before: Any) -> bool:
    return now is before or (type(now) is type(before) is str and now == before)


_current: ContextVar[KnownRefs | None] = ContextVar("offload_known_refs", default=None)


def known_refs() -> KnownRefs | None:
    """Return the references known here; None outside a task and publishing."""
    return _current.get()


@contextmanager
def knowing(known: KnownRefs | None = None) -> Iterator[KnownRefs]:
    """Within this, *known* is; by default what already is, or else nothing."""
    known = known if known is not None else _current.get()
    known = known if known is not None else KnownRefs(in_task=False)
    token = _current.set(known)
    try:
        yield known
    finally:
        _current.reset(token)
