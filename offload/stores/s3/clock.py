"""The server's time, finer than it says."""

from __future__ import annotations

import math
import time

__all__ = ("ServerClock",)


class ServerClock:
    """Bounds of the server's time, from the dates of its answers, which count whole seconds.

    An answer was made after its request was sent and before it was received, and within the
    second that it is dated. Each narrows the difference from our own clock (the monotonic
    one: whether it is set right does not matter). What contradicts all before is taken for
    a server whose clock was set, and begins anew.
    """

    def __init__(self) -> None:
        self._ahead = (-math.inf, math.inf)  # of our clock, at least and at most

    def learn(self, date: float, sent: float, received: float) -> None:
        """Take in an answer of *date*; *sent* and *received* by `time.monotonic`."""
        low, high = date - received, date + 1 - sent
        # One assignment, so that threads need no lock; one's answer may get lost.
        known = max(low, self._ahead[0]), min(high, self._ahead[1])
        self._ahead = known if known[0] <= known[1] else (low, high)

    def bounds(self) -> tuple[float, float]:
        """Return the earliest and the latest time that it can be now, since 1970."""
        now = time.monotonic()
        low, high = self._ahead
        return now + low, now + high
