"""Who needs a stored value, and for how long."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

from offload.digest import Digest
from offload.stores.protocols import PUT

__all__ = ("Chunks", "Hold", "holder")

_LONGEST = 200  # bytes of an id or a name that are shown as they are
_REMEMBERED = 1 << 16  # digests


@dataclass(frozen=True)
class Hold:
    """A stated need.

    Attributes:
        ttl: seconds from now.
        holder: in whose name; the default cannot be released.
    """

    ttl: float
    holder: str = PUT


def holder(kind: str, name: object) -> str:
    """Return the holder of *kind* (``task``, ``result``, ``pin``) called *name*, which may be
    anything that Celery takes for an id.
    """
    shown = str(name)
    encoded = shown.encode("utf-8", "backslashreplace")
    if len(encoded) > _LONGEST or not shown.isprintable():
        shown = hashlib.blake2b(encoded, digest_size=20).hexdigest()
    return f"{kind}:{shown}"


class Chunks:
    """What a process knows of stored values: all their digests, and how long `PUT` holds them.

    Bounded; what was used least recently is forgotten first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Digest, tuple[float, list[Digest]]] = OrderedDict()
        self._size = 0

    def note(self, digests: list[Digest], until: float = 0.0) -> None:
        """Remember a value's digests, its root's first, and until when it is sure to live."""
        root = digests[0]
        with self._lock:
            before, old = self._known.pop(root, (0.0, []))
            self._known[root] = (max(before, until), digests)
            self._size += len(digests) - len(old)
            while self._size > _REMEMBERED and len(self._known) > 1:
                self._size -= len(self._known.popitem(last=False)[1][1])

    def find(self, root: Digest) -> tuple[float, list[Digest]]:
        """Return what was noted of the value called *root*; ``(0.0, [])`` if nothing was."""
        with self._lock:
            return self._known.get(root, (0.0, []))
