"""What asyncio doesn't document is as `offload.memo.asyncio_internals` expects."""

from __future__ import annotations

import asyncio
import inspect

from offload.memo.asyncio_internals import mark_coroutine_function


class Called:
    def __call__(self):
        pass


def test_a_marked_object_is_a_coroutine_function():
    """asyncio recognizes an object that was marked, and no other."""
    marked = Called()
    mark_coroutine_function(marked)
    assert asyncio.iscoroutinefunction(marked)
    assert not asyncio.iscoroutinefunction(Called())
    if hasattr(inspect, "markcoroutinefunction"):
        assert inspect.iscoroutinefunction(marked)
