"""Mark objects as coroutine functions, before Python 3.12 by an attribute that asyncio reads."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


def mark_coroutine_function(function: Callable[..., Any]) -> None:
    """Let `asyncio.iscoroutinefunction` recognize an object whose calls are awaited."""
    mark: Any = getattr(inspect, "markcoroutinefunction", None)  # since Python 3.12
    if mark is not None:
        mark(function)
    else:
        vars(function)["_is_coroutine"] = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
