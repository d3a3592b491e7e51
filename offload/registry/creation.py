"""Recreate a class from its current state.

Keywords of a class statement (``class Plugin(Base, tag=4)``) are not kept by Python. What shipped
metaclasses and ``__init_subclass__`` methods did when a class was defined is part of what is
shipped, such as its entry in a registry, so they do not run again; those of libraries do.
"""

from __future__ import annotations

import inspect
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import EnumMeta
from typing import Any

from offload.errors import SerializationError

__all__ = ("check_creation", "without_shipped_hooks")

Ships = Callable[[type], bool]
"""Returns whether a class is shipped rather than imported."""

_HOOK = "__init_subclass__"


def check_creation(cls: type, ships: Ships) -> None:
    """Raise SerializationError if a library wants keywords to make *cls*.

    What it does with what it gets, or that it refuses what has no attributes yet, cannot be
    told without running it.
    """
    if issubclass(type(cls), EnumMeta):  # made in another way
        return
    name, bases = cls.__name__, cls.__bases__
    definer = next(each for each in cls.__mro__[1:] if _HOOK in vars(each) and not ships(each))
    _check(cls, getattr(definer, _HOOK))
    meta = _library_of(type(cls), ships)
    _check(cls, meta.__prepare__, name, bases)
    _check(cls, meta.__new__, meta, name, bases, {})
    _check(cls, meta.__init__, cls, name, bases, {})


@contextmanager
def without_shipped_hooks(args: tuple[Any, ...], ships: Ships) -> Iterator[tuple[Any, ...]]:
    """Within this, making a class of the *args* given runs no shipped hook of this thread.

    Args:
        args: a metaclass, the name, bases, and more; of an enum, bases and more.
    """
    meta, *rest = args
    bases = meta
    if isinstance(meta, type):
        bases = rest[1]
        if any(map(ships, meta.__mro__)):
            args = (_Maker(meta, _library_of(meta, ships)), *rest)
    resolved = types.resolve_bases(bases)
    classes = dict.fromkeys(each for base in resolved for each in base.__mro__)
    hooks = {each: vars(each)[_HOOK] for each in classes if _HOOK in vars(each) and ships(each)}
    for each, hook in hooks.items():
        type.__setattr__(each, _HOOK, _passing(each, hook))
    try:
        yield args
    finally:
        for each, hook in hooks.items():
            type.__setattr__(each, _HOOK, hook)


def _library_of(meta: type, ships: Ships) -> Any:
    return next(each for each in meta.__mro__ if not ships(each))


class _Maker:
    """Makes classes of a shipped metaclass as the library's metaclass above it does."""

    def __init__(self, meta: type, library: Any) -> None:
        self._meta = meta
        self._library = library
        self.__prepare__ = library.__prepare__

    def __call__(self, name: str, bases: tuple[type, ...], names: dict[str, Any]) -> Any:
        made = self._library.__new__(self._meta, name, bases, names)
        if isinstance(made, self._meta):
            self._library.__init__(made, name, bases, names)
        return made


def _passing(cls: Any, hook: Any) -> Any:
    """Return a hook that is passed over in this thread; others may define subclasses meanwhile."""
    thread = threading.get_ident()

    def passing(subclass: type, /, **keywords: Any) -> None:
        if threading.get_ident() == thread:
            super(cls, subclass).__init_subclass__(**keywords)
        else:
            hook.__get__(None, subclass)(**keywords)

    return classmethod(passing)


def _check(cls: type, hook: Callable[..., Any], *args: Any) -> None:
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):  # not written in Python
        return
    try:
        signature.bind(*args)
    except TypeError as exc:
        raise SerializationError(
            f"{cls.__module__}.{cls.__qualname__} cannot be shipped: {hook.__qualname__} wants "
            f"more than is known of a class ({exc}): give its keywords defaults, and keep what "
            "they set as attributes of the class"
        ) from None
