"""Previews of serialized values, made without decoding them, so that nothing in them can run.

Of a tree (see `offload.serializers.tree`), the head is read as JSON. It may be false, and its text
is untrusted: escape it before showing it.
"""

from __future__ import annotations

import base64
import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson

from offload.serializers.kombu import PREFIX
from offload.serializers.scalars import READERS as SCALARS
from offload.serializers.tree import Reader

ReadBuffer = Callable[[int, int], bytes]
"""Takes a buffer's index and a limit; returns up to that many bytes from the buffer's start."""

_CODE = ("pickle", f"{PREFIX}pickle")
_PICKLE = 4 << 10  # bytes of a pickle to examine
_INSTRUCTIONS = 100
_MAX_NAME = 40  # characters
_HELPERS = ("builtins", "copyreg", "copy_reg", "functools", "operator", "_codecs")
"""Modules of functions with which pickles create values of any type."""
_BEFORE = ("PROTO", "FRAME")
_EMPTY = {"EMPTY_DICT": "dict", "EMPTY_LIST": "list", "EMPTY_SET": "set"}
_TEXTS = (f"{PREFIX}json", f"{PREFIX}yaml")
_LITERALS = {b"[": "list", b"{": "dict", b'"': "str", b"t": "bool", b"f": "bool", b"n": "None"}
_MAX_HEAD = 1 << 20
_MAX_NAMES_BUFFER = 1 << 20  # bytes read from each buffer of column names


@dataclass(frozen=True)
class Preview:
    """Type, facts, and first characters of a value.

    Attributes:
        kind: its type if known, such as ``DataFrame`` or ``ndarray``; else its format, such as
            ``pickle``.
        facts: ``dtype``, ``shape``, ``columns``, and other facts by name.
        text: its first characters; None if not shown.
        cut: whether *text* is incomplete.
        why: why *text* isn't shown; "" if it is.
    """

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    cut: bool = False
    why: str = ""


def holds_code(serializer: str) -> bool:
    """Return whether decoding with *serializer* may run code from the data; True if unknown."""
    if serializer.startswith(PREFIX):
        return serializer not in (*_TEXTS, f"{PREFIX}msgpack")
    return serializer not in ("raw", "json", "tree")


def type_of(serializer: str, head: bytes | None, prefix: bytes) -> str:
    """Return the type of a value as far as its head and its first bytes reveal it.

    Args:
        head: the serializer's head; None if it isn't known.
        prefix: first bytes of the content.
    """
    if serializer == "raw" and head:
        return head.split(b" ")[0][:20].decode("ascii", "replace")
    if serializer in ("json", f"{PREFIX}json"):
        return _LITERALS.get(prefix[:1], "number" if prefix else serializer)
    if serializer == "tree" and head and len(head) <= _MAX_HEAD:
        try:
            return _type_of_node(orjson.loads(head))
        except Exception:  # the head is untrusted and may contain anything
            return "?"
    if serializer in _CODE:
        return _type_of_pickle(head or prefix)
    return serializer.removeprefix(PREFIX)


def _type_of_pickle(start: bytes) -> str:
    """Return the type of a pickled value; ``pickle`` if its start doesn't reveal it.

    Only reads the pickle's instructions; doesn't execute any.
    """
    texts: list[str] = []
    try:
        for code, argument, _ in islice(pickletools.genops(start[:_PICKLE]), _INSTRUCTIONS):
            if code.name in _EMPTY and not texts:
                return _EMPTY[code.name]
            if isinstance(argument, str):
                texts.append(argument)
            if code.name == "GLOBAL":
                texts = texts[-1].split(" ")
            if code.name in ("GLOBAL", "STACK_GLOBAL"):
                return _type_of_global(*texts[-2:])
            if code.name not in _BEFORE and not texts:
                break
    except Exception:  # the pickle may be cut, and is untrusted
        return "pickle"
    return "pickle"


def _type_of_global(module: str, name: str) -> str:
    """Return the type that a pickle creates with this class or function; ``pickle`` if unknown."""
    if module.partition(".")[0] == "numpy" and name in ("_reconstruct", "_frombuffer"):
        return "ndarray"
    is_type = name.isidentifier() and not name.startswith("_") and module not in _HELPERS
    return name[:_MAX_NAME] if is_type else "pickle"


def preview(
    serializer: str, head: bytes, sizes: list[int], read: ReadBuffer, limit: int
) -> Preview:
    """Return a preview of a value.

    Args:
        serializer: the name of the serializer that wrote the value.
        head: the serializer's head.
        sizes: bytes of each buffer.
        read: reads the start of a buffer.
        limit: maximum characters of text.
    """
    if serializer in _CODE:
        why = "it is a pickle, and reading it could run code"
        return Preview(type_of(serializer, head, b""), why=why)
    if holds_code(serializer):
        return Preview(
            serializer.removeprefix(PREFIX), why=f"serializer {serializer} has no preview"
        )
    prefix = read(0, limit * 4) if sizes else b""
    kind = type_of(serializer, head, prefix)
    if serializer == "tree":
        return _preview_tree(kind, head, read, limit)
    if kind in ("bytes", "bytearray", "memoryview", "msgpack"):
        facts = {"format": head.decode("ascii", "replace")} if kind == "memoryview" else {}
        return Preview(kind, facts, ascii(prefix[:limit])[2:-1], cut=sum(sizes) > limit)
    text = prefix.decode("utf-8", "replace")
    cut = len(text) > limit or sum(sizes) > len(prefix)
    return Preview(kind, {}, text[:limit], cut=cut)


def _preview_tree(kind: str, head: bytes, read: ReadBuffer, limit: int) -> Preview:
    if len(head) > _MAX_HEAD:
        return Preview(kind, why=f"its head has {len(head):,} bytes")
    try:
        node = orjson.loads(head)
        text, facts = _outline(node, limit)
    except Exception as exc:  # the head is untrusted and may contain anything
        return Preview(kind, why=f"its head can't be read: {type(exc).__name__}")
    table = _columns(node, lambda number: read(number, _MAX_NAMES_BUFFER))
    if table is not None:
        return Preview(kind, table)
    return Preview(kind, facts, text[:limit], cut=len(text) > limit)


# -- nodes of a tree

_MAX_ITEMS = 20  # items of a container to show
_MAX_DEPTH = 6
_CONTAINERS = {"tuple": "()", "set": "{}", "frozenset": "{}"}
_ARRAYS = {"array": "ndarray", "scalar": "numpy scalar", "masked": "MaskedArray"}
_PANDAS = {"frame": "DataFrame", "series": "Series", "index": "Index", "values": "ExtensionArray"}


def _type_of_node(node: Any) -> str:
    """Return the type of a node's value; ``?`` if *node* isn't a node."""
    if isinstance(node, dict) and len(node) == 1:
        [(tag, body)] = node.items()
        return _type_of_tag(tag, body)[:100]
    return "?" if isinstance(node, dict) else _named(node)


def _type_of_tag(tag: str, body: Any) -> str:
    if tag == "json":
        return _named(body)
    if tag == "shipped" and _is_list(body, 2):
        return _type_of_shipped(*body)
    if tag == "raw" and _is_list(body, 2):
        return str(body[0]).split(" ")[0]
    if tag == "numpy" and isinstance(body, dict):
        return _ARRAYS.get(str(body.get("kind")), str(body.get("kind")))
    if tag == "pandas" and isinstance(body, dict) and len(body) == 1:
        [name] = body
        return _PANDAS.get(name, str(name))
    if tag == "registered" and _is_list(body, 3):
        return str(body[0])
    if tag in ("polars", "pyarrow") and isinstance(body, dict):
        return f"{tag}.{body.get('kind')}"
    return tag


def _type_of_shipped(pairs: Any, node: Any) -> str:
    """Return the class if *node* is an instance of a shipped class, else the node's type."""
    if isinstance(node, dict) and isinstance(body := node.get("object"), list) and len(body) > 1:
        place = body[1] if body[0] == "new" else None
        if type(place) is int and isinstance(pairs, list) and 0 <= place < len(pairs):
            name, *_ = pairs[place]
            return str(name)
    return _type_of_node(node)


def _outline(node: Any, limit: int) -> tuple[str, dict[str, Any]]:
    """Return a value's text, cut after about *limit* characters, and facts if it is an array."""
    if isinstance(node, dict) and _is_list(node.get("shipped"), 2):
        pairs, node = node["shipped"]
        names = [str(pair[0])[:100] for pair in pairs[:_MAX_ITEMS]]
        return _Outline(limit).text(node, 0), {"needs": names}
    facts: dict[str, Any] = {}
    if isinstance(node, dict) and isinstance(body := node.get("numpy"), dict):
        inner = body.get("array", body)
        if "dtype" in inner:
            facts["dtype"] = _dtype_text(inner["dtype"])
        if "shape" in inner:
            facts["shape"] = inner["shape"]
    return _Outline(limit).text(node, 0), facts


def _dtype_text(node: Any) -> str:
    """Return a node's dtype in numpy's notation, or the names of its fields."""
    if isinstance(node, str):
        return node[:100]
    if isinstance(node, dict) and "base" in node:
        return f"{_dtype_text(node['base'])} {node.get('shape')}"[:100]
    names = node.get("names") if isinstance(node, dict) else None
    fields = ", ".join(map(str, names[:_MAX_ITEMS])) if isinstance(names, list) else "?"
    return f"fields {fields}"[:200]


class _Outline:
    """Formats a node as Python's `repr` would, up to a limit of characters."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def text(self, node: Any, depth: int) -> str:
        if self._left <= 0 or depth > _MAX_DEPTH:
            return "…"
        if isinstance(node, list):
            return self._items("[]", node, depth)
        if isinstance(node, dict):
            if len(node) != 1:
                return "?"
            [(tag, body)] = node.items()
            return self._tagged(tag, body, depth)
        return self._spend(_literal(node))

    def _tagged(self, tag: str, body: Any, depth: int) -> str:
        if tag == "json":
            return self._plain(body, depth)
        if tag in _CONTAINERS and isinstance(body, list):
            return self._items(_CONTAINERS[tag], body, depth)
        if tag == "dict" and _is_list(body, 2):
            keys, values = body
            pairs = list(zip(keys, values, strict=False))
            texts = [
                f"{self.text(key, depth + 1)}: {self.text(value, depth + 1)}"
                for key, value in pairs[:_MAX_ITEMS]
            ]
            return "{" + ", ".join([*texts, *(["…"] if len(pairs) > _MAX_ITEMS else [])]) + "}"
        if tag == "numpy" and isinstance(body, dict):
            inner = body.get("array", body)
            dtype = _dtype_text(inner.get("dtype"))
            shown = f"<{_type_of_tag(tag, body)} {dtype} {inner.get('shape')}>"
            return self._spend(shown[:200])
        if tag == "registered" and _is_list(body, 3):
            name = self._spend(str(body[0])[:100])
            return f"<{name} {self.text(body[2], depth + 1)}>"
        if tag in SCALARS:
            return self._spend(f"{tag}({_literal(body)})")
        return self._spend(f"<{_type_of_node({tag: body})}>")

    def _plain(self, value: Any, depth: int) -> str:
        if self._left <= 0 or depth > _MAX_DEPTH:
            return "…"
        if isinstance(value, list):
            texts = [self._plain(item, depth + 1) for item in value[:_MAX_ITEMS]]
            return "[" + ", ".join([*texts, *(["…"] if len(value) > _MAX_ITEMS else [])]) + "]"
        if isinstance(value, dict):
            texts = [
                f"{self._spend(_literal(key))}: {self._plain(item, depth + 1)}"
                for key, item in list(value.items())[:_MAX_ITEMS]
            ]
            return "{" + ", ".join([*texts, *(["…"] if len(value) > _MAX_ITEMS else [])]) + "}"
        return self._spend(_literal(value))

    def _items(self, brackets: str, nodes: list[Any], depth: int) -> str:
        texts = [self.text(node, depth + 1) for node in nodes[:_MAX_ITEMS]]
        more = ["…"] if len(nodes) > _MAX_ITEMS else []
        return brackets[0] + ", ".join([*texts, *more]) + brackets[1]

    def _spend(self, text: str) -> str:
        self._left -= len(text)
        return text


def _literal(value: Any) -> str:
    text = repr(value[:200] if isinstance(value, (str, list)) else value)
    return text if len(text) <= 200 else text[:199] + "…"


def _named(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


# -- columns of frames and tables

_MAX_COLUMNS = 200
_MAX_READS, _MAX_BYTES = 20, 4 << 20  # limits for buffers with column names, which are untrusted
_PLAIN_NAMES = frozenset({"values", "range", "names"})
_DTYPES = {"objects": "object", "codes": "category", "strings": "str"}


def _columns(node: Any, read: Callable[[int], bytes]) -> dict[str, Any] | None:
    """Return ``rows`` and ``columns``, pairs of name and dtype; None for other values.

    *read* returns the start of a buffer. Names that can't be read are None or omitted: reading
    them may need pandas or pyarrow.
    """
    if not isinstance(node, dict) or len(node) != 1:
        return None
    [(tag, body)] = node.items()
    try:
        if tag == "pandas" and "frame" in body:
            return _pandas_columns(body["frame"], read)
        if tag in ("polars", "pyarrow") and body.get("kind") in ("DataFrame", "Table"):
            return _arrow_columns(body, read)
    except Exception:
        return {}  # the node is malformed, or the package is missing
    return None


class _LazyReader(Reader):
    """Tree reader that reads only the buffers requested, and refuses nodes that need code."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        super().__init__(())
        self._read = read
        self._reads, self._bytes = _MAX_READS, _MAX_BYTES

    def registered(self, body: Any) -> Any:  # noqa: ARG002
        raise ValueError("decoding a registered type would call the app's code")

    def buffer(self, reference: Any) -> memoryview:
        if type(reference) is str:
            return memoryview(bytearray(base64.b64decode(reference, validate=True)))
        self._reads -= 1
        if self._reads < 0:
            raise ValueError("too many buffers")
        content = bytearray(self._read(reference))
        self._bytes -= len(content)
        if self._bytes < 0:
            raise ValueError("too large")
        return memoryview(content)


def _pandas_columns(frame: Any, read: Callable[[int], bytes]) -> dict[str, Any]:
    values, index, names, *_ = frame
    found: dict[str, Any] = {}
    if "block" in values:
        block = values["block"]["numpy"]
        found["rows"], number = block["shape"]
        dtypes: Iterable[str] = [_dtype_text(block["dtype"])] * min(number, _MAX_COLUMNS)
    else:
        number = len(values["columns"])
        dtypes = map(_pandas_dtype, values["columns"][:_MAX_COLUMNS])
    if "range" in index:
        start, stop, step = index["range"]
        found["rows"] = len(range(start, stop, step))
    found["column_count"] = number
    try:
        named: Iterable[Any] = _pandas_names(names, read)
    except Exception:
        named = (None for _ in range(number))  # pandas or pyarrow is missing
    texts = [
        None if name is None else str(name) for name in islice(named, min(number, _MAX_COLUMNS))
    ]
    found["columns"] = list(zip(texts, dtypes, strict=False))
    return found


def _pandas_names(node: Any, read: Callable[[int], bytes]) -> Iterable[Any]:
    from offload.serializers.pandas import read_index

    if not _PLAIN_NAMES.issuperset(node):  # a frequency, or levels
        raise ValueError("no plain names")
    names: Iterable[Any] = read_index(node, _LazyReader(read))
    return names


def _pandas_dtype(values: Any) -> str:
    [(kind, body)] = values.items()
    if kind == "numpy":
        return _dtype_text(body["numpy"]["dtype"])
    if kind == "times":
        zone = f" {body[1]}"[:60] if body[1] is not None else ""
        return _dtype_text(body[0]["numpy"]["dtype"]) + zone
    if kind == "masked":
        return _dtype_text(body[1]["numpy"]["dtype"]) + ", with NA"
    if kind == "periods":
        return str(body[1])[:60]
    return _DTYPES.get(kind, str(kind))


def _arrow_columns(body: Any, read: Callable[[int], bytes]) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": body["rows"], "column_count": len(body["columns"])}
    try:
        from offload.serializers.arrow import read_schema

        lazy = _LazyReader(read)
        schema = read_schema(body["schema"], lazy)
        names = (
            lazy.items(body["names"][:_MAX_COLUMNS])
            if "names" in body
            else schema.names[:_MAX_COLUMNS]
        )
        types = [str(kind)[:60] for kind in schema.types[:_MAX_COLUMNS]]
    except Exception:  # pyarrow is missing
        return found
    return {**found, "columns": list(zip(map(str, names), types, strict=False))}
