"""The hash of a class or function, which covers everything that determines its behavior.

It is a SHA-256 over what is stored of the class (`offload.classes.hashing.structure`): the
normalized bytecode of its functions (`offload.classes.hashing.code`), defaults, closures,
annotations, decorators, attributes, bases, metaclass, and the globals that its code names. It also
covers all this of the shipped classes that the class refers to. Among globals, shipped functions
and classes count by their behavior, and values by their content. So changing a global creates
another version.

Not covered:

- names of files and modules, line numbers, comments, whitespace, qualified names;
- docstrings, unless shipped code reads one: by an attribute ``__doc__``, ``help``, or
  ``inspect.getdoc``;
- imported objects: only their names count;
- what Python, its standard library, or pydantic derive from the rest
  (`offload.classes.hashing.values`).

The minor version of Python is part of the hash because bytecode depends on it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, NamedTuple

from offload.classes.hashing.code import text
from offload.classes.hashing.dependencies import HashDependencies
from offload.classes.hashing.structure import (
    Content,
    StandsFor,
    StructuralHasher,
    UnorderedRefs,
)
from offload.classes.scope import Scope, check_shippable
from offload.classes.versions import ClassVersion, name_of
from offload.errors import SerializationError
from offload.text import human_size

logger = logging.getLogger(__name__)

_KEPT = 8
"""Maximum number of objects to remember per name: a notebook cell may redefine a class often."""
_MUCH = 1 << 20  # bytes; warn if more are hashed for every message


def python_tag() -> str:
    """Return the Python version of this process's bytecode, such as ``cpython-311``."""
    return sys.implementation.cache_tag or sys.implementation.name


class Identity(NamedTuple):
    """Hash of a class or function, with what it depends on.

    Attributes:
        hash: 64 hexadecimal digits.
        size: number of bytes that were hashed.
    """

    hash: str
    size: int
    dependencies: HashDependencies


def identify(obj: Any, scope: Scope, stands_for: StandsFor | None = None) -> Identity:
    """Return the hash of a class or function together with its dependencies.

    Args:
        stands_for: returns the function that an object calls, or a version that replaces its code,
            so that this counts where code refers to the object; None for other objects.

    Raises:
        NotShippable: if it is neither a class nor a function (a TypeError).
        SerializationError: if it depends on something without content, such as a lock.
    """
    watch = HashDependencies()
    contents, reads_docs = _contents(check_shippable(obj), scope, watch, stands_for, docs=False)
    if reads_docs:
        watch = HashDependencies()
        contents, _ = _contents(obj, scope, watch, stands_for, docs=True)
    found = sha256(b"offload class 3\0" + text(b"python", python_tag()))
    found.update(b"docs\0" if reads_docs else b"")
    found.update(_digest_of_graph(obj, contents))
    size = sum(len(content.written) for content in contents.values())
    return Identity(found.hexdigest(), size, watch)


def _contents(
    obj: Any,
    scope: Scope,
    watch: HashDependencies,
    stands_for: StandsFor | None,
    *,
    docs: bool,
) -> tuple[dict[int, Content], bool]:
    """Return the encodings of *obj* and each class reachable from it, by id.

    Also return whether any of them reads docstrings.
    """
    contents: dict[int, Content] = {}
    reads_docs = False
    waiting = [obj]
    while waiting:
        each = waiting.pop()
        if id(each) in contents:
            continue
        own = scope.including(each.__module__)
        hasher = StructuralHasher(own, watch, docs=docs, stands_for=stands_for)
        contents[id(each)] = found = hasher.root(each)
        reads_docs = reads_docs or hasher.reads_docs
        waiting += found.classes()
    return contents, reads_docs


def _digest_of_graph(root: Any, contents: dict[int, Content]) -> bytes:
    """Return the digest of *root*.

    Classes are stored separately, and references to one version yield one class. So two classes
    with the same behavior also count as one here. Each class gets a digest of its content. In each
    round, it gets one of its own digest and those it refers to, until a round distinguishes no more
    classes. (This is partition refinement, as for the equivalence of automata.)

    Args:
        contents: encodings of *root* and of all classes reachable from it, by id.
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


class LocalClasses:
    """Caches the hashes of classes until something that they depend on changes."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[Any, Scope, Identity], ...]] = {}
        self._warned: set[str] = set()
        self._sent: dict[str, tuple[Any, ...]] = {}

    def pair(self, obj: Any, scope: Scope) -> ClassVersion:
        """Return the name and hash of a class or function. Raises the same errors as `identify`.

        A hash is valid only for one scope object, because a registration may change what ships.
        """
        name = name_of(obj)
        known = self._known.get(name, ())
        same = [found for of, in_scope, found in known if of is obj and in_scope is scope]
        for identity in same:
            if identity.dependencies.unchanged():
                return name, identity.hash
        identity = identify(obj, scope)
        self._warn(name, identity, *same)
        others = [other for other in known if other[0] is not obj]
        self._known[name] = ((obj, scope, identity), *others[: _KEPT - 1])
        return name, identity.hash

    def _warn(self, name: str, identity: Identity, before: Identity | None = None) -> None:
        """Warn, once per name, about data that creates new versions or takes long to hash."""
        if before is None or name in self._warned:
            return
        watch, changed = identity.dependencies, ""
        if identity.hash != before.hash:
            changed = watch.changed_since(before.dependencies)
        if changed:
            logger.warning(
                "%s has changed, so a new version of %s is sent; each change adds a version to the "
                "store: keep data that changes in instances or arguments",
                changed,
                name,
            )
        elif watch.undetectable and identity.size > _MUCH:
            logger.warning(
                "%s is hashed again for every message (%s), because %s may change unnoticed: "
                "pass it as an argument, or keep it in a list, dict, or tuple of plain values",
                name,
                human_size(identity.size),
                watch.undetectable,
            )
        else:
            return
        self._warned.add(name)

    def send(self, obj: Any) -> None:
        """Record that this process sent a class or function."""
        name = name_of(obj)
        others = [each for each in self._sent.get(name, ()) if each is not obj]
        self._sent[name] = (obj, *others[: _KEPT - 1])

    def was_sent(self, obj: Any) -> bool:
        """Return whether this process sent *obj*."""
        return any(each is obj for each in self._sent.get(name_of(obj), ()))

    def find(self, pair: ClassVersion, candidates: Iterable[Any], scope: Scope) -> Any:
        """Return the class or function that has exactly this version, or None.

        Names come from untrusted data, so only *candidates* and sent objects are considered.
        """
        for each in (*candidates, *self._sent.get(pair[0], ())):
            try:
                if each is not None and self.pair(each, scope) == pair:
                    return each
            except (SerializationError, TypeError):
                continue
        return None
