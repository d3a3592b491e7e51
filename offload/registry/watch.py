"""What a hash was found to depend on, so that it need not be taken again."""

from __future__ import annotations

import abc
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ("MISSING", "Watch")

MISSING: Any = object()


class Watch:
    """Remembers what was there.

    Attributes:
        constant: whether nothing else that was met can change.
    """

    def __init__(self) -> None:
        self.constant = True
        self._names: list[tuple[Mapping[Any, Any], Any, Any]] = []
        self._sizes: list[tuple[Mapping[Any, Any], int]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self._bases: list[tuple[type, tuple[type, ...]]] = []
        self._registered = abc.get_cache_token()

    def name(self, names: Mapping[Any, Any], name: Any, value: Any) -> None:
        self._names.append((names, name, value))

    def names(self, names: Mapping[Any, Any], which: Iterable[Any]) -> None:
        self._names += [(names, name, names[name]) for name in which]

    def size(self, names: Mapping[Any, Any]) -> None:
        """Watch whether names are added."""
        self._sizes.append((names, len(names)))

    def cell(self, cell: types.CellType, content: Any) -> None:
        self._cells.append((cell, content))

    def function(self, function: types.FunctionType) -> None:
        code, defaults = function.__code__, function.__defaults__
        self._functions.append((function, code, defaults, function.__kwdefaults__))

    def bases(self, cls: type) -> None:
        self._bases.append((cls, cls.__bases__))

    def annotations(self, obj: Any, found: dict[str, Any]) -> None:
        """Watch annotations, where they are not code."""
        if found and sys.version_info < (3, 14):
            own = obj.__annotations__
            self.size(own)
            self.names(own, own)

    def holds(self) -> bool:
        """Return whether all is certain to be what it was."""
        return (
            self.constant
            and all(names.get(name, MISSING) is value for names, name, value in self._names)
            and all(len(names) == count for names, count in self._sizes)
            and all(_content(cell) is content for cell, content in self._cells)
            and all(
                function.__code__ is code
                and function.__defaults__ is defaults
                and function.__kwdefaults__ is keywords
                for function, code, defaults, keywords in self._functions
            )
            and all(cls.__bases__ is bases for cls, bases in self._bases)
            and self._registered == abc.get_cache_token()
        )


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING
