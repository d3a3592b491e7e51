"""References that are known for values: such a value isn't stored again when it is published.

`KnownRefs` has values that arrived by reference. User code that runs while a worker publishes the
next step, and signatures that a task is called with, hold such values; if one is published and is
unchanged, its reference is sent instead. `GroupDedup` has values that earlier messages of the same
group carry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

__all__ = ("GroupDedup", "KnownRefs", "Snapshot", "group_dedup", "known_refs", "using")

_SCALARS = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes),
        *(datetime, date, time, timedelta, Decimal, UUID),
    }
)
_EMBEDDED = ("link", "link_error", "chain", "chord")


class KnownRefs:
    """References by the values that they were resolved to. Keeps the values alive.

    Args:
        in_task: whether a task runs. Elsewhere, a Ref that is bound to an app was passed by a user
            and stays a Ref; only references that came in a message are resolved.
    """

    def __init__(self, *, in_task: bool = True) -> None:
        self._in_task = in_task
        self._by_value: dict[int, tuple[Any, Ref[Any], Snapshot]] = {}
        self._values: dict[int, tuple[Ref[Any], Ref[Any], Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_value)

    def remember(self, value: Any, ref: Ref[Any]) -> None:
        """Remember that *ref* was resolved to *value*, if changes of the value can be detected."""
        snapshot = Snapshot.of(value)
        if snapshot is not None:
            self._by_value[id(value)] = value, ref, snapshot

    def find(self, value: Any) -> Ref[Any] | None:
        """Return the reference that was resolved to this very object; None if it was changed."""
        found = self._by_value.get(id(value))
        if found is None or not found[2].is_current():
            return None
        return found[1]

    def is_container_of_any(self, value: Any) -> bool:
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
        """Replace each Ref in *value* by its value; *remember* the values, to be published."""
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
        """Resolve the arguments of a call, except those that *task* takes as Refs."""
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
        """Resolve the references in signatures among the options of a call."""
        return {
            key: self.resolve(runtime, value) if key in _EMBEDDED else value
            for key, value in options.items()
        }


class Snapshot:
    """The content of containers, by identity; immutable leaves need no more than that."""

    def __init__(self) -> None:
        self._contents: list[tuple[Any, tuple[Any, ...]]] = []

    @classmethod
    def of(cls, value: Any) -> Snapshot | None:
        """Take a snapshot of *value*; None if it holds objects that can change undetected."""
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
                made._contents.append((each, content))
            if not set(map(type, content)) <= _SCALARS:
                waiting += content
        return made

    def is_current(self) -> bool:
        """Return whether nothing has changed."""
        for each, before in self._contents:
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


_known: ContextVar[KnownRefs | None] = ContextVar("offload_known_refs", default=None)


known_refs: Callable[[], KnownRefs | None] = _known.get
"""Return the references known in this context; None outside a task and publishing."""


@contextmanager
def using(known: KnownRefs | None = None) -> Iterator[KnownRefs]:
    """Use *known* in this block; by default the current references, or else none."""
    known = known if known is not None else _known.get()
    known = known if known is not None else KnownRefs(in_task=False)
    token = _known.set(known)
    try:
        yield known
    finally:
        _known.reset(token)


class GroupDedup:
    """References by the objects that one group's messages carry. Keeps the objects alive.

    ``group([train.s(frame, n) for n in range(50)])()`` builds 50 messages one after another within
    one call. An object that the first of them carries is unchanged in the others if it is
    immutable, or if no user code runs between them; then its reference serves all.

    Args:
        undisturbed: whether no user code runs that might change the objects.
    """

    def __init__(self, *, undisturbed: bool) -> None:
        self._undisturbed = undisturbed
        self._refs: dict[tuple[int, str], tuple[Any, Ref[Any]]] = {}

    def find(self, value: object, serializer: str) -> Ref[Any] | None:
        """Return the reference of this very object for Celery's *serializer*."""
        found = self._refs.get((id(value), serializer))
        return found[1] if found is not None else None

    def remember(self, value: object, serializer: str, ref: Ref[Any]) -> None:
        """Remember *ref* for later messages, unless the object may change before them."""
        if self._undisturbed or is_immutable(value):
            self._refs[id(value), serializer] = (value, ref)


group_dedup: ContextVar[GroupDedup | None] = ContextVar("offload_group_dedup", default=None)
"""The references of the group that this thread is publishing."""
