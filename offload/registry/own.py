"""What a process has itself, and which version each of it is."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from offload.errors import SerializationError
from offload.registry.identity import Identity, identify
from offload.registry.names import name_of
from offload.registry.pickling import Pair
from offload.registry.scope import Scope

__all__ = ("Own",)

_KEPT = 8
"""Of what had one name, one after the other, so many are remembered: a notebook's cell may be
run often."""


class Own:
    """Remembers hashes for as long as nothing that they depend on changes."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[Any, Scope, Identity], ...]] = {}

    def pair(self, obj: Any, scope: Scope) -> Pair:
        """Return name and hash of a class or function. Raises what `identify` does.

        What was hashed in another scope object is hashed again: a registration may change what
        goes along.
        """
        name = name_of(obj)
        known = self._known.get(name, ())
        for each, its, identity in known:
            if each is obj and its is scope and identity.holds():
                return name, identity.hash
        identity = identify(obj, scope)
        others = [other for other in known if other[0] is not obj]
        self._known[name] = ((obj, scope, identity), *others[: _KEPT - 1])
        return name, identity.hash

    def find(self, pair: Pair, registered: Iterable[Any], scope: Scope) -> Any:
        """Return what is exactly this version: one of *registered*, or sent before, or what
        its name stands for in a module that is imported. None if there is nothing.
        """
        sent = (each for each, _, _ in self._known.get(pair[0], ()))
        for each in (*registered, *sent, _named(pair[0])):
            try:
                if each is not None and self.pair(each, scope) == pair:
                    return each
            except (SerializationError, TypeError):
                continue
        return None


def _named(name: str) -> Any:
    """Return what has this name, without running code of modules or classes; None if nothing."""
    parts = name.split(".")
    for i in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:i]))
        for part in parts[i:]:
            found = getattr(found, "__dict__", {}).get(part)
        if found is not None:
            return found
    return None
