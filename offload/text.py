"""Format numbers and values for people, and parse sizes and durations."""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from fractions import Fraction
from html import escape
from typing import Any

UNKNOWN = "-"
"""Placeholder for an unknown figure."""

_MAX_REPR = 200  # characters
_FOREVER = 50 * 365 * 86400.0  # seconds; stores without an infinite expiry use a longer one
_SIZE_UNITS = ("B", "kB", "MB", "GB", "TB")
_DURATION_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))
_SAVED_UNITS = ((2, 86400, "days"), (2, 3600, "h"), (2, 60, "min"), (1, 1, "s"), (0, 0.001, "ms"))

_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,9})?)"
_SIZE = re.compile(rf"{_NUMBER} ?(?:([kmgt])(i?))?b?", re.ASCII | re.IGNORECASE)
_SIZE_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_DURATION = re.compile(
    " ?".join(rf"(?:{_NUMBER} ?{unit})?" for unit in ("w", "d", "h", "(?:min|m(?!s))", "s", "ms")),
    re.ASCII,
)
_DURATION_FACTORS = (604_800_000, 86_400_000, 3_600_000, 60_000, 1000, 1)  # milliseconds
_LONGEST = 100 * 365 * 86_400  # seconds; longer is a mistake, and overflows some servers' clocks


def human_size(size: float | None) -> str:
    """Format bytes in powers of 1000: ``41.2 MB``."""
    if size is None:
        return UNKNOWN
    for unit in _SIZE_UNITS:
        if size < 1000 or unit == _SIZE_UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def human_count(number: int, noun: str, plural: str = "") -> str:
    """Format a number of things: ``1 value``, ``2,000 values``, ``3 copies`` (*plural*)."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def human_number(number: int | None) -> str:
    """Format a whole number: ``1,234``."""
    return UNKNOWN if number is None else f"{number:,}"


def human_ratio(ratio: float | None) -> str:
    """Format a ratio: ``3.1x``; ``all`` if it is infinite."""
    if ratio is None:
        return UNKNOWN
    return "all" if math.isinf(ratio) else f"{ratio:,.1f}x"


def human_percent(part: float | None) -> str:
    """Format a fraction as a percentage: ``83%``."""
    return UNKNOWN if part is None else f"{part:.0%}"


def human_duration(seconds: float | None) -> str:
    """Format seconds by their largest unit: ``45 s``, ``2.0 h``."""
    if seconds is None:
        return UNKNOWN
    if seconds >= _FOREVER:
        return "forever"
    for size, unit in _DURATION_UNITS:
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def human_latency(seconds: float | None) -> str:
    """Format a short time: ``16 ms``; ``longer`` if it exceeds the last bound (infinite)."""
    if seconds is None:
        return UNKNOWN
    if math.isinf(seconds):
        return "longer"
    number, unit = (seconds * 1e3, "ms") if seconds < 1 else (seconds, "s")
    return f"{number:,.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"


def human_time_saved(seconds: float) -> str:
    """Format time that was saved, negative if it was spent instead: ``41.2 s``."""
    fitting = (each for each in _SAVED_UNITS if abs(seconds) >= each[0] * each[1])
    _, length, unit = next(fitting, _SAVED_UNITS[-1])
    return f"{seconds / length:,.1f} {unit}"


def human_time(seconds: float) -> str:
    """Format seconds since 1970 as ISO 8601 in UTC; ``?`` if out of range."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
    except (OverflowError, OSError, ValueError):
        return "?"


def parse_size(text: str) -> int | None:
    """Parse a size into bytes; return None if *text* isn't one.

    A size is a number and a unit in any case, with at most one space between: ``k``, ``M``, ``G``,
    and ``T`` are powers of 1000; ``Ki``, ``Mi``, ``Gi``, and ``Ti`` are powers of 1024; ``B`` may
    follow. Without a unit, it is a whole number of bytes. Fractions of a byte are dropped.
    """
    match = _SIZE.fullmatch(text)
    if match is None or ("." in match[1] and not match[2]):
        return None
    factor = (1024 if match[3] else 1000) ** _SIZE_POWERS[(match[2] or "").lower()]
    return int(Fraction(match[1]) * factor)


def parse_duration(text: str) -> float | None:
    """Parse a duration into seconds; return None if *text* isn't one.

    A duration is one or more numbers, each with a unit: ``w``, ``d``, ``h``, ``m`` or ``min``,
    ``s``, ``ms``, in this order and each at most once, as in ``7d``, ``1h30m``, or ``1.5 h``. At
    most one space may separate them. A number without a unit isn't a duration. The longest one is
    100 years.
    """
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groups()) or "  " in text or text != text.strip():
        return None
    parts = zip(match.groups("0"), _DURATION_FACTORS, strict=True)
    seconds = sum((Fraction(number) * factor for number, factor in parts), Fraction()) / 1000
    return float(seconds) if seconds <= _LONGEST else None


def printable(text: str) -> str:
    """Escape nonprintable characters as Python does."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def some(names: Sequence[str], most: int = 3) -> str:
    """Return the first *most* names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f", and {more:,} more" if more > 0 else "")


def short_digest(digest: str) -> str:
    """Return the prefix by which a digest is displayed; commands accept it."""
    return digest[:15]


def url_host(host: str) -> str:
    """Return *host* as URLs contain it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def type_name(value: Any) -> str:
    """Return the name of a value's type, such as ``DataFrame``."""
    return type(value).__qualname__


def short_repr(value: Any) -> str:
    """Return at most 200 characters of a value's repr, reading only its start; never raises."""
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


_TYPE_ONLY = re.compile(r"cannot pickle '[\w.]+' object")


def reason_of(error: BaseException) -> str:
    """Return an error's type, with its text only if that can't reveal a value."""
    found = _TYPE_ONLY.match(str(error)) if isinstance(error, TypeError) else None
    return f"{type(error).__name__}: {found[0]}" if found else type(error).__name__


ROWS = 50
"""Rows shown at most."""
_LENGTH = 300  # characters shown of a text
_LEFT = ' style="text-align:left;vertical-align:top"'


def facts(title: str, values: Mapping[str, object]) -> str:
    """Return a table of names and values, without those that are None or empty."""
    rows = "".join(
        f"<tr><th{_LEFT}>{_text(name)}</th><td{_LEFT}>{_text(value)}</td></tr>"
        for name, value in values.items()
        if value not in (None, "")
    )
    return _table(title, rows)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], total: int) -> str:
    """Return a table of the first `ROWS` of *total* rows."""
    cells = "".join(f"<th{_LEFT}>{_text(column)}</th>" for column in columns)
    head = f"<thead><tr>{cells}</tr></thead>" if cells else ""
    body = "".join(
        "<tr>" + "".join(f"<td{_LEFT}>{_text(value)}</td>" for value in row) + "</tr>"
        for row, _ in zip(rows, range(ROWS), strict=False)
    )
    more = "" if total <= ROWS else f"<p>… and {total - ROWS:,} more</p>"
    return _table(title, f"{head}<tbody>{body}</tbody>") + more


def _table(title: str, content: str) -> str:
    caption = f'<caption style="text-align:left"><b>{_text(title)}</b></caption>'
    return f"<table>{caption}{content}</table>"


def _text(value: object) -> str:
    text = printable(str(value))
    return escape(text if len(text) <= _LENGTH else f"{text[: _LENGTH - 1]}…")
