"""What a serialised value is, told without decoding it: nothing in it can run.

Texts come from whoever wrote the value: who shows them escapes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from offload.serializers.native import PREFIX
from offload.serializers.nodes import kind_of, outline
from offload.serializers.tabular import columns

__all__ = ("Preview", "Read", "holds_code", "kind", "preview")

Read = Callable[[int, int], bytes]
"""Returns up to so many bytes of the buffer of a number, from its beginning."""

_CODE = ("pickle", f"{PREFIX}pickle")
_TEXTS = (f"{PREFIX}json", f"{PREFIX}yaml")
_COLUMN_BYTES = 1 << 20
_LITERALS = {b"[": "list", b"{": "dict", b'"': "str", b"t": "bool", b"f": "bool", b"n": "None"}


@dataclass(frozen=True)
class Preview:
    """What can be told of a value.

    Attributes:
        kind: its type, as far as that is known: ``DataFrame``, ``ndarray``, ``pickle``.
        facts: further ones by name: ``dtype``, ``shape``, ``columns`` …
        text: how it begins; None where that is not shown.
        cut: whether there is more of it than *text*.
        why: why it is not shown; "" where it is.
    """

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    cut: bool = False
    why: str = ""


def holds_code(serializer: str) -> bool:
    """Return whether reading what *serializer* wrote may run code that its bytes choose.

    True also for serializers that are not known here.
    """
    if serializer.startswith(PREFIX):
        return serializer not in (*_TEXTS, f"{PREFIX}msgpack")
    return serializer not in ("raw", "json", "tree")


def kind(serializer: str, head: bytes | None, begin: bytes) -> str:
    """Return the type of a value as far as its head and first bytes tell it."""
    if serializer == "raw" and head:
        return head.split(b" ")[0][:20].decode("ascii", "replace")
    if serializer in ("json", f"{PREFIX}json"):
        return _LITERALS.get(begin[:1], "number" if begin else serializer)
    if serializer == "tree" and head and len(head) <= _LONGEST_HEAD:
        try:
            return kind_of(orjson.loads(head))
        except Exception:  # anybody may have written it, and anything
            return "?"
    return serializer.removeprefix(PREFIX)


def preview(serializer: str, head: bytes, sizes: list[int], read: Read, limit: int) -> Preview:
    """Return what can be told of a value.

    Args:
        sizes: bytes of each buffer.
        limit: characters of text.
    """
    if serializer in _CODE:
        why = "it is a pickle, and reading one runs what it asks for"
        return Preview("pickle", why=why)
    if holds_code(serializer):
        return Preview(
            serializer.removeprefix(PREFIX), why=f"serializer {serializer} is not read here"
        )
    begin = read(0, limit * 4) if sizes else b""
    shown = kind(serializer, head, begin)
    if serializer == "tree":
        return _tree(shown, head, read, limit)
    if shown in ("bytes", "bytearray", "memoryview", "msgpack"):
        facts = {"format": head.decode("ascii", "replace")} if shown == "memoryview" else {}
        return Preview(shown, facts, ascii(begin[:limit])[2:-1], cut=sum(sizes) > limit)
    text = begin.decode("utf-8", "replace")
    cut = len(text) > limit or sum(sizes) > len(begin)
    return Preview(shown, {}, text[:limit], cut=cut)


_LONGEST_HEAD = 1 << 20


def _tree(shown: str, head: bytes, read: Read, limit: int) -> Preview:
    if len(head) > _LONGEST_HEAD:
        return Preview(shown, why=f"its head has {len(head):,} bytes")
    try:
        node = orjson.loads(head)
        told, facts = outline(node, limit)
    except Exception as exc:  # as above
        return Preview(shown, why=f"its head cannot be read: {type(exc).__name__}")
    named = columns(node, lambda number: read(number, _COLUMN_BYTES))
    if named is not None:
        return Preview(shown, named)
    return Preview(shown, facts, told[:limit], cut=len(told) > limit)
