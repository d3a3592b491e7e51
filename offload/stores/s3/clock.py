"""Estimate the server's time between its whole-second dates."""

from __future__ import annotations

import math
import time

__all__ = ("ServerClock",)


class ServerClock:
    """Bounds of the server's time, from the dates of its answers, which are whole seconds.

    An answer was made between its request's sending and its arrival, and within the second of
    its date. Each answer narrows the offset from this host's monotonic clock. One that
    contradicts the earlier ones resets the bounds: the server's clock was set.
    """

    def __init__(self) -> None:
        self._ahead = (-math.inf, math.inf)  # of this host's clock, at least and at most

    def learn(self, date: float, sent: float, received: float) -> None:
        """Add an answer's *date*; *sent* and *received* are by `time.monotonic`."""
        low, high = date - received, date + 1 - sent
        # One assignment, so that threads need no lock; an answer may be lost.
        known = max(low, self._ahead[0]), min(high, self._ahead[1])
        self._ahead = known if known[0] <= known[1] else (low, high)

    def bounds(self) -> tuple[float, float]:
        """Return the earliest and latest possible time now, in seconds since 1970."""
        now = time.monotonic()
        low, high = self._ahead
        return now + low, now + high
