"""The tree serializer: containers, scalars, arrays, and frames as sent, without pickle.

It is for values that the message's own serializer doesn't support. The head is JSON that describes
the value's structure; large bytes are in the buffers. A reader is an interpreter, and the writer of
the head programs it. So nodes describe only data, unless the settings allow shipped code
(`offload.serializers.objects`). docs/explanation/security.md has the grammar.

A node is a JSON scalar or list, which stands for itself, or an object with one key, its tag, for
everything else::

    [1, {"tuple": ["a", {"float": "nan"}]}, {"numpy": {...}}, {"json": {"a": 1}}]

A module for each third-party package reads and writes the nodes of its types. It is imported on
first use.

If a container occurs several times in a value, each occurrence arrives as a copy. An instance of a
shipped class arrives as one, except as an item of a set or in a frame.
"""

from __future__ import annotations

import base64
import importlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

import orjson

from offload.errors import DeserializationError, OffloadError
from offload.serializers import objects, scalars
from offload.serializers.base import Code, NotData, Payload, advise, check_written, is_panic
from offload.serializers.plain import Raw, is_plain
from offload.serializers.scalars import Node, text
from offload.serializers.types import registry
from offload.serializers.types.registry import read_registered
from offload.text import reason_of, type_name

_MAX_DEPTH = 80
"""Maximum depth of containers. A dict takes three levels of JSON, and orjson writes 254."""

_FREE = 1 << 20
"""Maximum number of items without bytes, such as rows of nulls; larger values may have more."""

COLLIDING = 256
"""Maximum number of keys or items of a dict, set, or pandas index with the same hash: inserting
takes quadratic time."""

_INLINE = 256
"""Maximum bytes to put in the head instead of in a buffer of their own."""

_MODULES = {
    "numpy": ("offload.serializers.numpy", "numpy"),
    "pandas": ("offload.serializers.pandas", "pandas"),
    "polars": ("offload.serializers.arrow", "polars"),
    "pyarrow": ("offload.serializers.arrow", "arrow"),
}
"""Module and extra for the types of each package, by the package's name, which is also the tag."""

_FACTORIES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)
}
"""Allowed factories of a `defaultdict`, besides shipped code."""

_LISTS_AND_DICTS = frozenset({list, dict})
_RAW = Raw()


class Tree:
    """Serializer for Python's own containers and scalars (not subclasses), arrays, tables, frames,
    and registered types.

    Args:
        code: the shipped classes; None if there are none.
        imports: see `EncodeState`.
    """

    name = "tree"
    data_only = True

    def __init__(self, code: Code | None = None, *, imports: bool = True) -> None:
        self._code = code
        self._imports = imports

    def encode(self, value: Any) -> Payload | None:
        """Serialize *value*. Raises NotData if it contains a value of another type."""
        try:
            return self._written(value)
        except BaseException as error:
            if is_panic(error):
                raise NotData("a library panicked while writing it") from None
            raise

    def _written(self, value: Any) -> Payload:
        try:
            return self._encode(value, Writer(self._code, imports=self._imports))
        except TypeError:
            # orjson refused a part that it was to write as a whole, because of an int of more than
            # 64 bits or a lone surrogate.
            pass
        try:
            writer = Writer(self._code, spell_out=True, imports=self._imports)
            return self._encode(value, writer)
        except TypeError:
            raise NotData("it is nested too deeply") from None

    def _encode(self, value: Any, writer: Writer) -> Payload:
        node, pairs = writer.node(value), writer.state.pairs
        head = orjson.dumps({"shipped": [pairs, node]} if pairs else node)
        payload = Payload(self.name, head, writer.buffers, type_name(value), bool(pairs))
        if writer.emptiest > _justified(payload.size):
            raise NotData(f"it has {writer.emptiest:,} empty items, in {payload.size:,} bytes")
        return payload

    def decode(self, head: memoryview, buffers: Sequence[memoryview]) -> Any:
        """Return the value; its arrays and frames use the buffers' memory.

        Raises DeserializationError, CodeError.
        """
        try:
            return Reader(buffers, self._code, len(head)).value(orjson.loads(head))
        except OffloadError:
            raise
        except Exception as error:
            raise DeserializationError(
                f"tree cannot read the value: {type(error).__name__}: {error}"
            ) from error
        except BaseException as error:
            if is_panic(error):
                raise DeserializationError("a library panicked while reading the value") from None
            raise


class Writer:
    """Turns values into nodes, and collects the buffers that they refer to.

    Args:
        code: the shipped classes; None if there are none.
        spell_out: write item by item what orjson would otherwise write as a whole.
        imports: see `EncodeState`.

    Attributes:
        state: shipped code and instances in the nodes written so far.
        buffers: memory that the nodes written so far refer to.
        emptiest: the largest number of items without bytes in one of these nodes.
    """

    def __init__(
        self, code: Code | None = None, *, spell_out: bool = False, imports: bool = True
    ) -> None:
        self.code = code
        self.state = objects.EncodeState(code, imports=imports)
        self.buffers: list[memoryview] = []
        self.emptiest = self._spent = 0
        self.spell_out = spell_out
        self._depth = 0

    def node(self, value: Any) -> Node:
        """Return the node for *value*. Raises NotData."""
        kind = type(value)
        write_scalar = scalars.WRITERS.get(kind)
        if write_scalar is not None:
            return write_scalar(value)
        write = _WRITERS.get(kind)
        if write is not None:
            return write(self, value)
        registered = registry.find(kind)
        if registered is not None:
            return self._registered(value, registered)
        package = kind.__module__.partition(".")[0]
        if package in _MODULES and (self.code is None or not callable(value)):
            with self.state.isolated():
                return {package: self._foreign(value, package)}
        node = objects.write(value, self) if self.code is not None else None
        if node is not None:
            return node
        cls = value if isinstance(value, type) else kind
        advice = (self.code.advice(cls) if self.code is not None else "") or advise(value)
        raise NotData(
            f"no accepted serializer supports values of type {type_name(value)}", advice=advice
        )

    def _registered(self, value: Any, found: registry.RegisteredType) -> Node:
        try:
            data = found.encode(value)
        except NotData as error:
            error.final = not found.built_in
            raise
        except Exception as error:  # its message may contain the value
            raise NotData(
                f"encode() of the type {found.name!r} raised {reason_of(error)}",
                final=not found.built_in,
            ) from None
        self._enter()
        try:
            with self.state.isolated():
                node = self.node(data)
        except NotData as error:
            error.final = error.final or not found.built_in
            raise
        self._depth -= 1
        return {"registered": [found.name, found.version, node]}

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise NotData(f"it is nested more than {_MAX_DEPTH} levels deep, or contains itself")

    def _foreign(self, value: Any, package: str) -> Node:
        try:
            return importlib.import_module(_MODULES[package][0]).write(value, self)
        except NotData:
            raise
        except ImportError as error:  # strings of pandas need pyarrow
            reason = f"reading a {type_name(value)} needs the package {error.name}"
            extra = _MODULES[package][1]
            raise NotData(reason, advice=f'pip install "offload[{extra}]"') from None
        except Exception as error:  # its message may contain the value
            raise NotData(
                f"{package} can't write a {type_name(value)} ({reason_of(error)})"
            ) from None

    def buffer(self, view: memoryview) -> Node:
        """Return a node that refers to the bytes of *view*.

        The view must be contiguous and of format ``B``.
        """
        if view.nbytes <= _INLINE:
            return base64.b64encode(view).decode()
        self.buffers.append(view)
        return len(self.buffers) - 1

    def count(self, items: int) -> None:
        """Count items without bytes, which readers limit by the value's size."""
        self.emptiest = max(self.emptiest, items)

    def spend(self, items: int) -> None:
        """Count items without bytes for which readers allocate memory."""
        self._spent += items
        self.count(self._spent)

    def reader(self) -> Reader:
        """Return a reader for what was written, to check that it is readable."""
        return Reader([memoryview(bytearray(b)) for b in self.buffers], self.code)

    def items(self, values: Sequence[Any], names: Sequence[Any] | None = None) -> list[Node]:
        """Return the nodes for the items of a container.

        Args:
            values: the items.
            names: their names in errors; by default, their positions.
        """
        self._enter()
        nodes: list[Node] = []
        inner = [v for v in values if type(v) is list or type(v) is dict]
        # Check many rows at once: one by one takes ten times as long.
        plain = len(inner) > 1 and not self.spell_out and is_plain(inner, _LISTS_AND_DICTS)
        try:
            if plain:
                nodes.extend(
                    {"json": v} if type(v) is list or type(v) is dict else self.node(v)
                    for v in values
                )
            else:
                nodes.extend(map(self.node, values))
        except NotData as error:
            position = len(nodes)
            raise error.below(position if names is None else names[position]) from None
        self._depth -= 1
        return nodes


class Reader:
    """Turns nodes back into values. Nodes are untrusted.

    Args:
        head: size of the head in bytes; with the sizes of the buffers, it limits the memory that
            is allocated.
    """

    def __init__(
        self, buffers: Sequence[memoryview], code: Code | None = None, head: int = 0
    ) -> None:
        self.state = objects.DecodeState(code)
        self._buffers: list[memoryview | None] = list(buffers)
        self._spent = 0
        self._most = _justified(head + sum(buffer.nbytes for buffer in buffers))

    def value(self, node: Node) -> Any:
        """Return the value of *node*.

        Raises DeserializationError, CodeError, ValueError, TypeError, and others for a bad node.
        """
        if type(node) is list:
            return list(map(self.value, node))
        if type(node) is not dict:
            return node
        [(tag, body)] = node.items()
        read_scalar = scalars.READERS.get(tag)
        if read_scalar is not None:
            return read_scalar(body)
        read = _READERS.get(tag)
        if read is not None:
            return read(self, body)
        read = objects.READERS.get(tag)
        if read is not None:
            self.state.check_allowed(tag, body)
            return read(self, body)
        if tag not in _MODULES:
            raise DeserializationError(f"tree cannot read {tag[:40]!r}")
        return self._module(tag).read(body, self)

    def items(self, node: Node) -> list[Any]:
        """Return the values of a node. Raises TypeError if it isn't a list."""
        if type(node) is not list:
            raise TypeError("not a list")
        return list(map(self.value, node))

    def registered(self, body: Node) -> Any:
        """Return the value of a registered type; see `read_registered`."""
        return read_registered(body, self.value)

    def count(self, items: int) -> None:
        """Raise ValueError if the value's size doesn't justify this many items without bytes."""
        if items > self._most:
            raise ValueError(f"{items} empty items")

    def spend(self, items: int) -> None:
        """Like `count`, but for items that take memory: limits their total."""
        self._spent += items
        self.count(self._spent)

    def buffer(self, reference: Node) -> memoryview:
        """Return the bytes that a node refers to, writable. Raises ValueError if there are none.

        A buffer can be read only once: otherwise a small head could request endless copies of it.
        """
        if type(reference) is str:
            return memoryview(bytearray(base64.b64decode(reference, validate=True)))
        if type(reference) is not int or not 0 <= reference < len(self._buffers):
            raise ValueError("no such buffer")
        buffer, self._buffers[reference] = self._buffers[reference], None
        if buffer is None:
            raise ValueError("a buffer is used twice")
        return buffer

    def _module(self, tag: str) -> Any:
        name, extra = _MODULES[tag]
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise DeserializationError(
                f"reading a {tag} value needs the package {error.name}: "
                f'pip install "offload[{extra}]"'
            ) from error


def _justified(size: int) -> int:
    """Return how many items without bytes a value of *size* bytes may have: eight per byte."""
    return max(_FREE, 8 * size)


def _check_hashes(keys: Collection[Any]) -> None:
    """Raise ValueError if hashes collide too often for a coincidence."""
    if len(keys) > COLLIDING and max(Counter(map(hash, keys)).values()) > COLLIDING:
        raise ValueError(f"more than {COLLIDING} keys or items have the same hash")


def _write_str(writer: Writer, value: str) -> Node:
    if len(value) <= _INLINE:
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError:
            pass
        else:
            return value
    return _write_raw(writer, value)


def _write_raw(writer: Writer, value: Any) -> Node:
    payload = _RAW.encode(value)
    if payload is None:
        raise NotData(f"it is a {type_name(value)} of an unusual format")
    return {"raw": [payload.head.decode(), writer.buffer(payload.buffers[0])]}


def _write_list(writer: Writer, value: list[Any]) -> Node:
    if not writer.spell_out and is_plain(value, _LISTS_AND_DICTS):
        return {"json": value}
    return writer.items(value)


def _write_dict(writer: Writer, value: dict[Any, Any]) -> Node:
    if not writer.spell_out and is_plain(value, _LISTS_AND_DICTS):
        return {"json": value}
    return {"dict": _pairs(writer, value)}


def _pairs(writer: Writer, value: dict[Any, Any]) -> list[Node]:
    keys = list(value)
    check_written(_check_hashes, keys)
    return [writer.items(keys, keys), writer.items(list(value.values()), keys)]


def _write_defaultdict(writer: Writer, value: defaultdict[Any, Any]) -> Node:
    factory = value.default_factory
    name = getattr(factory, "__name__", "")
    node: Node = name if factory is not None and _FACTORIES.get(name) is factory else None
    if factory is not None and node is None:
        node = objects.write(factory, writer) if writer.code is not None else None
        if node is None or not node.keys() & {"code", "bound", "import"}:
            raise NotData(f"its default_factory is a {type_name(factory)}")
    return {"defaultdict": [node, *_pairs(writer, value)]}


def _write_set(writer: Writer, value: set[Any] | frozenset[Any]) -> Node:
    check_written(_check_hashes, value)
    # Sort items by their written form, because sets have no order.
    nodes: list[Node] = []
    for item in value:
        with writer.state.isolated():
            nodes += writer.items([item], [...])
    return {type(value).__name__: sorted(nodes, key=orjson.dumps)}


_WRITERS: dict[type, Callable[[Writer, Any], Node]] = {
    str: _write_str,
    bytes: _write_raw,
    bytearray: _write_raw,
    memoryview: _write_raw,
    list: _write_list,
    tuple: lambda writer, value: {"tuple": writer.items(value)},
    dict: _write_dict,
    set: _write_set,
    frozenset: _write_set,
    slice: lambda writer, value: {"slice": writer.items([value.start, value.stop, value.step])},
    deque: lambda writer, value: {"deque": [value.maxlen, writer.items(list(value))]},
    OrderedDict: lambda writer, value: {"OrderedDict": _pairs(writer, value)},
    Counter: lambda writer, value: {"Counter": _pairs(writer, value)},
    defaultdict: _write_defaultdict,
}


def _read_raw(reader: Reader, body: Node) -> Any:
    head, reference = body
    return _RAW.decode(memoryview(text(head).encode()), [reader.buffer(reference)])


def _read_deque(reader: Reader, body: Node) -> Any:
    longest, items = body
    if longest is not None and type(longest) is not int:
        raise TypeError("not the length of a deque")
    return deque(reader.items(items), longest)


def _read_defaultdict(reader: Reader, body: Node) -> Any:
    factory, *pairs = body
    made = None
    if type(factory) is str:
        made = _FACTORIES[factory]
    elif factory is not None:
        made = objects.maker(reader, factory, calls=True, types=True)
    return defaultdict(made, _read_dict(reader, pairs))


def _read_dict(reader: Reader, body: Node) -> dict[Any, Any]:
    keys, values = map(reader.items, body)
    _check_hashes(keys)
    return dict(zip(keys, values, strict=True))


def _read_items(reader: Reader, body: Node) -> list[Any]:
    """Return the items of a set."""
    items = reader.items(body)
    _check_hashes(items)
    return items


_READERS: dict[str, Callable[[Reader, Node], Any]] = {
    "json": lambda _, body: body,
    "raw": _read_raw,
    "registered": lambda reader, body: reader.registered(body),
    "tuple": lambda reader, body: tuple(reader.items(body)),
    "dict": _read_dict,
    "set": lambda reader, body: set(_read_items(reader, body)),
    "frozenset": lambda reader, body: frozenset(_read_items(reader, body)),
    "slice": lambda reader, body: slice(*reader.items(body)),
    "deque": _read_deque,
    "OrderedDict": lambda reader, body: OrderedDict(_read_dict(reader, body)),
    "Counter": lambda reader, body: Counter(_read_dict(reader, body)),
    "defaultdict": _read_defaultdict,
}
