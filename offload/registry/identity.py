"""The hash of a class or function: it covers what decides behaviour, and nothing else.

SHA-256 over what is stored of it (`offload.registry.walk`) and of the classes that are shipped
with it (`offload.registry.graph`): the instructions of its functions, whatever their formatting
(`offload.registry.code`), defaults, closures, annotations, decorators, attributes, bases,
metaclass, and the globals that its code names: functions and classes that are shipped as what
they do, values by their content. A global that changes makes another version.

Not part of it:

- names of files and modules, line numbers, comments, formatting, qualified names;
- docstrings, unless code that is shipped reads one: asks for an attribute ``__doc__``, or calls
  ``help`` or ``inspect.getdoc``. Code that is imported where it runs may read them; that is taken
  not to be what a class does;
- what is only imported: that is a name, and its content that of the process where it runs;
- what Python, its standard library or pydantic make of the rest, when it is first used
  (`offload.registry.derived`).

The minor version of Python is part of it, as bytecode is.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from offload.registry.graph import Content, digest_of_graph
from offload.registry.plain import text
from offload.registry.scope import Scope
from offload.registry.walk import Walk
from offload.registry.watch import Watch
from offload.text import type_name

__all__ = ("Identity", "get_class_hash", "identify", "python_tag")


def python_tag() -> str:
    """Return whose bytecode this process runs, as ``cpython-311``."""
    return sys.implementation.cache_tag or sys.implementation.name


@dataclass(frozen=True)
class Identity:
    """A version of a class or function.

    Attributes:
        hash: 64 hexadecimal digits.
        size: bytes that were hashed.
    """

    hash: str
    size: int
    _watch: Watch = field(repr=False)

    @property
    def unsure(self) -> str:
        """Where something is for which the hash has to be taken every time; "" if nowhere."""
        return self._watch.unsure

    def changed_since(self, before: Identity) -> str:
        """Return the first class attribute or global whose value is another than before; "" if
        code changed.
        """
        old = before._watch.parts
        new = self._watch.parts.items()
        return next((name for name, value in new if old.get(name, value) != value), "")

    def holds(self) -> bool:
        """Return whether the object is certain to be what it was."""
        return self._watch.holds()


def get_class_hash(obj: Any, modules: Iterable[str] = ()) -> str:
    """Return the hash of a class or function, 64 hexadecimal digits.

    Args:
        modules: what is shipped with it besides what is in its own module, by name.

    Raises:
        TypeError: it is neither a class nor a function.
        SerializationError: it depends on something that has no content of its own, as a lock.
    """
    return identify(obj, Scope(modules)).hash


def identify(obj: Any, scope: Scope) -> Identity:
    """Do as `get_class_hash`, and remember what the hash depends on."""
    if not isinstance(obj, (type, types.FunctionType)):
        raise TypeError(f"a class or function is wanted, this is a {type_name(obj)}")
    watch = Watch()
    contents, reads_docs = _contents(obj, scope, watch, docs=False)
    if reads_docs:
        watch = Watch()
        contents, _ = _contents(obj, scope, watch, docs=True)
    found = hashlib.sha256(b"offload class 3\0" + text(b"python", python_tag()))
    found.update(b"docs\0" if reads_docs else b"")
    found.update(digest_of_graph(obj, contents))
    size = sum(len(content.written) for content in contents.values())
    return Identity(found.hexdigest(), size, watch)


def _contents(
    obj: Any, scope: Scope, watch: Watch, *, docs: bool
) -> tuple[dict[int, Content], bool]:
    """Return what *obj* is, and each class that can be reached from it, by id; and whether
    something of it reads docstrings.
    """
    contents: dict[int, Content] = {}
    reads_docs = False
    waiting = [obj]
    while waiting:
        each = waiting.pop()
        if id(each) in contents:
            continue
        walk = Walk(scope.including(each.__module__), watch, docs=docs)
        contents[id(each)] = found = walk.root(each)
        reads_docs = reads_docs or walk.reads_docs
        waiting += found.classes()
    return contents, reads_docs
