"""Encode a class or function with everything that is stored with it.

Each node is written with a tag and its length or count, so that different structures have different
encodings. An object that occurs again is written as its number, because two names for one list
differ from two lists. Namespaces (of classes, functions) are written in the order of their names,
and sets in the order of their encoded items. Other shipped classes are stored separately, and
written as references.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Union

from offload.classes.hashing.code import ATOMS, HEADER, TAGGED, names_in, normalize, tagged
from offload.classes.hashing.dependencies import MISSING, HashDependencies
from offload.classes.hashing.values import (
    WRITERS,
    NoContent,
    annotations_of,
    attributes_of,
    members_of,
    subclasses_of,
    write_instance,
)
from offload.classes.library_internals import is_dispatching, is_repr_guard
from offload.classes.scope import Scope, describe_app_part
from offload.errors import SerializationError
from offload.text import type_name

_MODULES_OWN = frozenset(
    {"__name__", "__file__", "__package__", "__path__", "__spec__", "__loader__", "__builtins__"}
)
"""Globals that describe the module itself."""
_CONTAINERS = frozenset({list, dict, set})

Reference = Union[type, types.FunctionType, "UnorderedRefs"]
"""A class, a function that is a version of its own, or the references of a set."""
StandsFor = Callable[[Any], Any]
"""Returns the function or the version (a string) to hash in place of an object, or None."""


@dataclass(frozen=True)
class Content:
    """The encoding of an object, without the classes it refers to.

    Attributes:
        written: the encoding.
        references: these classes, in the order in which the encoding refers to them.
    """

    written: bytes
    references: tuple[Reference, ...]

    def classes(self) -> Iterator[type | types.FunctionType]:
        """Yield the classes and functions that are stored separately."""
        for reference in self.references:
            if isinstance(reference, UnorderedRefs):
                for each in reference.contents:
                    yield from each.classes()
            else:
                yield reference


@dataclass(frozen=True)
class UnorderedRefs:
    """References of a set's items, whose order doesn't matter."""

    contents: tuple[Content, ...]


class StructuralHasher:
    """Encodes one class or function.

    Args:
        scope: what ships by value.
        watch: records dependencies.
        docs: whether to include docstrings.
        stands_for: as for `identify`.

    Attributes:
        reads_docs: whether any code reads docstrings.
    """

    def __init__(
        self,
        scope: Scope,
        watch: HashDependencies,
        *,
        docs: bool,
        stands_for: StandsFor | None = None,
    ) -> None:
        self.scope = scope
        self.watch = watch
        self.docs = docs
        self._stands_for = stands_for
        self.reads_docs = False
        self._out: list[bytes] = []
        self._references: list[Reference] = []
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # keeps objects alive so that ids aren't reused
        self._functions: deque[tuple[types.FunctionType, list[str]]] = deque()
        self._where: list[str] = []
        self._settled = False
        self._reducing = False  # whether containers may be copies made for pickle
        self._home: Any = None  # the module whose code is being encoded
        self._modules: dict[int, set[str]] = {}

    def root(self, obj: Any) -> Content:
        """Encode *obj*. Raises SerializationError if it depends on something without content."""
        try:
            if isinstance(obj, type):
                self._class(obj)
            elif is_dispatching(obj):
                self._dispatcher(obj)
            else:
                self._again(obj)
                self._functions.append((obj, []))
            self._drain()
        except NoContent as exc:
            where = f"{' > '.join(self._where)}: " if self._where else ""
            raise SerializationError(
                f"{obj.__qualname__} cannot be shipped: {where}{exc}"
            ) from exc.__cause__
        except RecursionError:
            raise SerializationError(
                f"{obj.__qualname__} cannot be shipped: it is nested too deeply"
            ) from None
        return Content(b"".join(self._out), tuple(self._references))

    # -- what is written

    def _text(self, tag: bytes, content: str) -> None:
        written = content.encode("utf-8", "surrogatepass")
        self._out.append(TAGGED % (tag, len(written), written))

    def _header(self, tag: bytes, count: int = 0) -> None:
        self._out.append(HEADER % (tag, count))

    def _all(self, tag: bytes, values: Iterable[Any]) -> None:
        values = list(values)
        self._header(tag, len(values))
        for value in values:
            self.value(value)

    def _named(self, tag: bytes, values: Mapping[str, Any]) -> None:
        """Write values in the order of their names."""
        self._header(tag, len(values))
        for name in sorted(values, key=str):
            self._text(b"name", str(name))
            self._part(str(name), values[name])

    def _part(self, where: str, value: Any) -> None:
        atom = ATOMS.get(type(value))
        if atom is not None:
            self._out.append(atom(value))
            return
        self._where.append(where)
        self.value(value)
        self._where.pop()

    def _unordered(self, tag: bytes, values: Iterable[Any]) -> None:
        items = [self._apart(value) for value in values]
        self._header(tag, len(items))
        if any(item.references for item in items):
            self._references.append(UnorderedRefs(tuple(items)))
        else:
            self._out += [tagged(b"item", each) for each in sorted(i.written for i in items)]

    def _apart(self, value: Any, *, alone: bool = False) -> Content:
        """Encode *value* independently of what follows; with *alone*, also of what precedes it."""
        atom = ATOMS.get(type(value))
        if atom is not None:
            return Content(atom(value), ())
        before = self._out, self._references, self._seen, self._functions
        self._out, self._references = [], []
        self._seen = {} if alone else dict(self._seen)
        self._functions = deque()
        self.value(value)
        self._drain()
        found = Content(b"".join(self._out), tuple(self._references))
        self._out, self._references, self._seen, self._functions = before
        return found

    def _drain(self) -> None:
        """Write pending functions. They aren't written in place, to avoid deep recursion."""
        while self._functions:
            function, where = self._functions.popleft()
            self._where, before = [*where], self._where
            self._function(function)
            self._where = before

    def _again(self, obj: Any) -> bool:
        """Write the number of *obj* and return True if it occurred before; else remember it."""
        number = self._seen.get(id(obj))
        if number is not None:
            self._header(b"again", number)
            return True
        self._seen[id(obj)] = len(self._seen)
        self._alive.append(obj)
        return False

    def _changes(self, value: Any) -> None:
        """Record a dependency on an object that may change in place."""
        live = type(value) in _CONTAINERS and not self._reducing
        if self._settled or (live and self.watch.content(value)):
            return
        self.watch.constant = False
        where = f"{' > '.join(self._where)} ({type_name(value)})"
        self.watch.undetectable = self.watch.undetectable or where

    @contextmanager
    def _fingerprint(self, label: str, value: Any) -> Iterator[None]:
        """Record a fingerprint of the encoding of *value*, unless that is code."""
        start = len(self._out)
        yield
        if not callable(value) and not hasattr(type(value), "__get__"):
            self.watch.parts[label] = hash(b"".join(self._out[start:]))

    def _doc(self, doc: Any) -> None:
        if self.docs:
            self._text(b"doc", repr(doc))

    # -- values

    def value(self, value: Any) -> None:
        """Write any value."""
        kind = type(value)
        if kind is str:  # as its atom would be, in fewer calls
            self._text(b"text", value)
            return
        atom = ATOMS.get(kind)
        if atom is not None:
            self._out.append(atom(value))
            return
        write = _WRITERS.get(kind)
        if write is not None:
            write(self, value)
        elif isinstance(value, type):
            if value in self.scope:
                self._text(b"class", value.__name__)
                self._references.append(value)
            else:
                self._reference(value)
        elif self._stands_for is not None and (found := self._stands_for(value)) is not None:
            self._header(b"calls")
            if self.scope.includes(getattr(found, "__module__", None)):  # a version has none
                self.value(found)
            else:
                self._reference(found)
        elif (celery := describe_app_part(value)) is not None:
            self._text(b"celery", " ".join(celery))
        else:
            write_instance(self, value)

    def sequence(self, values: tuple[Any, ...]) -> None:
        """Write a tuple."""
        self._all(b"tuple", values)

    def _reference(self, obj: Any) -> None:
        """Write the name of an imported object."""
        self._text(b"import", f"{obj.__module__}:{getattr(obj, '__qualname__', obj.__name__)}")

    # -- functions

    def function(self, function: types.FunctionType) -> None:
        """Write a function, or a reference to it."""
        if is_dispatching(function):
            self._dispatcher(function)
        elif function not in self.scope:
            self._reference(function)
        elif self.scope.is_apart(function):
            self._text(b"apart", function.__name__)
            self._references.append(function)
        elif not self._again(function):
            self._header(b"function", self._seen[id(function)])
            self._functions.append((function, [*self._where]))

    def _dispatcher(self, function: types.FunctionType) -> None:
        """Write a function made by `functools.singledispatch`, without its cache."""
        if self._again(function):
            return
        registry: Mapping[Any, Any] = function.registry  # type: ignore[attr-defined]
        self._header(b"dispatcher", len(registry))
        self.watch.size(registry)
        self._unordered(b"registry", registry.items())

    def _function(self, function: types.FunctionType) -> None:
        code, names = function.__code__, function.__globals__
        self._home = names.get("__name__")
        self.watch.function(function)
        self._header(b"body", self._seen[id(function)])
        self._text(b"name", function.__name__)
        self._doc(function.__doc__)
        found = normalize(code, docs=self.docs)
        self.reads_docs = self.reads_docs or found.reads_docs
        self._out.append(found.content)
        self.value(function.__defaults__)
        keywords = function.__kwdefaults__
        if keywords:
            self.watch.names(keywords, keywords)
        self._named(b"keyword defaults", keywords or {})
        self._annotations(function)
        attributes = function.__dict__
        self.watch.names(attributes, attributes, added=True)
        self._named(b"attributes", attributes)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if not is_repr_guard(code, name):
                self._text(b"closure", name)
                self._part(name, cell)
        for name in found.globals:
            if name in _MODULES_OWN:
                continue
            value = names.get(name, MISSING)
            self.watch.name(names, name, value)
            if value is MISSING:
                self._text(b"builtin", name)
                continue
            self._text(b"global", name)
            if isinstance(value, types.ModuleType) and value in self.scope:
                self._module(value, code)
            else:
                with self._fingerprint(f"{self._home}.{name}", value):
                    self._part(name, value)

    def _annotations(self, obj: Any) -> None:
        found = annotations_of(obj)
        self.watch.annotations(obj, found)
        self._quietly(self._all, b"annotations", found.items())

    def _quietly(self, write: Callable[..., None], *args: Any) -> None:
        """Write objects that aren't changed in place."""
        before, self._settled = self._settled, True
        write(*args)
        self._settled = before

    def cell(self, cell: types.CellType) -> None:
        if self._again(cell):  # two functions may share a variable
            return
        try:
            content = cell.cell_contents
        except ValueError:
            content = MISSING
        self.watch.cell(cell, content)
        if content is MISSING:
            self._header(b"empty")
        else:
            self._header(b"cell")
            self.value(content)

    def _module(self, module: types.ModuleType, code: types.CodeType) -> None:
        """Write the parts of a shipped module that *code* may use."""
        own = vars(module)
        known = self._modules.setdefault(id(module), set())
        names = {name for name in names_in(code) if name in own} - known - _MODULES_OWN
        known |= names
        self.watch.names(own, names)
        self._named(b"module", {name: own[name] for name in names})

    # -- classes

    def _class(self, cls: type) -> None:
        own = vars(cls)
        self._home = cls.__module__
        self._text(b"class", cls.__name__)
        self.value(type(cls))
        self.watch.bases(cls)
        self._quietly(self._all, b"bases", cls.__bases__)
        self._quietly(self._all, b"written bases", own.get("__orig_bases__", ()))
        self._doc(own.get("__doc__"))
        self._annotations(cls)
        self._all(b"members", members_of(cls))
        registered = subclasses_of(cls)
        if registered:
            self._unordered(b"registered", registered)
        attributes = attributes_of(cls)
        self.watch.names(own, attributes, added=True)
        self._header(b"attributes", len(attributes))
        for name in sorted(attributes):
            value = attributes[name]
            self._text(b"name", name)
            before = self._settled
            self._settled = before or (name.startswith("__") and name.endswith("__"))
            with self._fingerprint(f"{cls.__qualname__}.{name}", value):
                self._part(name, value)
            self._settled = before


_WRITERS: dict[type, Callable[[StructuralHasher, Any], None]] = {
    **WRITERS,
    tuple: StructuralHasher.sequence,
    types.FunctionType: StructuralHasher.function,
    types.CellType: StructuralHasher.cell,
}
"""Functions that write values of a type, and methods for those that have parts."""
