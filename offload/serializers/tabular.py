"""The columns of a frame or table, from the head of a tree; see `offload.serializers.nodes`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from offload.serializers.nodes import described_dtype
from offload.serializers.tree import Reader

__all__ = ("columns",)

_MOST = 200  # columns that are named
_READS, _BYTES = 20, 4 << 20  # of buffers, for their names: anybody may have written them
_NAMES = frozenset({"values", "range", "names"})
_DTYPES = {"objects": "object", "codes": "category", "strings": "str"}


def columns(node: Any, read: Callable[[int], bytes]) -> dict[str, Any] | None:
    """Return ``rows`` and ``columns``, pairs of name and dtype; None for what has none.

    *read* returns the beginning of a buffer. What is not known is None, or left out: their
    names are data, but may take the package to read them.
    """
    if not isinstance(node, dict) or len(node) != 1:
        return None
    [(tag, body)] = node.items()
    try:
        if tag == "pandas" and "frame" in body:
            return _pandas(body["frame"], read)
        if tag in ("polars", "pyarrow") and body.get("kind") in ("DataFrame", "Table"):
            return _arrow(body, read)
    except Exception:
        return {}  # it is not what it seems, or the package is missing: nothing is told
    return None


class _Lazy(Reader):
    """Reads data only (there is no code to load), and of the buffers only what is asked for."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        super().__init__(())
        self._read = read
        self._reads, self._bytes = _READS, _BYTES

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


def _pandas(frame: Any, read: Callable[[int], bytes]) -> dict[str, Any]:
    values, index, names, *_ = frame
    found: dict[str, Any] = {}
    if "block" in values:
        block = values["block"]["numpy"]
        found["rows"], number = block["shape"]
        dtypes: Iterable[str] = [described_dtype(block["dtype"])] * min(number, _MOST)
    else:
        number = len(values["columns"])
        dtypes = map(_dtype, values["columns"][:_MOST])
    if "range" in index:
        start, stop, step = index["range"]
        found["rows"] = len(range(start, stop, step))
    found["column_count"] = number
    try:
        named: Iterable[Any] = _pandas_names(names, read)
    except Exception:
        named = (None for _ in range(number))  # pandas or pyarrow is missing
    texts = [None if name is None else str(name) for name in islice(named, min(number, _MOST))]
    found["columns"] = list(zip(texts, dtypes, strict=False))
    return found


def _pandas_names(node: Any, read: Callable[[int], bytes]) -> Iterable[Any]:
    from offload.serializers.frames import read_index

    if not _NAMES.issuperset(node):  # a frequency, or levels: not for a glance
        raise ValueError("no plain names")
    names: Iterable[Any] = read_index(node, _Lazy(read))
    return names


def _dtype(values: Any) -> str:
    [(kind, body)] = values.items()
    if kind == "numpy":
        return described_dtype(body["numpy"]["dtype"])
    if kind == "times":
        zone = f" {body[1]}"[:60] if body[1] is not None else ""
        return described_dtype(body[0]["numpy"]["dtype"]) + zone
    if kind == "masked":
        return described_dtype(body[1]["numpy"]["dtype"]) + ", with NA"
    if kind == "periods":
        return str(body[1])[:60]
    return _DTYPES.get(kind, str(kind))


def _arrow(body: Any, read: Callable[[int], bytes]) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": body["rows"], "column_count": len(body["columns"])}
    try:
        from offload.serializers.arrow import read_schema

        lazy = _Lazy(read)
        schema = read_schema(body["schema"], lazy)
        names = lazy.items(body["names"][:_MOST]) if "names" in body else schema.names[:_MOST]
        types = [str(kind)[:60] for kind in schema.types[:_MOST]]
    except Exception:  # pyarrow is missing
        return found
    return {**found, "columns": list(zip(map(str, names), types, strict=False))}
