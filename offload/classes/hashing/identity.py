"""The hash of a class or function: it covers what decides behavior, and nothing else.

It is a SHA-256 over what is stored of the class (`offload.classes.hashing.structure`) and over the
other shipped classes it refers to (`offload.classes.hashing.dependencies`): the normalized bytecode
of its functions (`offload.classes.hashing.code`), defaults, closures, annotations, decorators,
attributes, bases, metaclass, and the globals its code names. Of those, shipped functions and
classes count by their behavior, and values by their content. A global that changes makes another
version.

Not covered:

- names of files and modules, line numbers, comments, whitespace, qualified names;
- docstrings, unless shipped code reads one: accesses an attribute ``__doc__``, or calls ``help`` or
  ``inspect.getdoc``;
- imported objects: only their names count;
- what Python, its standard library, or pydantic derive from the rest
  (`offload.classes.hashing.values`).

The minor version of Python is part of the hash because bytecode depends on it.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from offload.classes.hashing.code import text
from offload.classes.hashing.dependencies import Content, HashDependencies, digest_of_graph
from offload.classes.hashing.structure import StructuralHasher
from offload.classes.scope import Scope
from offload.text import type_name

__all__ = ("Identity", "get_class_hash", "identify", "python_tag")


def python_tag() -> str:
    """Return the Python that this process's bytecode is for, such as ``cpython-311``."""
    return sys.implementation.cache_tag or sys.implementation.name


@dataclass(frozen=True)
class Identity:
    """Hash of a class or function, with what it depends on.

    Attributes:
        hash: 64 hexadecimal digits.
        size: number of bytes that were hashed.
    """

    hash: str
    size: int
    _watch: HashDependencies = field(repr=False)

    @property
    def unsure(self) -> str:
        """Where an object is whose changes can't be detected; "" if there is none."""
        return self._watch.unsure

    def changed_since(self, before: Identity) -> str:
        """Return the first class attribute or global whose value changed since *before*; "" if
        code did.
        """
        old = before._watch.parts
        new = self._watch.parts.items()
        return next((name for name, value in new if old.get(name, value) != value), "")

    def holds(self) -> bool:
        """Return whether the object is certain to be unchanged."""
        return self._watch.holds()


def get_class_hash(obj: Any, modules: Iterable[str] = ()) -> str:
    """Return the hash of a class or function, 64 hexadecimal digits.

    Args:
        modules: names of the modules that ship with it, besides its own.

    Raises:
        TypeError: it is neither a class nor a function.
        SerializationError: it depends on something without content, such as a lock.
    """
    return identify(obj, Scope(modules)).hash


def identify(obj: Any, scope: Scope) -> Identity:
    """Return the hash of a class or function together with its dependencies."""
    if not isinstance(obj, (type, types.FunctionType)):
        raise TypeError(f"expected a class or function, not a {type_name(obj)}")
    watch = HashDependencies()
    contents, reads_docs = _contents(obj, scope, watch, docs=False)
    if reads_docs:
        watch = HashDependencies()
        contents, _ = _contents(obj, scope, watch, docs=True)
    found = hashlib.sha256(b"offload class 3\0" + text(b"python", python_tag()))
    found.update(b"docs\0" if reads_docs else b"")
    found.update(digest_of_graph(obj, contents))
    size = sum(len(content.written) for content in contents.values())
    return Identity(found.hexdigest(), size, watch)


def _contents(
    obj: Any, scope: Scope, watch: HashDependencies, *, docs: bool
) -> tuple[dict[int, Content], bool]:
    """Return the encoding of *obj* and of each class reachable from it, by id; and whether any
    of them reads docstrings.
    """
    contents: dict[int, Content] = {}
    reads_docs = False
    waiting = [obj]
    while waiting:
        each = waiting.pop()
        if id(each) in contents:
            continue
        hasher = StructuralHasher(scope.including(each.__module__), watch, docs=docs)
        contents[id(each)] = found = hasher.root(each)
        reads_docs = reads_docs or hasher.reads_docs
        waiting += found.classes()
    return contents, reads_docs
