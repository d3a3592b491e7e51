"""Text for people: sizes, types, and bounded representations of values."""

from __future__ import annotations

import dataclasses
import reprlib
from typing import Any

__all__ = ("human_size", "short_repr", "type_name")

_UNITS = ("B", "kB", "MB", "GB", "TB")
_MAX_REPR = 200


def human_size(size: float) -> str:
    """Return a number of bytes with its unit (powers of 1000), as in ``41.2 MB``."""
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def type_name(value: Any) -> str:
    """Return the name of a value's type, such as ``DataFrame``."""
    return type(value).__qualname__


def short_repr(value: Any) -> str:
    """Return at most 200 characters of the repr, reading only a value's beginning; never fails."""
    try:
        text = _Repr().repr(value)
    except Exception as error:
        text = f"<{type(value).__qualname__}, whose repr raises {type(error).__qualname__}>"
    text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates break logs
    return text if len(text) <= _MAX_REPR else text[: _MAX_REPR - 3] + "..."


class _Repr(reprlib.Repr):
    """Reads only the first few items, and survives objects whose repr raises."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _MAX_REPR
        self.maxlevel = 4

    def repr_instance(self, x: Any, level: int) -> str:
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            # Its own repr would spell out every field in full.
            fields = (f for f in dataclasses.fields(x) if f.repr)
            inner = ", ".join(
                f"{f.name}={self.repr1(getattr(x, f.name, None), level - 1)}" for f in fields
            )
            return f"{type(x).__qualname__}({inner})" if level > 0 else "..."
        if isinstance(x, (bytes, bytearray)):
            return repr(x[:_MAX_REPR])
        try:
            text = repr(x)
        except Exception as error:
            return f"<{type(x).__qualname__}, whose repr raises {type(error).__qualname__}>"
        return text if len(text) <= _MAX_REPR else text[: _MAX_REPR - 3] + "..."
