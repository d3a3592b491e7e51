"""Rules for methods that may be called to rebuild an instance of a shipped class.

A tree, which is untrusted, names the method to call. So each method is resolved to the class that
defines it, and allowed only if that is a shipped class or one of Python's own value types. A method
inherited from a library is never called, because the tree would choose its arguments.
"""

from __future__ import annotations

import builtins
import collections
import decimal
import enum
import fractions
import ipaddress
import pathlib
import typing
import uuid
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from types import FunctionType, GenericAlias, MemberDescriptorType, MethodType
from typing import Any

from offload.serializers.base import CachedFunction

IsVersion = Callable[[type], bool]
"""Returns whether a class is itself shipped."""

ALIASES = (GenericAlias, type(typing.List[int]))  # noqa: UP006 (typing has its own alias type)
_METHODS = (FunctionType, classmethod, CachedFunction)
_CALLED = ("__new__", "__init__")
_EXCEPTIONS: set[type] = {
    kind
    for kind in vars(builtins).values()
    if isinstance(kind, type) and issubclass(kind, BaseException)
}
_VALUE_TYPES: frozenset[type] = frozenset(
    {
        *(object, bool, int, float, complex, str, bytes, bytearray),
        *(list, tuple, dict, set, frozenset, *_EXCEPTIONS),
        *(collections.OrderedDict, collections.defaultdict, collections.Counter),
        *(collections.deque, collections.UserDict, collections.UserList, collections.UserString),
        *(date, time, datetime, timedelta),
        *(decimal.Decimal, fractions.Fraction, uuid.UUID, typing.Generic),
        *(pathlib.PurePath, pathlib.PurePosixPath, pathlib.PureWindowsPath),
        *(ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network),
        *(ipaddress.IPv6Network, enum.Enum, enum.IntEnum, enum.Flag, enum.IntFlag),
    }
)
"""Types whose constructors only store data."""


def _definition(cls: type, name: str) -> tuple[type | None, Any]:
    """Return the class in the MRO that defines an attribute, and the raw attribute."""
    for each in cls.__mro__:
        if name in vars(each):
            return each, vars(each)[name]
    return None, None


def _is_allowed(definer: type | None, is_version: IsVersion) -> bool:
    return definer is None or definer in _VALUE_TYPES or is_version(definer)


def check_class(cls: type, is_version: IsVersion, *, calls: bool) -> None:
    """Raise TypeError if creating an instance would run a library's code.

    Args:
        calls: whether the class is called, rather than only its ``__new__``.
    """
    if issubclass(cls, type):
        raise TypeError(f"{cls.__qualname__} is a metaclass")
    wanted = [(cls, name) for name in ("__new__", "__del__", *(_CALLED if calls else ()))]
    if isinstance(cls, enum.EnumMeta):
        wanted.append((cls, "_missing_"))
    elif calls:
        wanted.append((type(cls), "__call__"))
    for owner, name in wanted:
        definer, _ = _definition(owner, name)
        if definer is not type and not _is_allowed(definer, is_version):
            assert definer is not None  # noqa: S101 (for the type checker: that is allowed)
            raise TypeError(
                f"{cls.__qualname__} inherits {name} from {definer.__module__}."
                f"{definer.__qualname__}, which is not shipped"
            )


def check_made(made: Any, is_version: IsVersion) -> None:
    """Raise TypeError unless *made* is an instance that a tree may change.

    It may not be one: enum members are shared by all values, and a function may return anything.
    """
    if not is_version(type(made)) or isinstance(made, enum.Enum):
        raise TypeError(f"a {type(made).__qualname__} has no state to be set")


def checked(made: Any, name: str, is_version: IsVersion) -> Callable[..., Any]:
    """Return a special method of an instance. Raises TypeError if a library defines it."""
    cls = type(made)
    definer, found = _definition(cls, name)
    if definer is None or not _is_allowed(definer, is_version):
        raise TypeError(f"{cls.__qualname__} has no {name} of its own")
    method: Callable[..., Any] = found.__get__(made, cls)
    return method


def bound(owner: Any, name: str, is_version: IsVersion) -> MethodType:
    """Return a method of an instance or class.

    Raises TypeError unless a shipped class defines it.
    """
    cls = owner if isinstance(owner, type) else type(owner)
    definer, found = _definition(cls, name)
    if definer is None or not is_version(cls) or not is_version(definer):
        raise TypeError(f"no shipped class defines a method {name[:40]!r}")
    if not isinstance(found, _METHODS):
        raise TypeError("not a method")
    descriptor: Any = found
    method: Any = descriptor.__get__(None if owner is cls else owner, cls)
    if not isinstance(method, MethodType) or method.__self__ is not owner:
        raise TypeError("not a method")
    return method


def alias(origin: Any, args: list[Any], is_version: IsVersion) -> Any:
    """Return ``origin[args]``. Raises TypeError if a library would compute it."""
    if not isinstance(origin, type):
        raise TypeError("the origin of an alias is not a class")
    definer, _ = _definition(origin, "__class_getitem__")
    by_meta, _ = _definition(type(origin), "__getitem__")
    if by_meta is not None or definer is None or not _is_allowed(definer, is_version):
        raise TypeError(f"{origin.__qualname__} is not generic by itself")
    if not all(each is ... or isinstance(each, (type, *ALIASES)) for each in args):
        raise TypeError("an argument of an alias is not a type")  # typing compiles strings
    made: Any = origin
    return made[tuple(args) if len(args) != 1 else args[0]]


def attributes(value: Any, state: Any, is_version: IsVersion) -> Any:
    """Return the state for `set_state`: pickle's *state*, or the instance's attributes.

    The attributes are used if a library defines ``__setstate__``, which readers don't call.
    """
    definer, _ = _definition(type(value), "__setstate__")
    if definer is None or is_version(definer):
        return state
    own = dict(getattr(value, "__dict__", None) or {})
    slots = {}
    for name, slot in slots_of(type(value)).items():
        try:
            slots[name] = slot.__get__(value, type(value))
        except AttributeError:
            continue
    return (own, slots) if slots else own or None


def set_state(made: Any, state: Any, is_version: IsVersion) -> None:
    """Set the state as pickle's BUILD does, but call no library's methods. Raises TypeError."""
    cls = type(made)
    definer, found = _definition(cls, "__setstate__")
    if definer is not None and is_version(definer):
        found.__get__(made, cls)(state)
        return
    slots: Any = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    own = dict(state or {})
    known = slots_of(cls)
    for name, value in (slots or {}).items():
        slot = known.get(name)
        if slot is None:
            own[name] = value
        else:
            slot.__set__(made, value)
    if not all(type(name) is str for name in own):
        raise TypeError("names of attributes are strings")
    if own:
        _namespace(made).update(own)


def _namespace(made: Any) -> dict[str, Any]:
    """Return an instance's ``__dict__``, even if its class overrides that name."""
    namespace: Any = object.__getattribute__(made, "__dict__")
    if type(namespace) is not dict:
        raise TypeError("it has no attributes")
    return namespace


def slots_of(cls: type) -> Mapping[str, Any]:
    """Return the slots of a class by name."""
    found: dict[str, Any] = {}
    for each in reversed(cls.__mro__):
        if "__slots__" in vars(each):
            found |= {
                name: slot
                for name, slot in vars(each).items()
                if type(slot) is MemberDescriptorType
            }
    return found
