"""Python's scalar types as JSON, for the head of a tree."""

from __future__ import annotations

import ipaddress
import math
import operator
import pathlib
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from offload.serializers.base import NotData
from offload.text import type_name

Node = Any

_PATHS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(pathlib.PurePosixPath, pathlib.PureWindowsPath),
        *(pathlib.PosixPath, pathlib.WindowsPath),
    )
}
_ADDRESSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(ipaddress.IPv4Address, ipaddress.IPv4Network, ipaddress.IPv4Interface),
        *(ipaddress.IPv6Address, ipaddress.IPv6Network, ipaddress.IPv6Interface),
    )
}
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,40}(?:/[A-Za-z0-9_+-]{1,40}){0,4}")
_TERM = 1 << 14  # maximum bits of a fraction's terms, because reducing takes quadratic time


def text(body: Node) -> str:
    """Return *body* if it is a string. Raises TypeError."""
    if type(body) is not str:
        raise TypeError("not a string")
    return body


def _write_int(value: int) -> Node:
    # Hexadecimal digits take linear time, decimal ones quadratic time.
    return value if -(1 << 63) <= value < 1 << 64 else {"int": hex(value)}


def _read_int(node: Node) -> int:
    return int(text(node["int"]), 16) if type(node) is dict else operator.index(node)


def _write_fraction(value: Fraction) -> Node:
    terms = value.numerator, value.denominator
    if max(term.bit_length() for term in terms) > _TERM:
        raise NotData("it is a Fraction with very large terms")
    return {"Fraction": [_write_int(term) for term in terms]}


def _read_fraction(body: Node) -> Fraction:
    numerator, denominator = map(_read_int, body)
    if max(numerator.bit_length(), denominator.bit_length()) > _TERM:
        raise ValueError("a fraction whose terms are too large")
    return Fraction(numerator, denominator)


def _write_range(value: range) -> Node:
    return {"range": [_write_int(each) for each in (value.start, value.stop, value.step)]}


def _write_path(value: pathlib.PurePath) -> Node:
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise NotData("it is a path that isn't valid Unicode") from None
    return {"path": [type(value).__name__, str(value)]}


def _read_path(body: Node) -> pathlib.PurePath:
    kind, path = map(text, body)
    found: pathlib.PurePath = _PATHS[kind](path)
    return found


def _read_address(body: Node) -> Any:
    kind, address = map(text, body)
    return _ADDRESSES[kind](address)


def _write_float(value: float) -> Node:
    return value if math.isfinite(value) else {"float": repr(value)}


def _read_float(body: Node) -> float:
    if body not in ("nan", "inf", "-inf"):
        raise ValueError("not nan, inf, or -inf")
    return float(body)


def _write_complex(value: complex) -> Node:
    return {"complex": [repr(value.real), repr(value.imag)]}


def _read_complex(body: Node) -> complex:
    real, imag = body
    return complex(float(text(real)), float(text(imag)))


def _write_timedelta(value: timedelta) -> Node:
    return {"timedelta": [value.days, value.seconds, value.microseconds]}


def _write_date(value: date) -> Node:
    return {"date": [value.year, value.month, value.day]}


def _write_time(value: time) -> Node:
    parts = [value.hour, value.minute, value.second, value.microsecond]
    return {"time": [parts, _write_zone(value.tzinfo), value.fold]}


def _read_time(body: Node) -> time:
    (hour, minute, second, microsecond), zone, fold = body
    return time(hour, minute, second, microsecond, _read_zone(zone), fold=fold)


def _write_datetime(value: datetime) -> Node:
    day = [value.year, value.month, value.day]
    parts = [*day, value.hour, value.minute, value.second, value.microsecond]
    return {"datetime": [parts, _write_zone(value.tzinfo), value.fold]}


def _read_datetime(body: Node) -> datetime:
    (year, month, day, *clock), zone, fold = body
    hour, minute, second, microsecond = clock
    return datetime(
        year, month, day, hour, minute, second, microsecond, _read_zone(zone), fold=fold
    )


def _write_zone(zone: tzinfo | None) -> Node:
    if zone is None:
        return None
    write = WRITERS.get(type(zone))
    if write is None:
        raise NotData(f"its time zone is of type {type_name(zone)}")
    return write(zone)


def _read_zone(node: Node) -> tzinfo | None:
    if node is None:
        return None
    [(tag, body)] = node.items()
    zone: tzinfo = {"timezone": _read_timezone, "ZoneInfo": _read_zoneinfo}[tag](body)
    return zone


def _write_timezone(value: timezone) -> Node:
    offset, *name = value.__getinitargs__()  # type: ignore[attr-defined]
    return {"timezone": [offset.days, offset.seconds, offset.microseconds, *name]}


def _read_timezone(body: Node) -> timezone:
    days, seconds, microseconds, *name = body
    return timezone(timedelta(days, seconds, microseconds), *map(text, name))


def _write_zoneinfo(value: ZoneInfo) -> Node:
    key: str | None = value.key
    if key is None or ZoneInfo(key) is not value:
        raise NotData("its time zone isn't from the time zone database")
    return {"ZoneInfo": key}


def _read_zoneinfo(body: Node) -> ZoneInfo:
    if not _ZONE.fullmatch(text(body)):  # parts of the key name packages that zoneinfo imports
        raise ValueError("not the name of a time zone")
    return ZoneInfo(body)


def _read_pytz(body: Node) -> tzinfo:
    import pytz  # pandas requires it before version 3

    zone: tzinfo = pytz.timezone(text(body))
    return zone


WRITERS: dict[type, Callable[[Any], Node]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    int: _write_int,
    float: _write_float,
    complex: _write_complex,
    Decimal: lambda value: {"Decimal": str(value)},
    UUID: lambda value: {"UUID": value.hex},
    timedelta: _write_timedelta,
    date: _write_date,
    time: _write_time,
    datetime: _write_datetime,
    timezone: _write_timezone,
    ZoneInfo: _write_zoneinfo,
    Fraction: _write_fraction,
    range: _write_range,
    **dict.fromkeys(_PATHS.values(), _write_path),
    **dict.fromkeys(
        _ADDRESSES.values(), lambda value: {"address": [type(value).__name__, str(value)]}
    ),
}
"""Writers for exactly these types. A node is a JSON scalar, or an object with one tag."""

READERS: dict[str, Callable[[Node], Any]] = {
    "int": lambda body: int(text(body), 16),
    "float": _read_float,
    "complex": _read_complex,
    "Decimal": lambda body: Decimal(text(body)),
    "UUID": lambda body: UUID(text(body)),
    "timedelta": lambda body: timedelta(*body),
    "date": lambda body: date(*body),
    "time": _read_time,
    "datetime": _read_datetime,
    "timezone": _read_timezone,
    "ZoneInfo": _read_zoneinfo,
    "Fraction": _read_fraction,
    "range": lambda body: range(*map(_read_int, body)),
    "path": _read_path,
    "address": _read_address,
    "pytz": _read_pytz,
}
