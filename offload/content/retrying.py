"""Trying a store again while it does not answer."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

from offload.errors import StoreUnavailable
from offload.settings import RetryPolicy

__all__ = ("Retrying",)

T = TypeVar("T")
logger = logging.getLogger(__name__)

_within: ContextVar[bool] = ContextVar("offload_retrying", default=False)


class Retrying:
    """Calls again, with backoff and jitter, what raised `StoreUnavailable`.

    Only for calls that may be made twice; all of a store's are but ``swap`` and leases. Within
    such a call another is made once: the outer one calls again.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        on_retry: Callable[[], None] = lambda: None,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.policy = policy
        self._on_retry = on_retry
        self._sleep = sleep
        self._chance = chance

    def __call__(self, function: Callable[[], T]) -> T:
        """Return what *function* does; its last StoreUnavailable when it never did."""
        if _within.get():
            return function()
        attempt = 0
        while True:
            token = _within.set(True)
            try:
                return function()
            except StoreUnavailable as exc:
                if attempt >= self.policy.max_retries:
                    raise
                wait = self.policy.wait(attempt, self._chance)
                logger.warning("store does not answer, again in %.2f s: %s", wait, exc)
            finally:
                _within.reset(token)
            self._on_retry()
            self._sleep(wait)
            attempt += 1
