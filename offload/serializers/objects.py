"""Shipped classes, functions, and their instances in a tree: a name, a hash, and plain data.

Instances are reduced as by pickle's protocol 4 (``__reduce_ex__``,
https://docs.python.org/3/library/pickle.html#object.__reduce_ex__), but only if the code that
creates them is also shipped: ``__new__`` of their class, or a call of a class, a function, or a
class method::

    {"shipped": [[["shop.Filter", "3f…"], …], tree]}    the outermost node: all code in it
    {"code": 0}
    {"object": ["new", 0, 0, arguments, keywords, state, items, pairs]}
    {"object": ["call", {"code": 0}, 1, arguments, …]}  the third: a number, if it occurs again
    {"again": 1}
    {"alias": [{"code": 0}, {"type": "int"}]}           Filter[int]
    {"partial": [function, arguments, keywords]}
    {"bound": [instance or class, "run"]}
    {"import": 0}                                       numpy.sum, by a version that imports it
    {"itemgetter": ["key"]}

Readers accept these nodes only if the settings allow code (`Code.may_load`). The writer of a tree
chooses arguments and method names, so only shipped code is called: see
`offload.serializers.methods`. docs/explanation/security.md lists what each node may touch.
"""

from __future__ import annotations

import copyreg
import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import EnumMeta
from types import FunctionType, GenericAlias, MethodType, NoneType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from offload.errors import DeserializationError
from offload.serializers import methods
from offload.serializers.base import Code, NotData
from offload.serializers.scalars import Node, text
from offload.text import reason_of, type_name

if TYPE_CHECKING:
    from offload.serializers.tree import Reader, Writer

_NEW, _CALL = "new", "call"
_EXCEPTIONS_OF_MORE = (
    *(OSError, ImportError, AttributeError, NameError, SyntaxError, UnicodeError),
    *(StopIteration, SystemExit),
)
"""Exceptions whose ``__init__`` stores more than their arguments."""
_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(bool, int, float, complex, str, bytes, bytearray, NoneType, object),
        *(list, tuple, dict, set, frozenset, date, datetime, time, timedelta, Decimal, UUID),
    )
}
"""Types that an instance or alias of a shipped class may refer to, besides shipped classes."""


class EncodeState:
    """Shipped code and instances in a tree that is being written.

    Args:
        code: the shipped classes; None if there are none.
        imports: whether a library's function may be replaced by shipped code that imports it.

    Attributes:
        pairs: names and hashes of shipped code, in order of occurrence.
        depth: nesting depth of the instance being written.
    """

    def __init__(self, code: Code | None, *, imports: bool = True) -> None:
        self._code = code
        self._imports = imports
        self.pairs: list[tuple[str, str]] = []
        self.depth = 0
        self._indexes: dict[int, tuple[int | None, Any]] = {}  # by id; keeps the objects alive
        self._bodies: dict[int, tuple[list[Node], Any]] = {}
        self._numbers = 0

    def is_version(self, cls: type) -> bool:
        return self._code is not None and self._code.is_version(cls)

    def index(self, obj: Any) -> int | None:
        """Ship a class or function and return its index in `pairs`; None if it isn't shipped."""
        if self._code is None:
            return None
        index, _ = self._indexes.get(id(obj), (-1, None))
        if index == -1:
            pair = self._code.shipped(obj)
            index = None if pair is None else len(self.pairs)
            if pair is not None:
                self.pairs.append(pair)
            self._indexes[id(obj)] = index, obj
        return index

    def index_of_import(self, obj: Any) -> int | None:
        """Return the index of code that imports a library's function; None if there is none."""
        getter = self._code.importer(obj) if self._code is not None and self._imports else None
        return None if getter is None else self.index(getter)

    def repeated(self, value: Any) -> Node | None:
        """Return a node that refers to an instance written before; None if it is new."""
        body, _ = self._bodies.get(id(value), (None, None))
        if body is None:
            return None
        if not body[2]:
            self._numbers += 1
            body[2] = self._numbers
        return {"again": body[2]}

    def remember(self, value: Any, body: list[Node]) -> None:
        """Remember an instance and the body of its node, which may be incomplete."""
        self._bodies[id(value)] = body, value

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Within this context, write instances without references to those outside, or vice versa.

        For values that are reordered, or that another package reads.
        """
        before, self._bodies = self._bodies, {}
        try:
            yield
        finally:
            self._bodies = before


class DecodeState:
    """Shipped code and instances in a tree that is being read."""

    def __init__(self, code: Code | None) -> None:
        self._code = code
        self._pairs: list[Node] = []
        self._loaded: dict[int, Any] = {}
        self._made: dict[int, Any] = {}

    def is_version(self, cls: type) -> bool:
        return self._code is not None and self._code.is_version(cls)

    def check_allowed(self, tag: str, body: Node) -> None:
        """Raise CodeError for a node that needs code, unless the settings allow code."""
        if self._code is not None and self._code.may_load:
            return
        name, code_hash = _first(tag, body)
        if self._code is not None:
            self._code.check_name(name, code_hash)
        raise DeserializationError(
            f"the value needs {name}, which can't be loaded without a class registry"
        )

    def set_pairs(self, pairs: Node) -> None:
        """Set the shipped code that the tree names. Raises TypeError if it isn't a list."""
        if self._pairs or type(pairs) is not list:
            raise TypeError("not a list of the shipped code")
        self._pairs = pairs

    def load(self, index: Node) -> Any:
        """Return the class or function at an index. Raises CodeError."""
        if index not in self._loaded:
            if type(index) is not int or not 0 <= index < len(self._pairs):
                raise ValueError("no such class or function")
            name, code_hash = self._pairs[index]
            assert self._code is not None  # noqa: S101 (for the type checker: `may_load`)
            self._loaded[index] = self._code.load(text(name), text(code_hash))
        return self._loaded[index]

    def imported(self, index: Node) -> Any:
        """Return the library's function that the code at an index imports."""
        getter = self.load(index)
        assert self._code is not None  # noqa: S101 (for the type checker: `load`)
        return self._code.imported(getter)

    def remember(self, number: Node, made: Any) -> None:
        if number:
            self._made[number] = made

    def repeated(self, number: Node) -> Any:
        return self._made[number]


def _first(tag: str, body: Node) -> tuple[str, str]:
    """Return the first version that a tree names, for an error message."""
    try:
        name, code_hash = body[0][0] if tag == "shipped" else ("shipped code", "")
        return text(name)[:100], text(code_hash)
    except (TypeError, ValueError, LookupError):
        return "shipped code", ""


def write(value: Any, writer: Writer) -> Node | None:
    """Return the node of shipped code or of an instance; None for other values. Raises NotData."""
    state = writer.state
    kind = type(value)
    if isinstance(value, (type, FunctionType)):
        index = state.index(value)
        if index is None and state.depth and _is_simple(value):
            return {"type": value.__name__}
        return _write_import(value, writer) if index is None else {"code": index}
    if callable(value) and (node := _write_import(value, writer)) is not None:
        return node
    if kind is operator.itemgetter:
        return {"itemgetter": writer.items(value.__reduce__()[1])}
    if kind is functools.partial:
        return _write_partial(value, writer)
    if kind is MethodType:
        return _write_bound(value, writer)
    if kind in methods.ALIASES:
        return _write_alias(value, writer)
    index = state.index(kind)
    if index is None:
        return None
    return state.repeated(value) or {"object": _reduce(value, index, writer)}


def _write_import(value: Any, writer: Writer) -> Node | None:
    index = writer.state.index_of_import(value)
    return None if index is None else {"import": index}


def _reduce(value: Any, index: int, writer: Writer) -> Node:
    cls = type(value)
    is_version = writer.state.is_version
    try:
        own = copyreg.dispatch_table.get(cls)
        reduced = own(value) if own is not None else value.__reduce_ex__(4)
    except Exception as exc:
        raise NotData(f"{cls.__qualname__} cannot be reduced: {reason_of(exc)}") from None
    if isinstance(reduced, str):
        raise NotData(f"it is {reduced} of its module")
    make, args, state, items, pairs, set_state = (*reduced, None, None, None, None)[:6]
    keywords: dict[str, Any] = {}
    body: list[Node] = [_NEW, index, 0]
    if make is copyreg.__newobj__ and args[0] is cls:  # type: ignore[attr-defined]
        args = args[1:]
    elif make is copyreg.__newobj_ex__ and args[0] is cls:  # type: ignore[attr-defined]
        _, args, keywords = args
    elif make is cls and _is_plain_exception(cls):
        pass  # `BaseException.__new__` keeps the arguments; ``__init__`` may take different ones
    elif (maker := write(make, writer) if callable(make) else None) is not None:
        body = [_CALL, maker, 0]
    else:
        raise NotData(f"{cls.__qualname__} is created by a {type_name(make)} that isn't shipped")
    if set_state is not None:
        raise NotData(f"{cls.__qualname__} sets its state with a function")
    if state is not None:
        state = methods.attributes(value, state, is_version)
    _check_makers(cls if body[0] == _NEW else make, is_version, new=body[0] == _NEW)
    body += _parts(writer, arguments=tuple(args), keywords=keywords)
    writer.state.remember(value, body)
    pairs = [tuple(pair) for pair in pairs or ()]
    body += _parts(writer, state=state, items=list(items or ()), pairs=pairs)
    while body[3:] and body[-1] is None:
        body.pop()
    return body


def _check_makers(make: Any, is_version: methods.IsVersion, *, new: bool) -> None:
    if not isinstance(make, type):
        return
    try:
        methods.check_class(make, is_version, calls=not new)
    except TypeError as exc:
        raise NotData(str(exc)) from None


def _is_plain_exception(cls: type) -> bool:
    """Return whether an exception has nothing but arguments and attributes."""
    return (
        issubclass(cls, BaseException)
        and cls.__reduce__ is BaseException.__reduce__
        and cls.__reduce_ex__ is object.__reduce_ex__
        and not issubclass(cls, _EXCEPTIONS_OF_MORE)
    )


def _parts(writer: Writer, **parts: Any) -> list[Node]:
    """Return the nodes of an object's parts; None for an empty part.

    A state that is falsy but not None is kept, because ``__setstate__`` may need it.
    """
    wanted = [part if part or name == "state" else None for name, part in parts.items()]
    writer.state.depth += 1
    nodes = writer.items(wanted, [*parts])
    writer.state.depth -= 1
    return nodes


def _is_simple(value: Any) -> bool:
    return isinstance(value, type) and _TYPES.get(value.__name__) is value


def _write_partial(value: functools.partial[Any], writer: Writer) -> Node | None:
    func = value.func
    function = {"type": func.__name__} if _is_simple(func) else write(func, writer)
    if function is None or vars(value):
        return None
    parts = writer.items([value.args, value.keywords], ["args", "keywords"])
    return {"partial": [function, *parts]}


def _write_bound(value: MethodType, writer: Writer) -> Node | None:
    name = getattr(value.__func__, "__name__", "")
    owner = write(value.__self__, writer)
    if owner is None:
        return None
    try:
        same = methods.bound(value.__self__, name, writer.state.is_version) == value
    except TypeError:
        same = False
    return {"bound": [owner, name]} if same else None


def _write_alias(value: Any, writer: Writer) -> Node | None:
    index = writer.state.index(value.__origin__)
    if index is None:
        return None
    return {"alias": [{"code": index}, *(_write_type(each, writer) for each in value.__args__)]}


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
        raise NotData(f"it is of a {type_name(value)}")
    return node


def _read_shipped(reader: Reader, body: Node) -> Any:
    pairs, node = body
    reader.state.set_pairs(pairs)
    return reader.value(node)


def _read_code(reader: Reader, body: Node) -> Any:
    return reader.state.load(body)


def _read_object(reader: Reader, body: Node) -> Any:
    how, made_by, number, *nodes = body
    args, keywords = (*map(reader.value, nodes[:2]), None, None)[:2]
    args, keywords = _listed(args), keywords or {}
    if how == _NEW:
        cls = reader.state.load(made_by)
        if not isinstance(cls, type):
            raise TypeError("an instance of something that isn't a class")
        methods.check_class(cls, reader.state.is_version, calls=False)
        made: Any = cls.__new__(cls, *args, **keywords)
    elif how == _CALL:
        called = maker(reader, made_by, calls=True)
        # Calling an enum with more arguments would create a new enum.
        if isinstance(called, EnumMeta) and (len(args) != 1 or keywords):
            raise TypeError("an enum member is created from its value alone")
        made = called(*args, **keywords)
    else:
        raise ValueError(f"unknown way to create an object: {how!r:.20}")
    reader.state.remember(number, made)
    state, items, pairs = (*map(reader.value, nodes[2:]), None, None, None)[:3]
    if state is not None or items or pairs:
        methods.check_made(made, reader.state.is_version)
    if state is not None:
        methods.set_state(made, state, reader.state.is_version)
    if items:
        methods.checked(made, "extend", reader.state.is_version)(_listed(items))
    if pairs:
        set_item = methods.checked(made, "__setitem__", reader.state.is_version)
        for key, value in _listed(pairs):
            set_item(key, value)
    return made


def _listed(value: Any) -> Any:
    """Return *value*, a list or tuple: others, such as ranges, may have any number of items."""
    if value is not None and type(value) not in (list, tuple):
        raise TypeError("not a list")
    return value or ()


def _read_again(reader: Reader, body: Node) -> Any:
    return reader.state.repeated(body)


def maker(reader: Reader, node: Node, *, calls: bool, types: bool = False) -> Callable[..., Any]:
    """Return a shipped class or function, or a method that a shipped class defines.

    Args:
        calls: whether it is called, rather than only its ``__new__``.
        types: whether to allow Python's own value types.
    """
    [(tag, _)] = node.items()
    if tag not in (("code", "bound", "type", "import") if types else ("code", "bound")):
        raise TypeError("only shipped code can be called")
    made: Callable[..., Any] = reader.value(node)
    if isinstance(made, type) and tag != "type":
        methods.check_class(made, reader.state.is_version, calls=calls)
    return made


def _read_partial(reader: Reader, body: Node) -> Any:
    function, args, keywords = body
    function = maker(reader, function, calls=True, types=True)
    args, keywords = reader.value(args), reader.value(keywords)
    if type(args) is not tuple or not isinstance(keywords, Mapping):
        raise TypeError("not the arguments of a function")
    return functools.partial(function, *args, **keywords)


def _read_bound(reader: Reader, body: Node) -> Any:
    owner, name = body
    return methods.bound(reader.value(owner), text(name), reader.state.is_version)


def _read_import(reader: Reader, body: Node) -> Any:
    return reader.state.imported(body)


def _read_alias(reader: Reader, body: Node) -> Any:
    origin, *args = map(reader.value, body)
    return methods.alias(origin, args, reader.state.is_version)


READERS: dict[str, Callable[[Reader, Node], Any]] = {
    "shipped": _read_shipped,
    "code": _read_code,
    "object": _read_object,
    "again": _read_again,
    "partial": _read_partial,
    "bound": _read_bound,
    "alias": _read_alias,
    "import": _read_import,
    "itemgetter": lambda reader, body: operator.itemgetter(*reader.items(body)),
    "type": lambda _, body: ... if body == "..." else _TYPES[text(body)],
}
"""Readers of nodes that need code, by tag; used only if the settings allow code."""
