"""What is checked of settings, and how a wrong one is refused."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from math import isfinite
from typing import NoReturn

from kombu.serialization import registry

from offload.errors import ConfigurationError

__all__ = (
    "is_int",
    "is_number",
    "names",
    "patterns",
    "refuse",
    "seconds",
    "serializers",
    "unknown",
    "whole",
)

_PATTERN = re.compile(r"[^@]+(@[0-9a-f]{12,64})?", re.DOTALL)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{what} is unknown{hint} There are: {', '.join(known) or 'none'}"


def refuse(where: str, value: object, wanted: str) -> NoReturn:
    raise ConfigurationError(f"{where}: {value!r} is refused: {wanted}")


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def whole(where: str, value: object, wanted: str) -> None:
    if not is_int(value) or value < 0:  # type: ignore[operator]
        refuse(where, value, wanted)


def seconds(where: str, value: object, name: str = "'retention'") -> None:
    if not is_number(value) or value <= 0:  # type: ignore[operator]
        refuse(where, value, f"{name} is a number of seconds above 0")


def names(where: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
        refuse(where, value, "a list of names")
    if not all(isinstance(name, str) for name in value):
        refuse(where, value, "a list of names")
    return tuple(value)


def serializers(where: str, value: object) -> tuple[str, ...]:
    """Return names or content types of serializers that kombu knows."""
    found = names(where, value)
    for each in found:
        if each not in registry.name_to_type and each not in registry.type_to_name:
            raise ConfigurationError(unknown(f"{where}: {each!r}", each, registry.name_to_type))
    return found


def patterns(where: str, value: object) -> tuple[str, ...]:
    """Return patterns of names, each maybe with ``@`` and the begin of a hash."""
    found = names(where, value)
    for each in found:
        if not _PATTERN.fullmatch(each):
            refuse(where, each, "a pattern of names, maybe with @ and 12 or more digits of a hash")
    return found
