"""What was read of shipped classes a moment ago, for all browsers alike."""

from __future__ import annotations

from offload.classes.registry import ClassRegistry
from offload.dashboard.caching import BackgroundRefresh, TTLCache
from offload.errors import CodeError
from offload.inspect.classes import ClassState, History, classes_of, history_of

__all__ = ("Classes",)

_EVERY = 10.0  # seconds between two looks: a Redis reads all its keys for one
_LONGEST = 200_000  # characters of a diff


class Classes:
    """The classes of an app's registry. Nothing is read before somebody looks.

    Attributes:
        registry: the app's.
        all: what is in the store or registered here.
    """

    def __init__(self, registry: ClassRegistry) -> None:
        self.registry = registry
        self.all: BackgroundRefresh[list[ClassState]] = BackgroundRefresh(self._all, every=_EVERY)
        self._histories: TTLCache[History] = TTLCache(self._history, _EVERY)
        self._diffs: TTLCache[str] = TTLCache(self._diff, _EVERY)

    def history(self, name: str) -> History:
        """Return the versions of the class of exactly this name, none if *all* has no such.

        Raises StoreUnavailable.
        """
        return self._histories.get(name)

    def diff(self, name: str, a: str, b: str) -> str:
        """Return how the source of version *b* differs from that of *a*, or why it cannot be
        told. Raises StoreUnavailable.
        """
        return self._diffs.get(name, a, b)

    def _all(self) -> list[ClassState]:
        return classes_of(self.registry)

    def _history(self, name: str) -> History:
        for state in self.all.get().value or ():
            if state.name == name:
                return history_of(self.registry, state)
        return History(name, ())

    def _diff(self, name: str, a: str, b: str) -> str:
        try:
            text = self.registry.diff(name, a, b)
        except (CodeError, ValueError) as exc:
            return str(exc)
        if not text:
            return "The sources are the same; values, defaults or the Python differ."
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\n… cut"
