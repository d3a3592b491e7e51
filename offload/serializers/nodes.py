"""The head of a tree (see `offload.serializers.tree`) as people are shown it.

It is read as the JSON that it is: nothing is made of it, and what it says may be untrue.
"""

from __future__ import annotations

from typing import Any

from offload.serializers.scalars import READERS as SCALARS

__all__ = ("described_dtype", "kind_of", "outline")

_MOST = 20  # items of a container that are shown
_DEEP = 6
_CONTAINERS = {"tuple": "()", "set": "{}", "frozenset": "{}"}
_ARRAYS = {"array": "ndarray", "scalar": "numpy scalar", "masked": "MaskedArray"}
_PANDAS = {"frame": "DataFrame", "series": "Series", "index": "Index", "values": "ExtensionArray"}


def kind_of(node: Any) -> str:
    """Return the type of what a node stands for; ``?`` for what is none."""
    if isinstance(node, dict) and len(node) == 1:
        [(tag, body)] = node.items()
        return _kind_of_tag(tag, body)[:100]
    return "?" if isinstance(node, dict) else _named(node)


def _kind_of_tag(tag: str, body: Any) -> str:
    if tag == "json":
        return _named(body)
    if tag == "shipped" and _is_list(body, 2):
        return _shipped(*body)
    if tag == "raw" and _is_list(body, 2):
        return str(body[0]).split(" ")[0]
    if tag == "numpy" and isinstance(body, dict):
        return _ARRAYS.get(str(body.get("kind")), str(body.get("kind")))
    if tag == "pandas" and isinstance(body, dict) and len(body) == 1:
        [name] = body
        return _PANDAS.get(name, str(name))
    if tag in ("polars", "pyarrow") and isinstance(body, dict):
        return f"{tag}.{body.get('kind')}"
    return tag


def _shipped(pairs: Any, node: Any) -> str:
    """Return the class of an instance of a shipped one, or what the outermost node is."""
    if isinstance(node, dict) and isinstance(body := node.get("object"), list) and len(body) > 1:
        place = body[1] if body[0] == "new" else None
        if type(place) is int and isinstance(pairs, list) and 0 <= place < len(pairs):
            name, *_ = pairs[place]
            return str(name)
    return kind_of(node)


def outline(node: Any, limit: int) -> tuple[str, dict[str, Any]]:
    """Return how a value looks, cut after about *limit* characters, and facts about an array."""
    if isinstance(node, dict) and _is_list(node.get("shipped"), 2):
        pairs, node = node["shipped"]
        names = [str(pair[0])[:100] for pair in pairs[:_MOST]]
        return _Outline(limit).text(node, 0), {"needs": names}
    facts: dict[str, Any] = {}
    if isinstance(node, dict) and isinstance(body := node.get("numpy"), dict):
        inner = body.get("array", body)
        if "dtype" in inner:
            facts["dtype"] = described_dtype(inner["dtype"])
        if "shape" in inner:
            facts["shape"] = inner["shape"]
    return _Outline(limit).text(node, 0), facts


def described_dtype(node: Any) -> str:
    """Return the dtype of a node as numpy writes it, or the names of its fields."""
    if isinstance(node, str):
        return node[:100]
    if isinstance(node, dict) and "base" in node:
        return f"{described_dtype(node['base'])} {node.get('shape')}"[:100]
    names = node.get("names") if isinstance(node, dict) else None
    fields = ", ".join(map(str, names[:_MOST])) if isinstance(names, list) else "?"
    return f"fields {fields}"[:200]


class _Outline:
    """Writes a node as Python would; stops looking at what would not be shown."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def text(self, node: Any, depth: int) -> str:
        if self._left <= 0 or depth > _DEEP:
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
                for key, value in pairs[:_MOST]
            ]
            return "{" + ", ".join([*texts, *(["…"] if len(pairs) > _MOST else [])]) + "}"
        if tag == "numpy" and isinstance(body, dict):
            inner = body.get("array", body)
            dtype = described_dtype(inner.get("dtype"))
            shown = f"<{kind_of({tag: body})} {dtype} {inner.get('shape')}>"
            return self._spend(shown[:200])
        if tag in SCALARS:
            return self._spend(f"{tag}({_literal(body)})")
        return self._spend(f"<{kind_of({tag: body})}>")

    def _plain(self, value: Any, depth: int) -> str:
        if self._left <= 0 or depth > _DEEP:
            return "…"
        if isinstance(value, list):
            texts = [self._plain(item, depth + 1) for item in value[:_MOST]]
            return "[" + ", ".join([*texts, *(["…"] if len(value) > _MOST else [])]) + "]"
        if isinstance(value, dict):
            texts = [
                f"{self._spend(_literal(key))}: {self._plain(item, depth + 1)}"
                for key, item in list(value.items())[:_MOST]
            ]
            return "{" + ", ".join([*texts, *(["…"] if len(value) > _MOST else [])]) + "}"
        return self._spend(_literal(value))

    def _items(self, brackets: str, nodes: list[Any], depth: int) -> str:
        texts = [self.text(node, depth + 1) for node in nodes[:_MOST]]
        more = ["…"] if len(nodes) > _MOST else []
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
