"""How a snapshot is written: a line that tells the version, then compressed JSON."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import Any

from offload.stores.accounts import Accounts, Amounts
from offload.stores.tallies import SPANS

__all__ = ("FromLater", "Snapshot", "Unreadable", "read", "write")

_WORDS = b"offload statistics "
_VERSION = b"1"
_MOST = 256 << 20  # bytes that one may come to
_LARGEST = 1 << 63


class Unreadable(ValueError):
    """It is no snapshot, or a damaged one."""


class FromLater(ValueError):
    """It was written by a later version."""


@dataclass
class Snapshot:
    """A part or a fold.

    Attributes:
        covers: parts that are counted in it, and until when (seconds since 1970) they are to be
            remembered.
    """

    accounts: Accounts = field(default_factory=Accounts)
    covers: dict[str, float] = field(default_factory=dict)


def write(snapshot: Snapshot) -> bytes:
    content = {
        "total": snapshot.accounts.total,
        "series": snapshot.accounts.series,
        "covers": snapshot.covers,
    }
    plain = json.dumps(content, separators=(",", ":")).encode()
    return b"%b%b\n%b" % (_WORDS, _VERSION, zlib.compress(plain, 1))


def read(written: bytes) -> Snapshot:
    """Raises Unreadable or FromLater."""
    line, _, rest = written.partition(b"\n")
    version = line.removeprefix(_WORDS)
    if not line.startswith(_WORDS) or not version.isdigit():
        raise Unreadable("it is no snapshot")
    if version != _VERSION:
        raise FromLater(f"it is of version {int(version[:9])}")
    try:
        content = json.loads(_plain(rest))
        return _snapshot(content)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, zlib.error) as exc:
        raise Unreadable(f"it is damaged ({type(exc).__name__})") from exc


def _plain(compressed: bytes) -> bytes:
    inflater = zlib.decompressobj()
    plain = inflater.decompress(compressed, _MOST)
    if not inflater.eof:
        raise ValueError("too long, or cut off")
    return plain


def _snapshot(content: Any) -> Snapshot:
    snapshot = Snapshot()
    snapshot.accounts.total = _amounts(content["total"])
    for span in SPANS:
        snapshot.accounts.series[span] = {
            int(begin): _amounts(amounts) for begin, amounts in content["series"][span].items()
        }
    snapshot.covers = {str(name): float(until) for name, until in content["covers"].items()}
    return snapshot


def _amounts(content: Any) -> Amounts:
    amounts: Amounts = dict(content)
    if not all(type(each) is int and -_LARGEST < each < _LARGEST for each in amounts.values()):
        raise ValueError("not whole numbers")
    return amounts
