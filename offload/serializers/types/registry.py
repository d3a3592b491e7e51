"""The registered types of this process: by type for writers, by name for readers.

Stored data names a type and a version, which are only looked up here. Only functions registered in
this process are called; data never causes an import. Registrations are in dicts that only atomic
operations change, so there is no lock that a fork could inherit.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from offload.errors import ConfigurationError, DeserializationError, UnknownType, UnknownTypeVersion
from offload.serializers import scalars
from offload.serializers.scalars import Node, text
from offload.text import reason_of, type_name


class NotDecoded(Exception):
    """Raised by offload's own decoders. Its message names fields, but contains no value."""


def as_list(data: Any) -> list[Any]:
    """Return *data*; raise NotDecoded unless it is a list.

    Data comes from anyone. What isn't a list may have any number of items, such as a range.
    """
    if type(data) is not list:
        raise NotDecoded("a list is missing")
    return data


@dataclass(frozen=True)
class RegisteredType:
    """A type whose values are serialized as data.

    Attributes:
        type: the type.
        name, version: identify the type and its data in what is stored.
        encode: takes a value, and returns any data that offload supports without pickle.
        decode: takes data and its version, and returns the value.
        how: where *encode* and *decode* come from, for display.
        subclasses: whether instances of subclasses are also encoded.
        source: what was registered: the type, or its materializer.
        built_in: whether offload registered it; the app's registration then takes precedence.
        implied: whether it was found in a registered type's fields; an explicit registration then
            takes precedence.
    """

    type: type[Any]
    name: str
    version: int
    encode: Callable[[Any], Any]
    decode: Callable[[Any, int], Any]
    how: str
    subclasses: bool = False
    source: Any = None
    built_in: bool = False
    implied: bool = False

    @property
    def gives_way(self) -> bool:
        return self.built_in or self.implied


@dataclass(frozen=True)
class BuiltIn:
    """Third-party types that offload registers once the app has imported their package.

    Attributes:
        imported: name of the module that the app must have imported.
        module: name of offload's module that defines `TYPES`.
        extra: offload's extra that installs the package.
        types: names of the types, for display.
    """

    imported: str
    module: str
    extra: str
    types: tuple[str, ...]


BUILT_IN: dict[str, BuiltIn] = {
    "PIL": BuiltIn("PIL.Image", "offload.serializers.types.pillow", "pillow", ("PIL.Image",)),
    "scipy": BuiltIn(
        "scipy.sparse",
        "offload.serializers.types.scipy",
        "scipy",
        tuple(
            f"scipy.sparse.{form}_{kind}"
            for form in ("bsr", "coo", "csc", "csr", "dia", "dok", "lil")
            for kind in ("array", "matrix")
        ),
    ),
    "geopandas": BuiltIn(
        "geopandas",
        "offload.serializers.types.geopandas",
        "geopandas",
        ("geopandas.GeoDataFrame", "geopandas.GeoSeries"),
    ),
    "torch": BuiltIn(
        "torch", "offload.serializers.types.torch", "torch", ("torch.Tensor", "torch.Parameter")
    ),
    "xarray": BuiltIn(
        "xarray",
        "offload.serializers.types.xarray",
        "xarray",
        ("xarray.DataArray", "xarray.Dataset", "xarray.Variable"),
    ),
}
"""Built-in types by package, whose name is also the prefix of its types' names."""

_TRIGGERS = frozenset(built_in.imported for built_in in BUILT_IN.values())

TREE_PACKAGES = frozenset({"numpy", "pandas", "polars", "pyarrow"})
"""Packages whose types the tree supports itself: for them, no pending types are registered."""

_CONTAINERS = frozenset(
    {list, tuple, dict, set, frozenset, deque, OrderedDict, Counter, defaultdict}
)
_PLAIN = frozenset({*scalars.WRITERS, *_CONTAINERS, str, bytes, bytearray, memoryview, slice})
_SIMPLE = (str, bytes, int, float, list, tuple, dict)
_DEEPEST = 100

_by_type: dict[type[Any], RegisteredType] = {}
_by_name: dict[str, RegisteredType] = {}
_pending: list[Callable[[], bool]] = []
_active: dict[str, bool] = {}


def is_supported(kind: type[Any]) -> bool:
    """Return whether *kind* is a type of Python's that needs no registration."""
    return kind in _PLAIN or kind in (object, type)


def add(new: RegisteredType) -> None:
    """Add a registration, unless it gives way to one with the same type or name.

    Raises ConfigurationError if another registration has the type or the name.
    """
    named = _by_name.setdefault(new.name, new)
    if named is not new and (named.type is not new.type or not named.gives_way):
        if new.gives_way:
            return
        if named.type is new.type:
            raise _registered_error(named)
        raise ConfigurationError(
            f"the type name {new.name!r} is taken by {full_name(named.type)}: register "
            f"{full_name(new.type)} under another name"
        )
    typed = _by_type.setdefault(new.type, new)
    if typed is not new:
        if new.gives_way:
            return  # keep reading what was written under the name
        if not typed.gives_way:
            _by_name.pop(new.name, None)
            raise _registered_error(typed)
        _by_type[new.type] = new
    _by_name[new.name] = new


def _registered_error(found: RegisteredType) -> ConfigurationError:
    return ConfigurationError(
        f"{full_name(found.type)} is already registered, as {found.name!r}: register it once"
    )


def is_registered(source: Any) -> bool:
    """Return whether *source*, a type or a materializer, is registered."""
    known = list(_by_name.values())
    return any(source is each.type or source is each.source for each in known)


def full_name(kind: type[Any]) -> str:
    """Return the module and the qualified name of a type."""
    return f"{kind.__module__}.{kind.__qualname__}"


def resolve_later(load: Callable[[], bool]) -> None:
    """Call *load* whenever a type or name isn't found, until it returns True."""
    _pending.append(load)


def resolve_pending() -> bool:
    """Call the functions of `resolve_later`; return whether there were any."""
    done = False
    while True:
        loaded = [load for load in list(_pending) if load()]
        for load in loaded:
            with suppress(ValueError):  # another thread has removed it
                _pending.remove(load)
        if not loaded:
            return done
        done = True


def find(kind: type[Any]) -> RegisteredType | None:
    """Return the registration that encodes values of type *kind*; None if there is none.

    Raises ConfigurationError if a type in ``offload_types`` can't be loaded.
    """
    found = _known(kind)
    if found is None:
        package = kind.__module__.partition(".")[0]
        if activate(package) or (_pending and package not in TREE_PACKAGES and resolve_pending()):
            return _known(kind)
    return found


def _known(kind: type[Any]) -> RegisteredType | None:
    found = _by_type.get(kind)
    if found is None:
        for base in kind.__mro__[1:]:
            inherited = _by_type.get(base)
            if inherited is not None and inherited.subclasses:
                return inherited
    return found


def find_name(name: str) -> RegisteredType | None:
    """Return the registration that decodes data written under *name*; None if there is none."""
    found = _by_name.get(name)
    if found is None and (activate(name.partition(".")[0]) or resolve_pending()):
        found = _by_name.get(name)
    return found


def activate(package: str) -> bool:
    """Register the types of a package in `BUILT_IN`, if the app has imported the package.

    Return whether this call registered them.
    """
    built_in = BUILT_IN.get(package)
    if built_in is None or package in _active or built_in.imported not in sys.modules:
        return False
    for each in importlib.import_module(built_in.module).TYPES:
        add(each)
    _active[package] = True
    return True


def registered_types() -> list[RegisteredType]:
    """Return the active registrations: of the app, and of packages that it imported."""
    for package in BUILT_IN:
        activate(package)
    resolve_pending()
    return sorted(set(_by_type.values()), key=lambda found: found.name)


def holds_registered(value: Any) -> bool:
    """Return whether *value* is or contains an instance of a registered type.

    Searches Python's own containers, level by level, so that nearly everything runs in C. Skips
    implied types that JSON supports: they are encoded only within registered ones.
    """
    if not (_by_type or _pending) and sys.modules.keys().isdisjoint(_TRIGGERS):
        return False
    level: Any = (value,)
    seen: set[int] = set()
    for _ in range(_DEEPEST):
        kinds = set(map(type, level))
        for kind in kinds - _PLAIN:
            found = find(kind)
            if found is not None and not (found.implied and issubclass(kind, _SIMPLE)):
                return True
        if kinds.isdisjoint(_CONTAINERS):
            return False
        level = list(chain.from_iterable(_items(level, seen)))
    return False


def _items(level: Any, seen: set[int]) -> Iterator[Any]:
    for each in level:
        if type(each) in _CONTAINERS and id(each) not in seen:
            seen.add(id(each))
            yield each
            if isinstance(each, dict):
                yield each.values()


_SHOWN = 100  # characters to show of a name, which is untrusted


def read_registered(body: Node, read: Callable[[Node], Any]) -> Any:
    """Return the value of a registered type that the node's body describes.

    Args:
        read: returns the value of a nested node.

    Raises:
        UnknownType: if its type isn't registered here, or only in an older version.
        DeserializationError: if the decoder failed, or returned a value of another type.
    """
    name, version, node = body
    name = text(name)
    if type(version) is not int or version < 1:
        raise ValueError("not the version of a type")
    found = find_name(name)
    if found is None:
        raise _unknown_error(name)
    if version > found.version:
        raise UnknownTypeVersion(
            f"the value is of type {name!r} in version {version}, and this process registers "
            f"version {found.version}: deploy the newer registration here first"
        )
    data = read(node)
    try:
        value = found.decode(data, version)
    except Exception as error:  # its message may contain the value
        raise _decoder_error(found, version, _cause(error)) from None
    if type(value) is not found.type and not (found.subclasses and isinstance(value, found.type)):
        raise _decoder_error(found, version, f"it returned a {type_name(value)}")
    return value


def _decoder_error(found: RegisteredType, version: int, reason: str) -> DeserializationError:
    return DeserializationError(
        f"cannot decode a value of type {found.name!r}, written in version {version}: {reason}"
    )


def _cause(error: Exception) -> str:
    if isinstance(error, NotDecoded):
        return str(error)
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return reason_of(error)
    file = os.path.basename(traceback.tb_frame.f_code.co_filename)  # noqa: PTH119 (a name only)
    return f"{reason_of(error)} in {file}, line {traceback.tb_lineno}"


def _unknown_error(name: str) -> UnknownType:
    built_in = BUILT_IN.get(name.partition(".")[0])
    if built_in is not None and name in built_in.types:
        return UnknownType(
            f"the value is of type {name!r}, which can be read only if the app has imported the "
            f"package: import {built_in.imported} where the task is defined "
            f"(pip install 'offload[{built_in.extra}]')"
        )
    shown = name[:_SHOWN]
    return UnknownType(
        f"the value is of type {shown!r}, which isn't registered in this process: call "
        f"offload.register_type for it here, as in the sender (name={shown!r}), or list it in "
        "offload_types"
    )
