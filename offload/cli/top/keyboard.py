"""Keys as they are pressed, from a terminal that is left as it was found."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from typing import Any

__all__ = ("END", "Keyboard")

END = "q"
"""Stands for the end of the input, too."""

_DISABLED = b"\x00"  # _POSIX_VDISABLE
_CC = 6  # the place of its control characters in what `termios.tcgetattr` returns


class Keyboard:
    """Within this, keys are read without waiting for the end of a line, and are not shown.

    Ctrl-C interrupts as ever; ctrl-z does nothing, for it would leave the screen as it is. Where
    standard input is no terminal there are no keys.
    """

    def __enter__(self) -> Keyboard:  # noqa: PYI034 (no Self before Python 3.11)
        self._file = sys.stdin.fileno() if sys.stdin.isatty() else None
        if self._file is not None:
            self._before: list[Any] = termios.tcgetattr(self._file)
            tty.setcbreak(self._file, termios.TCSADRAIN)
            changed = termios.tcgetattr(self._file)
            changed[_CC][termios.VSUSP] = _DISABLED
            termios.tcsetattr(self._file, termios.TCSADRAIN, changed)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def pressed(self, seconds: float) -> str:
        """Return the next keys, "" if there are none for *seconds*."""
        if self._file is None:
            time.sleep(seconds)
            return ""
        if not select.select([self._file], [], [], seconds)[0]:
            return ""
        return os.read(self._file, 64).decode("ascii", "replace") or END
