"""Threads that publish through one app: ``python -m tests.integration.publishers``.

Under ``python -m gevent.monkey --module`` the threads are greenlets.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis

from tests.integration.pools import create, digest, large, spoil, spoiled
from tests.support.processes import wait_until

THREADS = 8
TASKS = 4  # per thread
TIMEOUT = 30.0


class Publishing:
    """An app and what its threads have published so far."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.app = create(config)
        self.first = config["first"]
        self.begin = threading.Barrier(THREADS)
        self.published: list[int] = []

    def publish(self, thread: int) -> int:
        """Publish own values and a shared one; return how many results were correct.

        Each value is changed right after its task is published, which must not affect the task.
        """
        begin = self.first + thread * TASKS
        numbers = [*range(begin, begin + TASKS - 1), self.first + THREADS * TASKS]
        values = [large(number) for number in numbers]
        self.begin.wait(TIMEOUT)  # all start with an unused app
        results = []
        for number, value in zip(numbers, values, strict=True):
            results.append(self.app.tasks["change"].delay(value, number % 250))
            self.published.append(number)
            spoil(value, 255)
        found = [digest(result.get(timeout=TIMEOUT)) for result in results]
        expected = [digest(spoiled(large(number), number % 250)) for number in numbers]
        return sum(map(str.__eq__, found, expected))

    def small_ones(self, notes: redis.Redis) -> int:
        """Run small tasks on request; return how many large ones were published by then."""
        wait_until(lambda: notes.lpop("go"), "the test says go", TIMEOUT)
        small = self.app.tasks["small"]
        assert [small.delay(i).get(timeout=TIMEOUT) for i in range(5)] == [*range(5)]
        before = len(self.published)
        notes.rpush("gone", before)
        return before


def main(config: dict[str, Any]) -> dict[str, Any]:
    publishing = Publishing(config)
    with (
        redis.Redis.from_url(config["backend"]) as notes,
        ThreadPoolExecutor(THREADS + 1) as threads,
    ):
        jobs = [threads.submit(publishing.publish, number) for number in range(THREADS)]
        before = threads.submit(publishing.small_ones, notes).result()
        right = sum(job.result() for job in jobs)
    patched = "gevent" in sys.modules and sys.modules["gevent"].monkey.is_module_patched(
        "threading"
    )
    gc.collect()  # results that Celery drops while the interpreter exits log noise
    return {"made_of": "greenlets" if patched else "threads", "before": before, "right": right}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(os.environ["OFFLOAD_TEST_APP"]))))
