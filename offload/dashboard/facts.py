"""Facts about a value or task, formatted as rows of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from offload.text import human_duration, human_size

__all__ = ("Facts", "Shown", "facts_of", "shown_of")

_LONGEST = 500  # characters of a text
_MOST = 50  # items of a list
_LABELS = {"ttl": "Expires in", "date_done": "Finished", "content_bytes": "Bytes"}

Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Shown:
    """A preview.

    Attributes:
        facts: about the value.
        text: its first characters, incomplete if *cut*; None if not shown.
        why: why it isn't shown.
    """

    facts: Facts
    text: str | None
    cut: bool
    why: str


def facts_of(described: Mapping[str, Any]) -> Facts:
    """Return facts with readable names, without unknown ones."""
    return [
        (_LABELS.get(name, name.replace("_", " ").capitalize()), _text(name, value))
        for name, value in described.items()
        if value is not None and value not in ([], {})
    ]


def shown_of(described: Mapping[str, Any]) -> Shown:
    """Convert a preview that `describe_preview` returned."""
    rest = {**described}
    text, cut, why = (rest.pop(name, None) for name in ("text", "cut", "not_shown"))
    return Shown(facts_of(rest), None if text is None else str(text), bool(cut), str(why or ""))


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return _number(name, value)
    if isinstance(value, Mapping):
        return _cut(f"{key}: {_text(str(key), item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        if name == "columns":  # pairs of name and dtype
            return _cut(
                " ".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item)
                for item in value
            )
        return _cut(_text(name, item) for item in value)
    return str(value)[:_LONGEST]


def _number(name: str, value: float) -> str:
    if name.endswith("bytes") or name == "buffers":
        size = human_size(int(value))
        return f"{size} ({value:,} bytes)" if value >= 1000 else size
    if name in {"ttl", "age"}:
        return human_duration(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cut(texts: Iterable[str]) -> str:
    rest = iter(texts)
    some = [text[:_LONGEST] for text in islice(rest, _MOST)]
    return ", ".join(some) + (", …" if next(rest, None) is not None else "")
