"""Checks of settings and options; each refusal names the key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from math import isfinite
from typing import Any, NoReturn, TypeGuard

from kombu.serialization import registry

from offload.errors import ConfigurationError
from offload.text import parse_duration, parse_size

_SIZES = "'64k', '64 KiB', or '1.5MB'"
_TIMES = "'90s', '1h30m', or '7d'"
_PATTERN = re.compile(r"[^@]+(@[0-9a-f]{12,64})?", re.DOTALL)


def unknown_name(subject: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown *name*, with the nearest known one as a hint."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    if near:
        return f"{subject} is unknown; did you mean {near[0]!r}?"
    return f"{subject} is unknown. There are: {', '.join(known) or 'none'}"


def refuse(where: str, value: object, wanted: str) -> NoReturn:
    """Raise ConfigurationError: the setting or option *where* has an invalid *value*."""
    try:
        shown = repr(value)
    except ValueError:  # of an int with thousands of digits
        shown = f"this {type(value).__name__}"
    raise ConfigurationError(f"{where}: {shown} is invalid; expected {wanted}")


def is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether *value* is a number that is finite, also as a float."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return isfinite(value)
    except OverflowError:
        return False


def one_of(allowed: Sequence[str]) -> str:
    """Return the choices as text: ``'a', 'b', or 'c'``."""
    *others, last = map(repr, allowed)
    return f"{', '.join(others)}{',' if len(others) > 1 else ''} or {last}"


def check_choice(where: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        refuse(where, value, one_of(allowed))


def check_flag(where: str, value: object) -> None:
    if not isinstance(value, bool):
        refuse(where, value, "True or False")


def check_whole(where: str, value: object, wanted: str) -> None:
    if not is_int(value) or value < 0:
        refuse(where, value, wanted)


def as_size(where: str, value: Any) -> int:
    """Return *value* in bytes: a number, or text that `parse_size` reads."""
    size = parse_size(value) if isinstance(value, str) else value
    if not is_int(size) or size < 0:
        refuse(where, value, f"a number of bytes, at least 0, or a string such as {_SIZES}")
    return size


def as_seconds(where: str, value: Any, also: str = "", *, zero: bool = False) -> float:
    """Return *value* in seconds: a number, a timedelta, or text that `parse_duration` reads.

    Args:
        also: what else is valid, for the error.
        zero: whether 0 is valid.
    """
    seconds = parse_duration(value) if isinstance(value, str) else value
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    if not is_number(seconds) or seconds < 0 or (seconds == 0 and not zero):
        least = "at least 0" if zero else "above 0"
        refuse(where, value, f"{also}a number of seconds, {least}, or a string such as {_TIMES}")
    return seconds


def check_names(where: str, value: object) -> tuple[str, ...]:
    """Return a list of names as a tuple."""
    if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
        refuse(where, value, "a list of names")
    if not all(isinstance(name, str) for name in value):
        refuse(where, value, "a list of names")
    return tuple(value)


def check_serializers(where: str, value: object) -> tuple[str, ...]:
    """Return names or content types of serializers. Raises ConfigurationError for unknown ones."""
    found = check_names(where, value)
    for each in found:
        if each not in registry.name_to_type and each not in registry.type_to_name:
            raise ConfigurationError(
                unknown_name(f"{where}: {each!r}", each, registry.name_to_type)
            )
    return found


def check_patterns(where: str, value: object) -> tuple[str, ...]:
    """Return patterns of names, each optionally with ``@`` and a hash prefix."""
    found = check_names(where, value)
    for each in found:
        if not _PATTERN.fullmatch(each):
            refuse(where, each, "a pattern of names, maybe with @ and at least 12 digits of a hash")
    return found
