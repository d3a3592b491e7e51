"""Register types: with two functions, with a class that has these, or by their own fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, TypeVar

from kombu.utils.imports import symbol_by_name

from offload.errors import ConfigurationError
from offload.serializers.types import registry
from offload.serializers.types.derived import derive, nested_types
from offload.serializers.types.registry import BUILT_IN, RegisteredType, full_name

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:<>\[\], -]{0,199}(?<! )")
_MAX_VERSION = 2**31 - 1
_MEMBERS = ("encode", "decode")
_HOW = "encode and decode"
_loading: set[str] = set()


def register_type(
    cls: T,
    *,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any, int], Any] | None = None,
    name: str | None = None,
    version: int | None = None,
    subclasses: bool = False,
) -> T:
    """Serialize values of a type as data, without pickle, in all apps of this process.

    Register the type in every process that sends or receives its values, before the first one. A
    dataclass, pydantic model, or enum needs no functions; such types in its annotations are
    registered with it. You can use this as a class decorator.

    Args:
        cls: the type; or, instead of the other arguments, a class with the members *type*,
            *encode*, *decode*, and optionally *name*, *version*, and *subclasses*.
        encode: takes a value and returns data, such as a dict with arrays. Memory of bytes,
            memoryviews, and arrays isn't copied.
        decode: takes that data, and the version that wrote it, and returns the value.
        name: the type's name in stored data; by default, its module and qualified name.
        version: version of the data; 1 by default. Older versions are read, newer ones aren't.
        subclasses: also call *encode* for instances of subclasses.

    Returns *cls*.

    Raises ConfigurationError if the type is already registered, the name is taken, or an argument
    is invalid.
    """
    source = cls
    members = _members(cls)
    if members:
        if any(each is not None for each in (encode, decode, name, version)) or subclasses:
            raise ConfigurationError(
                f"register_type({_shown(cls)}): pass only this class; its members define the rest"
            )
        given: Any = members
    else:
        given = {"type": cls, "encode": encode, "decode": decode, "name": name}
        given |= {"version": version, "subclasses": subclasses}
    registry.add(_checked(given, source))
    kind = given["type"]
    if given["encode"] is None:
        _register_nested(kind)
    return cls


def _members(cls: Any) -> dict[str, Any] | None:
    """Return the members if *cls* is a materializer; None if it is a type to register."""
    if not isinstance(getattr(cls, "type", None), type):
        return None
    if not all(callable(getattr(cls, each, None)) for each in _MEMBERS):
        return None
    made = cls() if isinstance(cls, type) else cls
    return {
        "type": made.type,
        "encode": made.encode,
        "decode": made.decode,
        "name": getattr(made, "name", None),
        "version": getattr(made, "version", None),
        "subclasses": getattr(made, "subclasses", False),
    }


def _checked(given: dict[str, Any], source: Any) -> RegisteredType:
    kind, encode, decode = given["type"], given["encode"], given["decode"]
    what = f"register_type({_shown(kind)})"
    if not isinstance(kind, type):
        raise ConfigurationError(f"{what}: expected a class, or one with type, encode, and decode")
    if registry.is_supported(kind):
        raise ConfigurationError(f"{what}: offload already supports this type")
    how = _HOW
    if encode is None and decode is None:
        how, encode, decode = _derived(kind, what, subclasses=given["subclasses"])
    elif not (callable(encode) and callable(decode)):
        raise ConfigurationError(f"{what}: encode and decode must both be functions")
    name = full_name(kind) if given["name"] is None else given["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{what}: a name has 1 to 200 letters, digits, or characters of _.:<>[], -"
        )
    if name.partition(".")[0] in BUILT_IN:
        package = name.partition(".")[0]
        raise ConfigurationError(
            f"{what}: names that start with {package!r} are reserved for offload's own types"
        )
    version = 1 if given["version"] is None else given["version"]
    if type(version) is not int or not 1 <= version <= _MAX_VERSION:
        raise ConfigurationError(f"{what}: a version is a whole number from 1 to {_MAX_VERSION}")
    if not isinstance(given["subclasses"], bool):
        raise ConfigurationError(f"{what}: subclasses must be True or False")
    return RegisteredType(
        kind, name, version, encode, decode, how, given["subclasses"], source=source
    )


def _derived(
    kind: type[Any], what: str, *, subclasses: bool
) -> tuple[str, Callable[[Any], Any], Callable[[Any, int], Any]]:
    try:
        found = derive(kind)
    except TypeError as error:
        raise ConfigurationError(f"{what}: {error}; pass encode and decode") from None
    if found is None:
        raise ConfigurationError(
            f"{what}: it isn't a dataclass, pydantic model, or enum; pass encode and decode"
        )
    if subclasses:
        raise ConfigurationError(
            f"{what}: subclasses may have other fields; register each, or pass encode and decode"
        )
    return found


def _register_nested(kind: type[Any]) -> None:
    """Register the types in the annotations of *kind* on first use: by then, all are defined."""

    def load() -> bool:
        types = nested_types(kind)
        for each in types or ():
            found = derive(each)
            if found is not None and not registry.is_registered(each):
                registry.add(
                    RegisteredType(each, full_name(each), 1, *found[1:], found[0], implied=True)
                )
                _register_nested(each)
        return types is not None

    registry.resolve_later(load)


def load_types(names: Iterable[str]) -> None:
    """Register the types in ``offload_types`` on first use.

    Args:
        names: dotted names of modules that register types on import, or of classes to register.
    """
    for name in names:
        if name not in _loading:
            _loading.add(name)
            registry.resolve_later(_loader(name))


def _loader(name: str) -> Callable[[], bool]:
    def load() -> bool:
        try:
            found = symbol_by_name(name)
        except Exception as error:
            raise ConfigurationError(
                f"offload_types: {name!r} can't be imported ({type(error).__name__}: {error})"
            ) from error
        if not isinstance(found, ModuleType) and not registry.is_registered(found):
            try:
                register_type(found)
            except ConfigurationError:
                if not registry.is_registered(found):  # another thread may have registered it
                    raise
        return True

    return load


def _shown(kind: Any) -> str:
    return full_name(kind) if isinstance(kind, type) else f"a {type(kind).__name__}"
