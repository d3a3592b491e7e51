"""How often and how long to retry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from offload.settings.checks import is_int, is_number, refuse

__all__ = ("RetryPolicy",)


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to try again; the names are those of Celery's ``retry_policy``.

    Attributes:
        max_retries: further attempts after the first.
        interval_start: seconds before the first of them.
        interval_step: seconds added to each further wait.
        interval_max: seconds that no wait exceeds.
    """

    max_retries: int = 5
    interval_start: float = 0.2
    interval_step: float = 0.5
    interval_max: float = 10.0

    def __post_init__(self) -> None:
        if not is_int(self.max_retries) or self.max_retries < 0:
            refuse("offload_retry", self.max_retries, "'max_retries' is a whole number from 0")
        for name in ("interval_start", "interval_step", "interval_max"):
            if not is_number(getattr(self, name)) or getattr(self, name) < 0:
                refuse("offload_retry", getattr(self, name), f"{name!r} is a number from 0")

    def wait(self, attempt: int, random: Callable[[], float]) -> float:
        """Return the seconds to wait before retry number *attempt* (from 0).

        The interval grows by a fixed step, as Celery's does. *random()* (0 to 1) moves the wait
        by up to a fifth either way, so that many clients don't return at once.
        """
        interval = self.interval_start + self.interval_step * attempt
        return min(interval * (0.8 + 0.4 * random()), self.interval_max)
