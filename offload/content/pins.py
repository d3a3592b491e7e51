"""Pins: named holds without expiry.

A pin is a pointer ``pins/<name>`` with the reference's text and a random number, and a hold of
the value's blobs by the holder ``pin:<name>+<number>``. Each pin has its own number, so that
releasing a pin, however late, never releases a newer one of the same name.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from offload.content.holds import Hold, holder
from offload.content.store import ContentStore
from offload.errors import ConfigurationError
from offload.ref import Ref

__all__ = ("Pins",)

_FOLDER = "pins/"
_FOREVER = 100 * 365 * 86400.0
_UNNAMED = 3600.0  # seconds of a hold before a pointer names it, in case its owner dies


class Pins:
    """The pins in a content store.

    Names are 1 to 190 characters of ``A-Z a-z 0-9 . _ - /``; others raise ValueError.

    Args:
        grace: seconds that a value is kept after its pin is removed.
    """

    def __init__(self, content: ContentStore, grace: float) -> None:
        self._content = content
        self._pointers = content.store.pointers
        self._grace = grace

    def pin(self, ref: Ref[Any], name: str) -> None:
        """Pin the value of *ref* as *name*, replacing any pin of this name.

        Raises BlobMissing if the value is missing, ConfigurationError if the store doesn't track
        holds.
        """
        if not self._content.store.blobs.tracks_holds:
            raise ConfigurationError(
                f"{self._content.store.url} deletes values only by age, so they can't be "
                'pinned: put a Redis before it, as in store=["redis://…", "s3://…"]',
                store=self._content.store.url,
            )
        pointer, pin = _FOLDER + name, f"{ref.wire} {secrets.token_hex(6)}".encode()
        owner = _owner(name, pin)
        self._content.holds.add([ref], Hold(_UNNAMED, owner))
        while True:
            before = self._pointers.read(pointer)
            if self._pointers.swap(pointer, before, pin):
                break
        self._content.holds.add([ref], Hold(_FOREVER, owner))
        if before is not None:
            self._release(name, before)
        if self._pointers.read(pointer) != pin:  # removed before it was held forever
            self._release(name, pin)

    def replace(self, name: str, before: Ref[Any], after: Ref[Any]) -> bool:
        """Pin *after* as *name* if *before* is what is pinned now; return whether it was."""
        pointer, pin = _FOLDER + name, f"{after.wire} {secrets.token_hex(6)}".encode()
        owner, old = _owner(name, pin), self._pointers.read(pointer)
        if old is None or old.decode().partition(" ")[0] != before.wire:
            return False
        self._content.holds.add([after], Hold(_FOREVER, owner))
        if not self._pointers.swap(pointer, old, pin):
            self._release(name, pin)
            return False
        self._release(name, old)
        return True

    def unpin(self, name: str) -> bool:
        """Remove the pin; return whether there was one."""
        pointer = _FOLDER + name
        while (before := self._pointers.read(pointer)) is not None:
            if self._pointers.swap(pointer, before, None):
                self._release(name, before)
                return True
        return False

    def find(self, name: str) -> Ref[Any] | None:
        """Return the reference pinned as *name*, or None."""
        pin = self._pointers.read(_FOLDER + name)
        return None if pin is None else self._ref(pin)

    def names(self) -> Iterator[str]:
        """Yield the names of all pins."""
        for name in self._pointers.names(_FOLDER):
            yield name[len(_FOLDER) :]

    def _ref(self, pin: bytes) -> Ref[Any]:
        return self._content.open(pin.decode().partition(" ")[0])

    def _release(self, name: str, pin: bytes) -> None:
        self._content.holds.release([self._ref(pin)], _owner(name, pin), self._grace)


def _owner(name: str, pin: bytes) -> str:
    return holder("pin", f"{name}+{pin.decode().partition(' ')[2]}")
