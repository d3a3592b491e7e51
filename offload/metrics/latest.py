"""Keep the latest errors in the store: their kind, task, argument, time, and text.

Counters say how many errors there were. One small record (the pointer ``stats/errors``) also keeps
the latest error of each kind, task, and argument. Processes add to it by compare-and-swap, at most
once per statistics interval, and only if they had errors. The record has the messages of offload's
own errors, which contain no values; of other errors, it has only the type.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from offload.errors import OffloadError
from offload.stores.capabilities import KeepsFiles, tiers_of
from offload.stores.protocols import PointerStore, Store
from offload.text import reason_of

logger = logging.getLogger(__name__)

_NAME = "stats/errors"
_GREATEST = 1 << 63  # more than any number in a record
_VERSION = 1
_MOST = 60  # maximum entries in the record
_MOST_NEW = 40  # maximum entries that wait in a process
_LARGEST = 48 << 10  # maximum bytes of the record; a pointer may have 64 KiB
_LONGEST = 200  # characters of a name
_LONGEST_TEXT = 300
_TURNS = 4  # attempts to swap
_KEPT = 30 * 86400.0  # seconds to keep an error
_AHEAD = 300.0  # seconds; errors dated further in the future are ignored


@dataclass(frozen=True)
class Noted:
    """The latest error of one kind, task, and argument.

    Attributes:
        kind: the error's counter, such as ``errors_missing``.
        task, argument: "" if there is none.
        at: when it happened, in seconds since 1970, by its process's clock.
        count: how often it has happened since it was first recorded.
        text: the error's type and message.
    """

    kind: str
    task: str
    argument: str
    at: float
    count: int
    text: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.task, self.argument


class LatestErrors:
    """Errors of this process that wait to be written, in bounded number. Thread-safe.

    It has no lock, which a fork could copy while held: only atomic dict operations change it.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._waiting: dict[tuple[str, str, str], Noted] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def note(self, kind: str, task: str, argument: str, error: BaseException) -> None:
        """Note an error, or drop it if `_MOST_NEW` entries already wait."""
        noted = Noted(kind, task[:_LONGEST], argument[:_LONGEST], self._clock(), 1, _text_of(error))
        waiting = self._waiting
        before = waiting.get(noted.key)
        if before is not None:
            noted = replace(noted, count=before.count + 1)
        elif len(waiting) >= _MOST_NEW:
            return
        waiting[noted.key] = noted

    def take(self) -> list[Noted]:
        """Return and remove all waiting errors."""
        taken, self._waiting = self._waiting, {}
        return list(taken.values())

    def requeue(self, taken: Iterable[Noted]) -> None:
        """Put back errors that could not be written."""
        for each in taken:
            self._waiting.setdefault(each.key, each)


class ErrorLog:
    """The record of the latest errors in a store."""

    def __init__(self, pointers: PointerStore, clock: Callable[[], float] = time.time) -> None:
        self._pointers = pointers
        self._clock = clock

    def add(self, new: Sequence[Noted]) -> bool:
        """Add errors; return False if other processes changed the record during each attempt.

        Raises StoreUnavailable.
        """
        for _ in range(_TURNS):
            old = self._pointers.read(_NAME)
            if self._pointers.swap(_NAME, old, _written(_merged(_parsed(old), new))):
                return True
        return False

    def read(self) -> list[Noted]:
        """Return the latest errors, newest first. Raises StoreUnavailable."""
        now = self._clock()
        found = _parsed(self._pointers.read(_NAME))
        recent = (each for each in found if now - _KEPT < each.at < now + _AHEAD)
        return sorted(recent, key=lambda each: -each.at)

    def clear(self) -> None:
        """Forget all errors. Raises StoreUnavailable."""
        for _ in range(_TURNS):
            old = self._pointers.read(_NAME)
            if old is None or self._pointers.swap(_NAME, old, None):
                return


def error_log_of(store: Store) -> ErrorLog | None:
    """Return the record in *store*, or in its first tier; None if that has no pointers."""
    first = tiers_of(store)[0]
    if isinstance(first, KeepsFiles) and not first.files.has_pointers:
        return None
    pointers = getattr(first, "pointers", None)  # a third-party store may have only counters
    return None if pointers is None else ErrorLog(pointers)


def _text_of(error: BaseException) -> str:
    kind = type(error).__name__
    text = f"{kind}: {error}" if isinstance(error, OffloadError) else reason_of(error)
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def _merged(old: Iterable[Noted], new: Iterable[Noted]) -> list[Noted]:
    """Return the latest error of each kind, task, and argument, newest first."""
    found = {each.key: each for each in old}
    for each in new:
        before = found.get(each.key)
        if before is None:
            found[each.key] = each
        else:
            latest = max(before, each, key=lambda noted: noted.at)
            found[each.key] = replace(latest, count=before.count + each.count)
    return sorted(found.values(), key=lambda each: -each.at)[:_MOST]


def _written(errors: Sequence[Noted]) -> bytes:
    while True:
        content = {"version": _VERSION, "errors": [asdict(each) for each in errors]}
        encoded = json.dumps(content, separators=(",", ":")).encode()
        if len(encoded) <= _LARGEST:
            return encoded
        errors = errors[: len(errors) * 3 // 4]


def _parsed(value: bytes | None) -> list[Noted]:
    """Return the errors in a record; empty if it is damaged or from a later version."""
    if value is None:
        return []
    try:
        content = json.loads(value)
        if content["version"] != _VERSION:
            return []
        return [_noted(each) for each in content["errors"][:_MOST]]
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        logger.info("%s can't be read: %s", _NAME, type(exc).__name__)
        return []


def _noted(item: Mapping[str, Any]) -> Noted:
    kind, task, argument, text = (item[name] for name in ("kind", "task", "argument", "text"))
    at, count = item["at"], item["count"]
    if not all(isinstance(each, str) for each in (kind, task, argument, text)):
        raise TypeError("not texts")
    if type(at) not in (int, float) or type(count) is not int:
        raise TypeError("not numbers")
    if not (abs(at) < _GREATEST and 0 <= count < _GREATEST):
        raise ValueError("too large")
    return Noted(
        kind[:_LONGEST],
        task[:_LONGEST],
        argument[:_LONGEST],
        float(at),
        count,
        text[:_LONGEST_TEXT],
    )
