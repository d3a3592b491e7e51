"""Values as people are shown them: bounded, and never failing."""

from __future__ import annotations

import dataclasses
import reprlib
from typing import Any

__all__ = ("short_repr", "type_name")

LENGTH = 200


class _Repr(reprlib.Repr):
    """reprlib's, which reads only the first few items, made deaf to errors."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = LENGTH
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
            return repr(x[:LENGTH])
        try:
            text = repr(x)
        except Exception as error:
            return f"<{type(x).__qualname__}, whose repr raises {type(error).__qualname__}>"
        return text if len(text) <= LENGTH else text[: LENGTH - 3] + "..."


def short_repr(value: Any) -> str:
    """Return at most the first 200 characters of the repr, reading only a value's beginning."""
    try:
        text = _Repr().repr(value)
    except Exception as error:
        text = f"<{type(value).__qualname__}, whose repr raises {type(error).__qualname__}>"
    text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates break logs
    return text if len(text) <= LENGTH else text[: LENGTH - 3] + "..."


def type_name(value: Any) -> str:
    """Return what a value's type is called, such as ``DataFrame``."""
    return type(value).__qualname__
