"""Shipped classes, functions and their instances in a tree: a name, a hash, and plain data.

Instances are taken apart as pickle's protocol 4 does it (``__reduce_ex__``,
https://docs.python.org/3/library/pickle.html#object.__reduce_ex__), but only where what makes
them is shipped, too: by ``__new__`` of their class, or by calling a class, a function or a
class method::

    {"shipped": [[["shop.Filter", "3f…"], …], tree]}    the outermost node: what the tree names
    {"code": 0}
    {"object": ["new", 0, 0, arguments, keywords, state, items, pairs]}
    {"object": ["call", {"code": 0}, 1, arguments, …]}  the third: a number, if it comes again
    {"again": 1}
    {"alias": [{"code": 0}, {"type": "int"}]}           Filter[int]
    {"partial": [function, arguments, keywords]}
    {"bound": [instance or class, "run"]}
"""

from __future__ import annotations

import copyreg
import functools
import typing
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import FunctionType, GenericAlias, MethodType, NoneType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from offload.serializers.describe import type_name
from offload.serializers.scalars import Node, NotData, text

if TYPE_CHECKING:
    from offload.serializers.tree import Reader, Writer

__all__ = ("READERS", "write")

_NEW, _CALL = "new", "call"
_ALIASES = (GenericAlias, type(typing.List[int]))  # noqa: UP006 (the other type of them)
_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(bool, int, float, complex, str, bytes, bytearray, NoneType, object),
        *(list, tuple, dict, set, frozenset, date, datetime, time, timedelta, Decimal, UUID),
    )
}
"""What an instance or an alias of a shipped class may hold, besides other shipped classes."""


def write(value: Any, writer: Writer) -> Node | None:
    """Return the node of a shipped class or function, or of what is made of one; else None."""
    given = writer.given
    kind = type(value)
    if isinstance(value, (type, FunctionType)):
        place = given.place(value)
        if place is None and given.inside and _is_simple(value):
            return {"type": value.__name__}
        return None if place is None else {"code": place}
    if kind is functools.partial:
        return _write_partial(value, writer)
    if kind is MethodType:
        return _write_bound(value, writer)
    if kind in _ALIASES:
        return _write_alias(value, writer)
    place = given.place(kind)
    if place is None:
        return None
    return given.again(value) or {"object": _taken_apart(value, place, writer)}


def _taken_apart(value: Any, place: int, writer: Writer) -> Node:
    cls = type(value)
    try:
        own = copyreg.dispatch_table.get(cls)
        reduced = own(value) if own is not None else value.__reduce_ex__(4)
    except Exception as exc:
        raise NotData(f"{cls.__qualname__} cannot be taken apart: {exc}") from exc
    if isinstance(reduced, str):
        raise NotData(f"it is {reduced} of its module")
    make, args, state, items, pairs, set_state = (*reduced, None, None, None, None)[:6]
    keywords: dict[str, Any] = {}
    body: list[Node] = [_NEW, place, 0]
    if make is copyreg.__newobj__ and args[0] is cls:  # type: ignore[attr-defined]
        args = args[1:]
    elif make is copyreg.__newobj_ex__ and args[0] is cls:  # type: ignore[attr-defined]
        _, args, keywords = args
    elif (maker := write(make, writer) if callable(make) else None) is not None:
        body = [_CALL, maker, 0]
    else:
        raise NotData(f"{cls.__qualname__} says that {make!r:.60} makes it")
    if set_state is not None:
        raise NotData(f"{cls.__qualname__} sets its state by a function")
    body += _parts(writer, arguments=tuple(args), keywords=keywords)
    writer.given.remember(value, body)
    pairs = [tuple(pair) for pair in pairs or ()]
    body += _parts(writer, state=state, items=list(items or ()), pairs=pairs)
    while body[3:] and body[-1] is None:
        body.pop()
    return body


def _parts(writer: Writer, **parts: Any) -> list[Node]:
    """Return the nodes of parts of an object; None for one in which nothing is.

    A state that is false but not None is one all the same: a ``__setstate__`` may want it.
    """
    wanted = [part if part or name == "state" else None for name, part in parts.items()]
    writer.given.inside += 1
    nodes = writer.items(wanted, [*parts])
    writer.given.inside -= 1
    return nodes


def _is_simple(value: Any) -> bool:
    return isinstance(value, type) and _TYPES.get(value.__name__) is value


def _write_partial(value: functools.partial[Any], writer: Writer) -> Node | None:
    function = write(value.func, writer)
    if function is None or vars(value):
        return None
    parts = writer.items([value.args, value.keywords], ["args", "keywords"])
    return {"partial": [function, *parts]}


def _write_bound(value: MethodType, writer: Writer) -> Node | None:
    name = getattr(value.__func__, "__name__", "")
    if getattr(value.__self__, name, None) != value:
        return None
    owner = write(value.__self__, writer)
    return None if owner is None else {"bound": [owner, name]}


def _write_alias(value: Any, writer: Writer) -> Node | None:
    place = writer.given.place(value.__origin__)
    if place is None:
        return None
    return {"alias": [{"code": place}, *(_write_type(each, writer) for each in value.__args__)]}


def _write_type(value: Any, writer: Writer) -> Node:
    if value is ...:
        return {"type": "..."}
    if _is_simple(value):
        return {"type": value.__name__}
    if type(value) is GenericAlias and _is_simple(value.__origin__):
        parts = (value.__origin__, *value.__args__)
        return {"alias": [_write_type(each, writer) for each in parts]}
    node = write(value, writer)
    if node is None:
        raise NotData(f"it is of {value!r:.60}, a {type_name(value)}")
    return node


def _read_shipped(reader: Reader, body: Node) -> Any:
    pairs, node = body
    reader.found.begin(pairs)
    return reader.value(node)


def _read_code(reader: Reader, body: Node) -> Any:
    return reader.found.load(body)


def _read_object(reader: Reader, body: Node) -> Any:
    how, maker, number, *nodes = body
    args, keywords = (*map(reader.value, nodes[:2]), None, None)[:2]
    args, keywords = args or (), keywords or {}
    if how == _NEW:
        cls = reader.found.load(maker)
        if not isinstance(cls, type):
            raise TypeError("an instance of what is no class")
        made: Any = cls.__new__(cls, *args, **keywords)
    elif how == _CALL:
        made = _maker(reader, maker)(*args, **keywords)
    else:
        raise ValueError(f"no way to make an object: {how!r:.20}")
    reader.found.remember(number, made)
    state, items, pairs = (*map(reader.value, nodes[2:]), None, None, None)[:3]
    if state is not None:
        _set_state(made, state)
    if items:
        made.extend(items)
    for key, value in pairs or ():
        made[key] = value
    return made


def _read_again(reader: Reader, body: Node) -> Any:
    return reader.found.again(body)


def _maker(reader: Reader, node: Node) -> Callable[..., Any]:
    """Return a shipped class or function, or a method of a shipped class."""
    [(tag, _)] = node.items()
    made: Callable[..., Any] = reader.value(node)
    if tag not in ("code", "bound") or not isinstance(made, (type, FunctionType, MethodType)):
        raise TypeError("an object made by what is not shipped")
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


def _read_partial(reader: Reader, body: Node) -> Any:
    function, args, keywords = map(reader.value, body)
    return functools.partial(function, *args, **keywords)


def _read_bound(reader: Reader, body: Node) -> Any:
    owner = reader.value(body[0])
    method = getattr(owner, text(body[1]))
    if not isinstance(method, MethodType) or method.__self__ is not owner:
        raise TypeError("not a method")
    return method


def _read_alias(reader: Reader, body: Node) -> Any:
    origin, *args = map(reader.value, body)
    if not isinstance(origin, type):
        raise TypeError("an alias of what is no class")
    made: Any = origin
    return made[tuple(args) if len(args) != 1 else args[0]]


READERS: dict[str, Callable[[Reader, Node], Any]] = {
    "shipped": _read_shipped,
    "code": _read_code,
    "object": _read_object,
    "again": _read_again,
    "partial": _read_partial,
    "bound": _read_bound,
    "alias": _read_alias,
    "type": lambda _, body: ... if body == "..." else _TYPES[text(body)],
}
