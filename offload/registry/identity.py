"""The hash of a class or function: it covers what decides behaviour, and nothing else.

SHA-256 over a walk through the object and all that is shipped with it. Every node is written
with a tag and its length or count, so that no two different structures give the same bytes.
Dicts that only hold names (of classes, functions) are written in the order of the names, sets
in the order of what their items are written as.

Not part of it: names of files and modules, line numbers, qualified names, docstrings (unless
code that is shipped reads one), and what Python itself derives from the rest. The minor version
of Python is part of it, as bytecode is.
"""

from __future__ import annotations

import copyreg
import dataclasses
import functools
import hashlib
import logging
import reprlib
import struct
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from offload.errors import SerializationError
from offload.registry.annotations import annotations_of
from offload.registry.apps import what_of_celery
from offload.registry.code import instructions
from offload.registry.scope import Scope
from offload.serializers.describe import short_repr, type_name

__all__ = ("Identity", "get_class_hash", "identify", "python_tag")

_DERIVED = frozenset(
    {
        "__abstractmethods__",
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__annotations_cache__",
        "__classdictcell__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__parameters__",
        "__qualname__",
        "__slotnames__",
        "__static_attributes__",
        "__type_params__",
        "__weakref__",
        "_abc_impl",
    }
)
"""Of a class: written apart, or made by Python from the rest."""
_ENUM = frozenset(
    {
        "_member_map_",
        "_member_names_",
        "_member_type_",
        "_value2member_map_",
        "_hashable_values_",
        "_unhashable_values_",
        "_unhashable_values_map_",
        "_value_repr_",
        "_use_args_",
        "_new_member_",
        "__new__",
        "_order_",
    }
)
_MODULES_OWN = frozenset(
    {"__name__", "__file__", "__package__", "__path__", "__spec__", "__loader__", "__builtins__"}
)
"""Globals that say where code stands."""
_DOCS = "__doc__"
_IN_USE = {(module.__file__, "repr_running") for module in (dataclasses, reprlib)}
"""Variables that only say what is going on right now."""


def python_tag() -> str:
    """Return whose bytecode this process runs, as ``cpython-311``."""
    return sys.implementation.cache_tag or sys.implementation.name


@dataclass(frozen=True)
class Identity:
    """A version of a class or function.

    Attributes:
        hash: 64 hexadecimal digits.
        watched: the names it was found to depend on: a namespace, a name in it and what that was.
        constant: whether nothing else that it depends on can change.
    """

    hash: str
    watched: tuple[tuple[Mapping[str, Any], str, Any], ...] = field(repr=False)
    constant: bool

    def holds(self) -> bool:
        """Return whether the object is certain to be what it was."""
        return self.constant and all(
            names.get(name, _MISSING) is value for names, name, value in self.watched
        )


_MISSING = object()


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
    """Do as `get_class_hash`, and tell what the hash depends on."""
    if not isinstance(obj, (type, types.FunctionType)):
        raise TypeError(f"a class or function is wanted, this is a {type_name(obj)}")
    walk = _Walk(scope.including(obj.__module__))
    try:
        walk.root(obj)
    except RecursionError:
        raise SerializationError(
            f"{obj.__qualname__}: it is nested too deep to be hashed"
        ) from None
    except _NoContent as exc:
        raise SerializationError(f"{obj.__qualname__} cannot be shipped: {exc}") from exc
    return Identity(walk.digest(), tuple(walk.watched), walk.constant)


class _NoContent(Exception):
    """Something cannot be hashed."""

    def below(self, where: str) -> _NoContent:
        return _NoContent(f"{where}: {self}" if ": " not in str(self) else f"{where} > {self}")


class _Walk:
    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.out: list[bytes] = []
        self.docs: list[bytes] = []
        self.reads_docs = False
        self.watched: list[tuple[Mapping[str, Any], str, Any]] = []
        self.constant = True
        self._root: Any = None
        self._seen: dict[int, int] = {}
        self._classes: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no two objects get the same id

    def root(self, obj: Any) -> None:
        self._root = obj
        self.text(b"python", python_tag())
        self.function(obj) if isinstance(obj, types.FunctionType) else self.klass(obj)

    def digest(self) -> str:
        found = hashlib.sha256(b"offload class 1\0")
        found.update(b"".join(self.out))
        if self.reads_docs:
            found.update(b"docs\0" + b"".join(self.docs))
        return found.hexdigest()

    # -- what is written

    def raw(self, tag: bytes, content: bytes) -> None:
        self.out.append(b"%b %d\0%b" % (tag, len(content), content))

    def text(self, tag: bytes, content: str) -> None:
        self.raw(tag, content.encode("utf-8", "surrogatepass"))

    def begin(self, tag: bytes, count: int) -> None:
        self.out.append(b"%b[%d]\0" % (tag, count))

    def all(self, tag: bytes, values: Iterable[Any]) -> None:
        values = list(values)
        self.begin(tag, len(values))
        for value in values:
            self.value(value)

    def named(self, tag: bytes, values: Mapping[str, Any]) -> None:
        """Write values in the order of their names."""
        self.begin(tag, len(values))
        for name in sorted(values, key=str):
            self.text(b"name", str(name))
            try:
                self.value(values[name])
            except _NoContent as exc:
                raise exc.below(str(name)) from exc.__cause__

    def unordered(self, tag: bytes, values: Iterable[Any]) -> None:
        self.begin(tag, 0)
        for content in sorted(map(self._apart, values)):
            self.raw(b"item", content)

    def _apart(self, value: Any) -> bytes:
        """Return what *value* is written as, as if nothing came after it."""
        plain = _ATOMS.get(type(value))
        if plain is not None:
            return plain(value)
        out, seen, classes = self.out, self._seen, self._classes
        self.out, self._seen, self._classes = [], dict(seen), dict(classes)
        try:
            self.value(value)
            return b"".join(self.out)
        finally:
            self.out, self._seen, self._classes = out, seen, classes

    def _again(self, obj: Any) -> bool:
        """Write that *obj* was met before, if it was; else remember it."""
        number = self._seen.get(id(obj))
        if number is not None:
            self.begin(b"again", number)
            return True
        self._seen[id(obj)] = len(self._seen)
        self._alive.append(obj)
        return False

    # -- values

    def value(self, value: Any) -> None:
        plain = _ATOMS.get(type(value))
        if plain is not None:
            self.out.append(plain(value))
            return
        write = _EXACT.get(type(value))
        if write is not None:
            write(self, value)
        elif isinstance(value, type):
            self.klass(value) if value in self.scope else self.reference(value)
        elif (celery := what_of_celery(value)) is not None:
            self.text(b"celery", " ".join(celery))
        elif not self._again(value):
            self.instance(value)

    def reference(self, obj: Any) -> None:
        """Write what is imported where it is needed."""
        self.text(b"import", f"{obj.__module__}:{getattr(obj, '__qualname__', obj.__name__)}")

    def function(self, function: types.FunctionType) -> None:
        if self._again(function):
            return
        if function not in self.scope and function is not self._root:
            self.reference(function)
            return
        self.begin(b"function", 0)
        self.text(b"name", function.__name__)
        self._doc(function.__doc__)
        used: set[str] = set()
        self.code(function.__code__, used)
        self.value(function.__defaults__)
        self.named(b"keyword defaults", function.__kwdefaults__ or {})
        self.all(b"annotations", annotations_of(function).items())
        self.named(b"attributes", function.__dict__)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for name, cell in cells:
            if (function.__code__.co_filename, name) in _IN_USE:
                continue
            self.text(b"closure", name)
            self._part(name, lambda cell=cell: self.cell(cell))  # type: ignore[misc]
        self._globals(function, used)

    def cell(self, cell: types.CellType) -> None:
        try:
            content = cell.cell_contents
        except ValueError:
            self.begin(b"empty", 0)
            return
        self._may_change(content)
        self.value(content)

    def code(self, code: types.CodeType, used: set[str]) -> None:
        """Write a code object and what is within it; add the globals it uses to *used*."""
        found = instructions(code)
        used.update(found.globals)
        self.reads_docs = self.reads_docs or found.reads_docs
        self.raw(b"code", found.steps)
        self.raw(b"shape", found.shape)
        at = 0
        for begin, end in (*found.unordered, (len(found.constants),) * 2):
            self._constants(b"constants", found.constants[at:begin], used)
            self.unordered(b"set", found.constants[begin:end])
            at = end

    def _constants(self, tag: bytes, values: tuple[Any, ...], used: set[str]) -> None:
        self.begin(tag, len(values))
        for value in values:
            if isinstance(value, types.CodeType):
                self.code(value, used)
            else:
                self.value(value)

    def _globals(self, function: types.FunctionType, used: set[str]) -> None:
        names = function.__globals__
        for name in sorted(used - _MODULES_OWN):
            value = names.get(name, _MISSING)
            self.watched.append((names, name, value))
            if value is _MISSING:
                self.text(b"builtin", name)
                continue
            self.text(b"global", name)
            self._may_change(value)
            if isinstance(value, types.ModuleType) and value in self.scope:
                self._module(value, function.__code__)
            elif isinstance(value, logging.Logger) and value.name == names.get("__name__"):
                self.begin(b"module's logger", 0)
            else:
                self._part(name, lambda value=value: self.value(value))  # type: ignore[misc]

    def _module(self, module: types.ModuleType, code: types.CodeType) -> None:
        """Write what *code* may use of a module that is shipped."""
        if self._again(module):
            return
        found = {name: vars(module)[name] for name in names_in(code) if name in vars(module)}
        self.watched += [(vars(module), name, value) for name, value in found.items()]
        self.named(b"module", found)

    def klass(self, cls: type) -> None:
        """Write a class. It is a version of its own: besides classes, nothing in it is the same
        object as something in another one, as it would not be once it was loaded.
        """
        number = self._classes.get(id(cls))
        if number is not None:
            self.begin(b"class again", number)
            return
        self._classes[id(cls)] = len(self._classes)
        self._alive.append(cls)
        outside, self._seen = self._seen, {}
        self._class(cls)
        self._seen = outside

    def _class(self, cls: type) -> None:
        own = vars(cls)
        self.text(b"class", cls.__name__)
        self.value(type(cls))
        self.all(b"bases", own.get("__orig_bases__", cls.__bases__))
        self._doc(own.get(_DOCS))
        self.all(b"annotations", annotations_of(cls).items())
        skipped = _DERIVED
        members = getattr(cls, "__members__", None)
        if members is not None and isinstance(members, Mapping):
            self.all(b"members", ((name, member.value) for name, member in members.items()))
            skipped = _DERIVED | _ENUM | set(members)
        attributes = {
            name: value
            for name, value in own.items()
            if name not in skipped and type(value) not in _DESCRIPTORS
        }
        self.watched += [(own, name, value) for name, value in attributes.items()]
        for name, value in attributes.items():
            if not (name.startswith("__") and name.endswith("__")):
                self._may_change(value)
        self.named(b"attributes", attributes)

    def instance(self, value: Any) -> None:
        if isinstance(value, typing.TypeVar):
            self.all(b"typevar", _typevar(value))
            return
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            reduced = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        except Exception as exc:
            raise _NoContent(
                f"{short_repr(value)} is a {type_name(value)}, which has no content to be shipped"
            ) from exc
        if isinstance(reduced, str):
            self._by_name(value, reduced)
            return
        make, args, state, items, pairs = (*reduced, None, None, None)[:5]
        self.begin(b"object", 0)
        self.value(make)
        self.value(args)
        self.value(state)
        self.all(b"items", items or ())
        self.all(b"pairs", pairs or ())

    def _by_name(self, value: Any, name: str) -> None:
        """Write what pickle takes for something to be imported."""
        module = getattr(value, "__module__", None)
        if module in self.scope.modules or module == "__main__":  # as typing.NewType
            self.text(b"named", name)
            own = getattr(value, "__dict__", {})
            self.named(b"of", {k: v for k, v in own.items() if k not in _DERIVED})
        else:
            self.text(b"import", f"{module}:{name}")

    def _part(self, where: str, write: Callable[[], None]) -> None:
        try:
            write()
        except _NoContent as exc:
            raise exc.below(where) from exc.__cause__

    def _doc(self, text: Any) -> None:
        self.docs.append(repr(text).encode("utf-8", "surrogatepass") + b"\0")

    def _may_change(self, value: Any) -> None:
        """Note if the content of a value may change while it stays the same object."""
        if self.constant and type(value) not in _UNCHANGING and not isinstance(value, type):
            self.constant = False


def names_in(code: types.CodeType) -> set[str]:
    """Return all names that *code* and what is within it use."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= names_in(constant)
    return found


def _typevar(value: Any) -> tuple[Any, ...]:
    return (
        value.__name__,
        value.__bound__,
        value.__constraints__,
        value.__covariant__,
        value.__contravariant__,
    )


_DESCRIPTORS = frozenset({types.MemberDescriptorType, types.GetSetDescriptorType})
_UNCHANGING = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented)),
        *(types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.CodeType),
        *(property, staticmethod, classmethod, functools.partialmethod, logging.Logger),
        *(types.GenericAlias, type(typing.List[int]), typing.TypeVar),  # noqa: UP006
    }
)


def _text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return b"text %d\0%b" % (len(content), content)


def _int(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)
    return b"int %d\0%b" % (len(content), content)


_ATOMS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"none\0",
    bool: lambda value: b"true\0" if value else b"false\0",
    type(...): lambda _: b"ellipsis\0",
    type(NotImplemented): lambda _: b"not implemented\0",
    int: _int,
    float: lambda value: b"float\0" + struct.pack(">d", value),
    complex: lambda value: b"complex\0" + struct.pack(">dd", value.real, value.imag),
    str: _text,
    bytes: lambda value: b"bytes %d\0%b" % (len(value), value),
}


def _write_container(tag: bytes) -> Callable[[_Walk, Any], None]:
    def write(walk: _Walk, value: Any) -> None:
        if not walk._again(value):
            walk.all(tag, value)

    return write


def _write_dict(walk: _Walk, value: dict[Any, Any]) -> None:
    if not walk._again(value):
        walk.all(b"dict", value.items())


def _write_property(walk: _Walk, value: property) -> None:
    walk.begin(b"property", 0)
    walk._doc(value.__doc__)
    for part in (value.fget, value.fset, value.fdel):
        walk.value(part)


def _write_wrapped(walk: _Walk, value: Any) -> None:
    walk.text(b"method", type(value).__name__)
    walk.value(value.__func__)


def _write_method(walk: _Walk, value: types.MethodType) -> None:
    walk.begin(b"bound", 0)
    walk.value(value.__func__)
    walk.value(value.__self__)


def _write_module(walk: _Walk, value: types.ModuleType) -> None:
    walk.text(b"import", value.__name__)


def _write_cached_property(walk: _Walk, value: Any) -> None:
    walk.begin(b"cached property", 0)
    walk.value(value.func)


def _write_lru_cache(walk: _Walk, value: Any) -> None:
    walk.begin(b"cached", 0)
    walk.value(value.cache_parameters())
    walk.value(value.__wrapped__)


def _write_code(walk: _Walk, value: types.CodeType) -> None:
    walk.code(value, set())


_EXACT: dict[type, Callable[[_Walk, Any], None]] = {
    tuple: lambda walk, value: walk.all(b"tuple", value),
    list: _write_container(b"list"),
    dict: _write_dict,
    set: lambda walk, value: walk.unordered(b"set", value),
    frozenset: lambda walk, value: walk.unordered(b"frozenset", value),
    types.MappingProxyType: lambda walk, value: walk.all(b"mapping", value.items()),
    types.FunctionType: lambda walk, value: walk.function(value),
    types.CodeType: _write_code,
    types.CellType: lambda walk, value: walk.cell(value),
    types.ModuleType: _write_module,
    types.MethodType: _write_method,
    property: _write_property,
    staticmethod: _write_wrapped,
    classmethod: _write_wrapped,
    functools.cached_property: _write_cached_property,
    functools._lru_cache_wrapper: _write_lru_cache,
}
