"""Whether a class can be made once more from what it is now.

Keywords of a class statement (``class Plugin(Base, tag=4)``) are not kept by Python.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import EnumMeta
from typing import Any

from offload.errors import SerializationError

__all__ = ("check_creation",)


def check_creation(cls: type) -> None:
    """Raise SerializationError if a base or the metaclass of *cls* wants keywords to make it.

    What they do with what they get, or that they refuse what has no attributes yet, cannot be
    told without running them.
    """
    meta = type(cls)
    if issubclass(meta, EnumMeta):  # made in another way
        return
    name, bases = cls.__name__, cls.__bases__
    above: Any = super(cls, cls)
    _check(cls, above.__init_subclass__)
    _check(cls, meta.__prepare__, name, bases)
    _check(cls, meta.__new__, meta, name, bases, {})
    _check(cls, meta.__init__, cls, name, bases, {})


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
