"""Outcomes of threads reach an event loop in few wake-ups, and a few at a time."""

import asyncio
from itertools import pairwise

import pytest

from offload.hooks.aio import threads as module
from offload.hooks.aio.threads import Outbox


@pytest.fixture
def on_loop():
    """Return a function that runs ``test(outbox, wakes)`` on a loop; *wakes* lists its wake-ups."""

    def run(test):
        async def main():
            loop = asyncio.get_running_loop()
            wakes = []
            wake = loop.call_soon_threadsafe
            loop.call_soon_threadsafe = lambda *args: (wakes.append(args), wake(*args))
            await test(Outbox(loop), wakes)

        asyncio.run(main())

    return run


def test_many_outcomes_need_one_wake_up(on_loop):
    """What is posted before the loop has looked is delivered by the wake-up of the first."""

    async def check(outbox, wakes):
        futures = [outbox.future() for _ in range(100)]
        for number, future in enumerate(futures):
            outbox.post(future, number)
        assert len(wakes) == 1
        assert await asyncio.gather(*futures) == list(range(100))

    on_loop(check)


def test_outcomes_are_delivered_a_few_at_a_time(on_loop):
    """Between two batches, the loop runs what else is ready."""

    async def check(outbox, wakes):
        futures = [outbox.future() for _ in range(100)]
        for future in futures:
            outbox.post(future, None)
        done = [0]
        while done[-1] < len(futures):
            await asyncio.sleep(0)
            done.append(sum(future.done() for future in futures))
        assert max(b - a for a, b in pairwise(done)) == module._MOST
        assert len(wakes) == 1

    on_loop(check)


def test_busy_threads_do_not_wake_the_loop_again(on_loop):
    """After a delivery to busy threads' callers the loop looks again by itself."""

    async def check(outbox, wakes):
        first, second = outbox.future(), outbox.future()
        outbox.post(first, 1, can_wait=True)
        await first
        outbox.post(second, 2, can_wait=True)
        assert len(wakes) == 1
        assert await second == 2
        assert len(wakes) == 1

    on_loop(check)


def test_the_last_outcome_wakes_the_loop_at_once(on_loop, monkeypatch):
    """A thread that has nothing else to do doesn't leave its outcome to the next look."""
    monkeypatch.setattr(module, "_PAUSE", 3600.0)

    async def check(outbox, wakes):
        first, waiting, last, next_ = (outbox.future() for _ in range(4))
        outbox.post(first, None, can_wait=True)
        await first
        outbox.post(waiting, None, can_wait=True)
        outbox.post(last, None)
        assert len(wakes) == 2
        await asyncio.gather(waiting, last)
        outbox.post(next_, None, can_wait=True)  # nothing is busy: there is no next look
        assert len(wakes) == 3
        await next_

    on_loop(check)


def test_outcomes_for_a_cancelled_future_or_a_closed_loop_are_dropped(on_loop):
    """A coroutine that is gone hinders neither the others nor the thread."""
    kept = []

    async def check(outbox, wakes):
        gone, there = outbox.future(), outbox.future()
        gone.cancel()
        outbox.post(gone, 1)
        outbox.post(there, 2)
        assert await there == 2
        kept.extend((outbox, outbox.future()))

    on_loop(check)
    outbox, future = kept
    outbox.post(future, 3)
    assert not future.done()
