"""Track the objects that a hash depends on, to find out whether it is still valid."""

from __future__ import annotations

import abc
import sys
import types
from collections.abc import Iterable, Mapping
from itertools import chain
from operator import is_
from typing import Any

MISSING: Any = object()
_ROOM = 1 << 20
"""Maximum number of container items to watch per hash, at 8 bytes each."""


class HashDependencies:
    """Objects that a hash depends on, in their state when it was computed.

    Methods such as `cell` record the state of an object; `unchanged` compares it with today's.

    Attributes:
        constant: False if the hash depends on an object whose changes can't be detected.
        undetectable: location and type of the first such object; "" if there is none.
        parts: a fingerprint of each class attribute and global.
    """

    def __init__(self) -> None:
        self.constant = True
        self.undetectable = ""
        self.parts: dict[str, int] = {}
        self._room = _ROOM
        self._contents: list[tuple[Any, tuple[Any, ...]]] = []
        self._names: list[tuple[Mapping[Any, Any], Any, Any]] = []
        self._sizes: list[tuple[Mapping[Any, Any], int]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self._bases: list[tuple[type, tuple[type, ...]]] = []
        self._registered = abc.get_cache_token()

    def name(self, names: Mapping[Any, Any], name: Any, value: Any) -> None:
        """Watch the value of a name; `MISSING` if it has none."""
        self._names.append((names, name, value))

    def names(self, names: Mapping[Any, Any], which: Iterable[Any], *, added: bool = False) -> None:
        """Watch the values of some names; with *added*, also watch for new names."""
        self._names += [(names, name, names[name]) for name in which]
        if added:
            self.size(names)

    def size(self, names: Mapping[Any, Any]) -> None:
        """Watch for new names."""
        self._sizes.append((names, _size(names)))

    def cell(self, cell: types.CellType, content: Any) -> None:
        self._cells.append((cell, content))

    def function(self, function: types.FunctionType) -> None:
        code, defaults = function.__code__, function.__defaults__
        self._functions.append((function, code, defaults, function.__kwdefaults__))

    def bases(self, cls: type) -> None:
        self._bases.append((cls, cls.__bases__))

    def content(self, container: Any) -> bool:
        """Watch the items of a list, dict, or set; return False if there are too many."""
        items = tuple(_items(container))
        self._room -= len(items)
        if self._room < 0:
            return False
        self._contents.append((container, items))
        return True

    def annotations(self, obj: Any, found: dict[str, Any]) -> None:
        """Watch annotations, unless they are code (as in Python 3.14)."""
        if found and sys.version_info < (3, 14):
            own = obj.__annotations__
            self.names(own, own, added=True)

    def changed_since(self, before: HashDependencies) -> str:
        """Return the first attribute or global that changed since *before*; "" if only code did."""
        old, new = before.parts, self.parts.items()
        return next((name for name, value in new if old.get(name, value) != value), "")

    def unchanged(self) -> bool:
        """Return whether it is certain that nothing has changed."""
        return (
            self.constant
            and all(names.get(name, MISSING) is value for names, name, value in self._names)
            and all(_size(names) == count for names, count in self._sizes)
            and all(_content(cell) is content for cell, content in self._cells)
            and all(
                function.__code__ is code
                and function.__defaults__ is defaults
                and function.__kwdefaults__ is keywords
                for function, code, defaults, keywords in self._functions
            )
            and all(cls.__bases__ is bases for cls, bases in self._bases)
            and all(_has_items(container, items) for container, items in self._contents)
            and self._registered == abc.get_cache_token()
        )


def _size(names: Mapping[Any, Any]) -> int:
    """Count names, except ``__slotnames__``, which copyreg adds to a class."""
    return len(names) - ("__slotnames__" in names)


def _items(container: Any) -> Iterable[Any]:
    return chain(container, container.values()) if type(container) is dict else container


def _has_items(container: Any, items: tuple[Any, ...]) -> bool:
    """Return whether a container has exactly these *items*, in this order."""
    count = len(container) * 2 if type(container) is dict else len(container)
    try:
        return count == len(items) and all(map(is_, _items(container), items))
    except RuntimeError:  # another thread changes it
        return False


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING
