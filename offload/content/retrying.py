"""Retries while a store is unavailable."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

from offload.errors import KeyUnavailable, StoreUnavailable
from offload.settings import RetryPolicy

T = TypeVar("T")
logger = logging.getLogger(__name__)

_is_nested: ContextVar[bool] = ContextVar("offload_retrying", default=False)


class Retrying:
    """Retries calls that raise `StoreUnavailable`, with backoff and jitter.

    Only for calls that may be repeated: all of a store's except ``swap`` and leases. Nested
    retries make one attempt: the outer one retries.
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
        """Return the result of *function*; raises the last StoreUnavailable after all retries."""
        if _is_nested.get():
            return function()
        attempt = 0
        while True:
            token = _is_nested.set(True)
            try:
                return function()
            except KeyUnavailable:  # the keyring has retried; waiting here changes nothing
                raise
            except StoreUnavailable as exc:
                if attempt >= self.policy.max_retries:
                    raise
                wait = self.policy.wait(attempt, self._chance)
                logger.warning("store unavailable; retrying in %.2f s: %s", wait, exc)
            finally:
                _is_nested.reset(token)
            self._on_retry()
            self._sleep(wait)
            attempt += 1
