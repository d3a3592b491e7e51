"""Publish one large value twice in a fresh process, and print time and memory.

A fresh process, because memory that was already touched makes publishing cheaper, and because
peak memory is only meaningful in a process that did nothing else.

    python -m benchmarks.publisher '{"kind": "array", "size": 100000000, "seed": 1}'
"""

import ctypes
import gc
import json
import os
import sys
import time
from typing import Any

from benchmarks.app import PROXYSTORE, from_environment
from benchmarks.measure import peak, reset_peak, resident
from benchmarks.values import equal, value

TIMEOUT = 120
_WARM = 2_000_000


def main() -> None:
    job = json.loads(sys.argv[1])
    app = from_environment()
    take = app.tasks["take"]
    wrap = _wrapper()
    # Warm up connections, imports, and the signing key, as in a running publisher.
    take.delay(wrap(value(job["kind"], min(_WARM, job["size"]), job["seed"] + 10**6))).get(
        timeout=TIMEOUT
    )
    first = value(job["kind"], job["size"], job["seed"])
    found = {"first": _measured(take, wrap, first)}
    second = equal(first)
    del first
    found["again"] = _measured(take, wrap, second)
    print(json.dumps(found))


def _measured(take: Any, wrap: Any, large: Any) -> dict[str, float]:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else freed memory may hide a peak
    reset_peak()
    before = resident()
    cpu = time.process_time()
    start = time.perf_counter()
    result = take.delay(wrap(large))
    published = time.perf_counter() - start
    extra = peak() - before
    assert result.get(timeout=TIMEOUT) == len(large)
    return {
        "publish": published,
        "latency": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "peak": extra,
    }


def _wrapper() -> Any:
    if os.environ["BENCH_WAY"] != PROXYSTORE:
        return lambda large: large
    from proxystore.connectors.redis import RedisConnector
    from proxystore.store import Store, register_store

    host, _, rest = os.environ["BENCH_STORE"].removeprefix("redis://").partition(":")
    port, _, _database = rest.partition("/")
    store = Store("bench", RedisConnector(host, int(port)))
    register_store(store)
    return store.proxy


if __name__ == "__main__":
    main()
