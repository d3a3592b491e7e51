"""Serve requests of a FastAPI app in this process, and print the event loop's lag.

    python -m benchmarks.web '{"kind": "both", "number": 1000, "size": 1000000}'

Requests are made through ASGI, without sockets, one after another: at once, they would keep the
loop from running by themselves. All wait together, as publishing takes longer; the requests alone
wait for a second. As `docs/how-to/fastapi.md` advises, the garbage collector ignores what the
started app consists of.
"""

import asyncio
import gc
import json
import os
import sys
import threading
import time
from typing import Any

from fastapi import FastAPI

from benchmarks.app import OFFLOAD, from_environment
from benchmarks.values import text

TIMEOUT = 600
_TICK = 0.005  # seconds


def make_site(celery: Any, job: dict[str, Any]) -> FastAPI:
    site = FastAPI()
    read = job["kind"] == "both"
    task = celery.tasks["turn" if read else "take"]
    source = text(job["size"] + job["number"], int.from_bytes(os.urandom(4), "little"))

    def value(number: int) -> str:
        """Return a text that no other request has; making it takes no more than a copy."""
        return source[number : number + job["size"]]

    @site.get("/idle/{number}")
    async def idle(number: int) -> int:
        await asyncio.sleep(1)
        return len(value(number))

    if os.environ["BENCH_WAY"] == OFFLOAD:

        @site.get("/{number}")
        async def awaited(number: int) -> int:
            result = await celery.offload.adelay(task, value(number))
            site.state.last = result
            return len(await celery.offload.aget(result, TIMEOUT)) if read else 0

    else:

        @site.get("/{number}")
        def blocking(number: int) -> int:
            site.state.last = result = task.delay(value(number))
            return len(result.get(timeout=TIMEOUT)) if read else 0

    return site


async def request(site: FastAPI, path: str) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    await site({**scope, "http_version": "1.1", "asgi": {"version": "3.0"}}, receive, send)
    assert sent[0]["status"] == 200


async def measured(site: FastAPI, job: dict[str, Any]) -> dict[str, float]:
    folder = "/idle" if job["kind"] == "idle" else ""
    await asyncio.gather(*(request(site, f"{folder}/{number}") for number in range(2)))  # imports
    gc.collect()
    gc.freeze()
    lags: list[float] = []
    threads = 0

    async def watch() -> None:
        nonlocal threads
        while True:
            start = time.perf_counter()
            await asyncio.sleep(_TICK)
            lags.append(max(0.0, time.perf_counter() - start - _TICK))
            threads = max(threads, threading.active_count())

    watching = asyncio.ensure_future(watch())
    start = time.perf_counter()
    requests = []
    for number in range(job["number"]):
        requests.append(asyncio.ensure_future(request(site, f"{folder}/{number}")))
        await asyncio.sleep(0)
    await asyncio.gather(*requests)
    seconds = time.perf_counter() - start
    await asyncio.sleep(2 * _TICK)
    watching.cancel()
    if job["kind"] == "publish":  # let the worker finish
        site.state.last.get(timeout=TIMEOUT)
    lags.sort()
    p99 = lags[min(len(lags) - 1, int(len(lags) * 0.99))]
    return {"max": lags[-1], "p99": p99, "seconds": seconds, "threads": threads}


def main() -> None:
    job = json.loads(sys.argv[1])
    print(json.dumps(asyncio.run(measured(make_site(from_environment(), job), job))))


if __name__ == "__main__":
    main()
