"""The registered types of this process: by type for writers, by name for readers.

The wire carries a type's name and version, which are only looked up here. What is called was
registered in this process; nothing is imported because data names it. Registrations are kept in
dicts that are only changed by single operations, so there is no lock that a fork could inherit.
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
    """Raised by a decoder of offload's own. Its text names fields, and contains no value."""


@dataclass(frozen=True)
class RegisteredType:
    """A type that travels as data.

    Attributes:
        type: the type.
        name, version: what the wire carries.
        encode: from a value to data: whatever offload carries without pickle, buffers included.
        decode: from data and its version to the value.
        how: where encode and decode come from, for display.
        subclasses: whether instances of subclasses are encoded, too.
        source: what was registered: the type, or its materializer.
        built_in: whether offload registered it; it then gives way to the app's registration.
        implied: whether it was found in the fields of a registered type; gives way, too.
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
    """Another package's types that offload registers once the app has imported the package.

    Attributes:
        imported: the module that the app must have imported.
        module: ours, which defines `TYPES`.
        extra: the extra of offload that installs the package.
        types: the types' names, for display.
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
"""By package, whose name also starts the names of its types."""

_TRIGGERS = frozenset(built_in.imported for built_in in BUILT_IN.values())

_CARRIED = frozenset({"numpy", "pandas", "polars", "pyarrow"})
"""Packages whose types the tree knows, so that a miss is no reason to look further."""

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


def is_carried(kind: type[Any]) -> bool:
    """Return whether *kind* is one of Python's own types that every app carries already."""
    return kind in _PLAIN or kind in (object, type)


def add(new: RegisteredType) -> None:
    """Add a registration; one that gives way changes nothing where the type or name is registered.

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
            return  # what was written under the name stays readable
        if not typed.gives_way:
            _by_name.pop(new.name, None)
            raise _registered_error(typed)
        _by_type[new.type] = new
    _by_name[new.name] = new


def _registered_error(found: RegisteredType) -> ConfigurationError:
    return ConfigurationError(
        f"{full_name(found.type)} is registered already, as {found.name!r}: register it once"
    )


def is_registered(source: Any) -> bool:
    """Return whether a type, or the materializer of one, is registered."""
    known = list(_by_name.values())
    return any(source is each.type or source is each.source for each in known)


def full_name(kind: type[Any]) -> str:
    """Return the module and the qualified name of a type."""
    return f"{kind.__module__}.{kind.__qualname__}"


def resolve_later(load: Callable[[], bool]) -> None:
    """Call *load* when a type or a name isn't found; again, until it returns True."""
    _pending.append(load)


def resolve_pending() -> bool:
    """Register what was left for later; return whether anything was."""
    done = False
    while True:
        loaded = [load for load in list(_pending) if load()]
        for load in loaded:
            with suppress(ValueError):  # another thread was faster
                _pending.remove(load)
        if not loaded:
            return done
        done = True


def find(kind: type[Any]) -> RegisteredType | None:
    """Return the registration that encodes values of type *kind*; None if there is none.

    Raises ConfigurationError for a type of ``offload_types`` that can't be loaded.
    """
    found = _known(kind)
    if found is None:
        package = kind.__module__.partition(".")[0]
        if activate(package) or (_pending and package not in _CARRIED and resolve_pending()):
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
    """Return the registration that decodes what was written under *name*; None if none does."""
    found = _by_name.get(name)
    if found is None and (activate(name.partition(".")[0]) or resolve_pending()):
        found = _by_name.get(name)
    return found


def activate(package: str) -> bool:
    """Register the types of a package of `BUILT_IN` if the app imported it; return whether now."""
    built_in = BUILT_IN.get(package)
    if built_in is None or package in _active or built_in.imported not in sys.modules:
        return False
    for each in importlib.import_module(built_in.module).TYPES:
        add(each)
    _active[package] = True
    return True


def registered_types() -> list[RegisteredType]:
    """Return the registrations in force: of the app, and of packages that it imported."""
    for package in BUILT_IN:
        activate(package)
    resolve_pending()
    return sorted(set(_by_type.values()), key=lambda found: found.name)


def holds_registered(value: Any) -> bool:
    """Return whether *value* is or contains an instance of a registered type.

    Looks into Python's own containers, level by level, so that nearly all of it runs in C.
    An implied type that JSON can carry doesn't count: its instances change only with others.
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


_SHOWN = 100  # characters of a name that anyone may have written


def read_registered(body: Node, read: Callable[[Node], Any]) -> Any:
    """Return the value that the node's body describes.

    Args:
        read: returns the value of another node.

    Raises:
        UnknownType: its type isn't registered here, or only in an older version.
        DeserializationError: the decoder failed, or returned a value of another type.
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
    except Exception as error:  # whose message may show the value
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
            f"the value is of type {name!r}, which is read only where the app has imported the "
            f"package: import {built_in.imported} where the task is defined "
            f"(pip install 'offload[{built_in.extra}]')"
        )
    shown = name[:_SHOWN]
    return UnknownType(
        f"the value is of type {shown!r}, which isn't registered in this process: call "
        f"offload.register_type for it here as the sender does (name={shown!r}), or list it in "
        "offload_types"
    )
