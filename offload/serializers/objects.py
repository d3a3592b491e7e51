"""Shipped classes, functions and their instances in a tree: a name, a hash, and plain data.

Instances are taken apart as pickle's protocol 4 does it (``__reduce_ex__``,
https://docs.python.org/3/library/pickle.html#object.__reduce_ex__), but only where what makes
them is their class: by ``__new__``, or by calling it::

    {"code": ["shop.Filter", "3f…"]}
    {"object": ["new", ["shop.Filter", "3f…"], arguments, keywords, state, items, pairs]}
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any

from offload.errors import DeserializationError
from offload.serializers.scalars import Node, NotData, text

if TYPE_CHECKING:
    from offload.serializers.tree import Reader, Writer

__all__ = ("READERS", "write")

_NEW, _CALL = "new", "call"


def write(value: Any, writer: Writer) -> Node | None:
    """Return the node of a shipped class or function, or of an instance of one; else None."""
    if isinstance(value, (type, FunctionType)):
        pair = _pair(value, writer)
        return None if pair is None else {"code": pair}
    pair = _pair(type(value), writer)
    return None if pair is None else {"object": _taken_apart(value, pair, writer)}


def _pair(obj: Any, writer: Writer) -> list[str] | None:
    pair = writer.code.shipped(obj) if writer.code is not None else None
    if pair is None:
        return None
    writer.ships_code = True
    return list(pair)


def _taken_apart(value: Any, pair: list[str], writer: Writer) -> Node:
    cls = type(value)
    try:
        reduced = value.__reduce_ex__(4)
    except Exception as exc:
        raise NotData(f"{cls.__qualname__} cannot be taken apart: {exc}") from exc
    if isinstance(reduced, str):
        raise NotData(f"it is {reduced} of its module")
    make, args, state, items, pairs = (*reduced, None, None, None)[:5]
    keywords: dict[str, Any] = {}
    how = _NEW
    if make is copyreg.__newobj__ and args[0] is cls:  # type: ignore[attr-defined]
        args = args[1:]
    elif make is copyreg.__newobj_ex__ and args[0] is cls:  # type: ignore[attr-defined]
        _, args, keywords = args
    elif make is cls:
        how = _CALL
    else:
        raise NotData(f"{cls.__qualname__} says that {make!r:.60} makes it")
    if len(reduced) > 5 and reduced[5] is not None:
        raise NotData(f"{cls.__qualname__} sets its state by a function")
    parts = [tuple(args), dict(keywords), state, list(items or ()), [tuple(p) for p in pairs or ()]]
    names = ["arguments", "keywords", "state", "items", "pairs"]
    return [how, pair, *writer.items(parts, names)]


def _read_code(reader: Reader, body: Node) -> Any:
    name, code_hash = body
    if reader.code is None:
        raise DeserializationError(f"the value needs {text(name)[:100]}, which is shipped code")
    return reader.code.load(text(name), text(code_hash))


def _read_object(reader: Reader, body: Node) -> Any:
    how, pair, *parts = body
    cls = _read_code(reader, pair)
    if not isinstance(cls, type):
        raise TypeError("an instance of what is no class")
    args, keywords, state, items, pairs = map(reader.value, parts)
    if how == _NEW:
        made: Any = cls.__new__(cls, *args, **keywords)
    elif how == _CALL:
        made = cls(*args, **keywords)
    else:
        raise ValueError(f"no way to make an object: {how!r:.20}")
    if state is not None:
        _set_state(made, state)
    if items:
        made.extend(items)
    for key, value in pairs:
        made[key] = value
    return made


def _set_state(made: Any, state: Any) -> None:
    """Do what pickle's BUILD does."""
    set_state = getattr(made, "__setstate__", None)
    if set_state is not None:
        set_state(state)
        return
    slots = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state:
        made.__dict__.update(state)
    for name, value in (slots or {}).items():
        setattr(made, name, value)


READERS: dict[str, Callable[[Reader, Node], Any]] = {"code": _read_code, "object": _read_object}
