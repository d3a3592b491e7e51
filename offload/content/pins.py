"""Pins: names that keep a value until they are taken away.

A pin is a pointer ``pins/<name>`` with the reference's text and a number, and a hold of the
value's blobs by the holder ``pin:<name>+<number>``. The number is another one at each pinning,
so that who takes one pin away, however late, takes no other that has its name.
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
_MEANWHILE = 3600.0  # seconds of a hold that nothing names yet, should its owner die


class Pins:
    """The pins in a content store.

    Names are 1 to 190 characters of ``A-Z a-z 0-9 . _ - /``; others raise ValueError.

    Args:
        grace: seconds that a value lives on when its pin is taken away.
    """

    def __init__(self, content: ContentStore, grace: float) -> None:
        self._content = content
        self._pointers = content.store.pointers
        self._grace = grace

    def pin(self, ref: Ref[Any], name: str) -> None:
        """Keep the value of *ref* under *name*, in place of any that has this name.

        Raises BlobMissing if it is gone, ConfigurationError where no account is kept of holds.
        """
        if not self._content.store.blobs.tracks_holds:
            raise ConfigurationError(
                f"{self._content.store.url} keeps values by their age alone, so none can be "
                'pinned: put a Redis before it, as in store=["redis://…", "s3://…"]',
                store=self._content.store.url,
            )
        pointer, pin = _FOLDER + name, f"{ref.wire} {secrets.token_hex(6)}".encode()
        owner = _owner(name, pin)
        self._content.keep(ref, Hold(_MEANWHILE, owner))
        while True:
            before = self._pointers.read(pointer)
            if self._pointers.swap(pointer, before, pin):
                break
        self._content.keep(ref, Hold(_FOREVER, owner))
        if before is not None:
            self._release(name, before)
        if self._pointers.read(pointer) != pin:  # taken away before it was kept for ever
            self._release(name, pin)

    def unpin(self, name: str) -> bool:
        """Take the pin away; return whether there was one."""
        pointer = _FOLDER + name
        while (before := self._pointers.read(pointer)) is not None:
            if self._pointers.swap(pointer, before, None):
                self._release(name, before)
                return True
        return False

    def find(self, name: str) -> Ref[Any] | None:
        """Return the reference that is pinned under *name*, None where there is none."""
        pin = self._pointers.read(_FOLDER + name)
        return None if pin is None else self._ref(pin)

    def names(self) -> Iterator[str]:
        """Yield the names of all pins."""
        for name in self._pointers.names(_FOLDER):
            yield name[len(_FOLDER) :]

    def _ref(self, pin: bytes) -> Ref[Any]:
        return self._content.open(pin.decode().partition(" ")[0])

    def _release(self, name: str, pin: bytes) -> None:
        self._content.release([self._ref(pin)], _owner(name, pin), self._grace)


def _owner(name: str, pin: bytes) -> str:
    return holder("pin", f"{name}+{pin.decode().partition(' ')[2]}")
