"""Dependencies of a hash: the classes that an object refers to, and objects that may change.

Classes are stored apart, and references to one version yield one class. So two classes with the
same behavior count as one here, too. Each class gets a digest of its content, then one of that and
of the digests it refers to, and so on until no more classes differ (partition refinement, as for
the equality of automata).
"""

from __future__ import annotations

import abc
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from operator import is_
from typing import Any, Union

__all__ = (
    "MISSING",
    "Content",
    "HashDependencies",
    "Reference",
    "UnorderedRefs",
    "digest_of_graph",
)

Reference = Union[type, types.FunctionType, "UnorderedRefs"]
"""A class, a function that is a version of its own, or the references of a set."""


@dataclass(frozen=True)
class Content:
    """Encoding of an object, without the classes it refers to.

    Attributes:
        written: the encoding.
        references: the classes, in the order in which the encoding refers to them.
    """

    written: bytes
    references: tuple[Reference, ...]

    def classes(self) -> Iterator[type | types.FunctionType]:
        """Yield the classes and functions that are stored apart."""
        for reference in self.references:
            if isinstance(reference, UnorderedRefs):
                for each in reference.contents:
                    yield from each.classes()
            else:
                yield reference


@dataclass(frozen=True)
class UnorderedRefs:
    """References of the items of a set, whose order doesn't count."""

    contents: tuple[Content, ...]


def digest_of_graph(root: Any, contents: dict[int, Content]) -> bytes:
    """Return the digest of *root*.

    Args:
        contents: of *root* and of all classes reachable from it, by id.
    """
    digests = {key: sha256(content.written).digest() for key, content in contents.items()}
    count = 0
    while count < len(set(digests.values())):
        count = len(set(digests.values()))
        digests = {
            key: _digest(digests[key], content, digests) for key, content in contents.items()
        }
    return sha256(digests[id(root)] + b"".join(sorted(set(digests.values())))).digest()


def _digest(prefix: bytes, content: Content, digests: dict[int, bytes]) -> bytes:
    found = sha256(prefix)
    for reference in content.references:
        if isinstance(reference, UnorderedRefs):
            items = (
                _digest(sha256(each.written).digest(), each, digests) for each in reference.contents
            )
            found.update(sha256(b"".join(sorted(items))).digest())
        else:
            found.update(digests[id(reference)])
    return found.digest()


MISSING: Any = object()
_ROOM = 1 << 20
"""Limit on watched container items per hash, at 8 bytes each."""


class HashDependencies:
    """Objects that a hash depends on, as they were when it was computed.

    Attributes:
        constant: False if it depends on an object whose changes can't be detected.
        unsure: where that object is, and its type; "" if there is none.
        parts: a fingerprint of each class attribute and global.
    """

    def __init__(self) -> None:
        self.constant = True
        self.unsure = ""
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
        self._names.append((names, name, value))

    def names(self, names: Mapping[Any, Any], which: Iterable[Any]) -> None:
        self._names += [(names, name, names[name]) for name in which]

    def size(self, names: Mapping[Any, Any]) -> None:
        """Watch for added names."""
        self._sizes.append((names, len(names)))

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
        """Watch annotations, unless they are code (Python 3.14)."""
        if found and sys.version_info < (3, 14):
            own = obj.__annotations__
            self.size(own)
            self.names(own, own)

    def holds(self) -> bool:
        """Return whether everything is certain to be unchanged."""
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
            and all(_holds(container, items) for container, items in self._contents)
            and self._registered == abc.get_cache_token()
        )


def _items(container: Any) -> Iterable[Any]:
    return chain(container, container.values()) if type(container) is dict else container


def _holds(container: Any, items: tuple[Any, ...]) -> bool:
    """Return whether a container holds exactly these *items*, in this order."""
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
