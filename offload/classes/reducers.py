"""Reduce classes, enums, and functions for pickle.

Stored versions refer to functions in this module by name, so renaming one breaks stored data.
cloudpickle reduces other objects. Its reducers for classes and functions aren't used, because they
are private, and any release may change them.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from types import CellType, CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, NamedTuple

from offload.classes.definitions import file_of
from offload.classes.hashing.code import names_in, normalize
from offload.classes.hashing.values import subclasses_of
from offload.classes.library_internals import dataclass_constant

_DESCRIPTORS = (MemberDescriptorType, GetSetDescriptorType)
_MADE_BY_PYTHON = frozenset({"__dict__", "__weakref__", "__annotate_func__", "_abc_impl"})
"""Attributes that Python creates for every class."""
_MADE_BY_ENUM = frozenset(
    {
        "_generate_next_value_",
        "_member_map_",
        "_member_names_",
        "_member_type_",
        "_value2member_map_",
    }
)
_OF_MEMBERS = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})
_OF_MODULES = ("__package__", "__name__", "__path__", "__file__")
_OF_FUNCTIONS = (
    "__name__",
    "__qualname__",
    "__module__",
    "__doc__",
    "__defaults__",
    "__kwdefaults__",
    "__annotations__",
)

Reduced = tuple[Callable[..., Any], tuple[Any, ...], Any, Callable[..., Any]]
"""Constructor, its arguments, state (which may refer to the new object), and state setter."""


# -- classes


def reduce_class(cls: type) -> Reduced:
    """Reduce a class to its bases and metaclass, which are needed to create it, and attributes."""
    return _reduce_enum(cls) if issubclass(cls, Enum) else _reduce_plain(cls)


def _reduce_plain(cls: type) -> Reduced:
    own = vars(cls)
    bases = own.get("__orig_bases__", cls.__bases__)
    at_once = {"__qualname__": cls.__qualname__}
    if "__module__" in own:
        at_once["__module__"] = cls.__module__
    if isinstance(own.get("__dict__"), property):
        at_once["__dict__"] = own["__dict__"]
    if "__slots__" in own and NamedTuple not in bases:  # must be set at creation
        at_once["__slots__"] = own["__slots__"]
    attributes = {name: value for name, value in _attributes(cls) if name not in at_once}
    args = (type(cls), cls.__name__, bases, at_once)
    return make_class, args, (attributes, subclasses_of(cls)), set_class


def _attributes(cls: type) -> Iterator[tuple[str, Any]]:
    for name in sorted(vars(cls)):
        value = vars(cls)[name]
        of_class = type(value) in _DESCRIPTORS and value.__objclass__ is cls
        if name not in _MADE_BY_PYTHON and not of_class:
            yield name, value


def make_class(meta: Any, name: str, bases: tuple[Any, ...], at_once: dict[str, Any]) -> type:
    return types.new_class(name, bases, {"metaclass": meta}, lambda names: names.update(at_once))


def set_class(cls: Any, state: tuple[dict[str, Any], list[type]]) -> None:
    attributes, registered = state
    for name, value in attributes.items():
        setattr(cls, name, value)
    if "__firstlineno__" in attributes:  # setting other attributes deletes it
        cls.__firstlineno__ = attributes["__firstlineno__"]
    for subclass in registered:
        cls.register(subclass)


# -- enums


def _reduce_enum(cls: type[Enum]) -> Reduced:
    """Reduce an enum with its aliases and its members' attributes.

    ``__init__`` and ``__new__``, which set the attributes, aren't called again.
    """
    members = {name: member._value_ for name, member in cls.__members__.items()}
    of_members = {
        name: {k: v for k, v in vars(member).items() if k not in _OF_MEMBERS}
        for name, member in cls.__members__.items()
        if member.name == name
    }
    inherited: dict[str, Any] = {}
    for base in reversed(cls.__bases__):
        inherited |= vars(base)
    attributes = {
        name: value
        for name, value in _attributes(cls)
        if name not in _MADE_BY_ENUM
        and name not in members
        and inherited.get(name, members) is not value
    }
    args = (cls.__bases__, cls.__name__, cls.__qualname__, members, cls.__module__)
    return make_enum, args, ((attributes, subclasses_of(cls)), of_members), set_enum


def make_enum(
    bases: tuple[type, ...], name: str, qualname: str, members: dict[str, Any], module: str
) -> type:
    meta: Any = type(bases[-1])
    names = meta.__prepare__(name, bases)
    for member, value in members.items():
        names[member] = value
    made: type = meta.__new__(meta, name, bases, names)
    made.__module__, made.__qualname__ = module, qualname
    return made


def set_enum(cls: type[Enum], state: tuple[Any, dict[str, dict[str, Any]]]) -> None:
    of_class, of_members = state
    set_class(cls, of_class)
    for name, attributes in of_members.items():
        vars(cls.__members__[name]).update(attributes)


# -- functions


class Functions:
    """Reduces the functions of one pickle, preserving shared globals and closure variables.

    Args:
        version: the version to show in tracebacks, such as ``shop.Filter@3f0c11aa9d52``.
    """

    def __init__(self, version: str) -> None:
        self._version = version
        self._globals: dict[int, dict[str, Any]] = {}
        self._cells: dict[int, CellType] = {}

    def reduce(self, function: FunctionType) -> Reduced:
        code, names = function.__code__, function.__globals__
        shared = self._globals.setdefault(
            id(names), {name: names[name] for name in _OF_MODULES if name in names}
        )
        cells = function.__closure__
        self._cells.update((id(cell), cell) for cell in cells or ())
        used = {name: names[name] for name in normalize(code).globals if name in names}
        contents = [_content(cell) for cell in cells or ()]
        values = [*used.values(), *(value for content in contents for value in content)]
        state = (
            {name: getattr(function, name) for name in _OF_FUNCTIONS},
            dict(function.__dict__),
            used,
            contents,
            list(submodules(code, values)),
        )
        return (
            make_function,
            (code, shared, cells, file_of(self._version, code.co_filename)),
            state,
            set_function,
        )

    def reduce_cell(self, cell: CellType) -> tuple[Any, ...] | None:
        """Reduce a closure variable to an empty cell, which its functions fill.

        Return None for other cells.
        """
        return (CellType, ()) if self._cells.get(id(cell)) is cell else None


def _content(cell: CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def submodules(code: CodeType, values: list[Any]) -> Iterator[types.ModuleType]:
    """Yield the imported submodules that *code* may access as attributes of a package."""
    names = names_in(code)
    for package in values:
        if isinstance(package, types.ModuleType):
            prefix = f"{package.__name__}."
            for name, module in list(sys.modules.items()):
                if name.startswith(prefix) and names.issuperset(name[len(prefix) :].split(".")):
                    yield module


def make_function(
    code: CodeType, names: dict[str, Any], cells: tuple[CellType, ...] | None, file: str = ""
) -> FunctionType:
    names["__builtins__"] = vars(builtins)
    return FunctionType(_placed(code, file) if file else code, names, None, None, cells)


def _placed(code: CodeType, file: str) -> CodeType:
    """Return *code*, including nested code, with another file name."""
    constants = tuple(
        _placed(each, file) if isinstance(each, CodeType) else each for each in code.co_consts
    )
    return code.replace(co_filename=file, co_consts=constants)


def set_function(function: FunctionType, state: tuple[Any, ...]) -> None:
    own: Mapping[str, Any]
    own, attributes, used, contents, _submodules = state
    for name, value in own.items():
        setattr(function, name, value)
    function.__dict__.update(attributes)
    function.__globals__.update(used)
    for cell, content in zip(function.__closure__ or (), contents, strict=True):
        if content:
            cell.cell_contents = content[0]


def reduce_dispatching(function: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Reduce a function made by `functools.singledispatch`."""
    return _dispatch, (dict(function.registry),)


def _dispatch(registry: dict[Any, Any]) -> Any:
    made = functools.singledispatch(registry[object])
    for cls, function in registry.items():
        made.register(cls, function)
    return made


def reduce_dispatching_method(method: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Reduce a method made by `functools.singledispatchmethod`."""
    return _dispatch_method, (method.func, method.dispatcher)


def _dispatch_method(function: Any, dispatcher: Any) -> Any:
    made = functools.singledispatchmethod(function)
    made.dispatcher = dispatcher
    return made


def reduce_constant(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """Reduce a constant that `dataclasses` compares by identity; return None for other objects."""
    name = dataclass_constant(obj)
    return None if name is None else (_of_dataclasses, (name,))


def _of_dataclasses(name: str) -> Any:
    return getattr(dataclasses, name)


def reduce_named(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """Reduce a NewType or type variable; return None for other objects."""
    kind = type(obj)
    if kind is typing.TypeVar:
        variance = {"covariant": obj.__covariant__, "contravariant": obj.__contravariant__}
        args = (obj.__name__, *obj.__constraints__)
        return _named, (kind, obj.__module__, args, {"bound": obj.__bound__, **variance})
    if kind is typing.NewType:
        return _named, (kind, obj.__module__, (obj.__name__, obj.__supertype__))
    if kind is typing.ParamSpec or kind is getattr(typing, "TypeVarTuple", None):
        return _named, (kind, obj.__module__, (obj.__name__,))
    return None


def _named(
    kind: Any, module: str, args: tuple[Any, ...], options: Mapping[str, Any] | None = None
) -> Any:
    made = kind(*args, **(options or {}))
    made.__module__ = module
    return made


def _set_enum(cls: Any, state: Any) -> Any:
    """Fill in an enum that an early release stored."""
    set_state, of_class, of_members = state
    set_state(cls, of_class)
    for name, attributes in of_members.items():
        vars(cls.__members__[name]).update(attributes)
    return cls
