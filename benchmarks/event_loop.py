"""Question 19: does it block an event loop?

A FastAPI app in a fresh process (`benchmarks.web`) publishes a text, waits for its result of the
same size, and reads it, for many requests at once. Meanwhile, a coroutine sleeps for 5 ms again and
again: the lag is how much later it wakes. Plain Celery blocks, so its requests run in FastAPI's
threads, 40 at most. The rows "requests alone" are of the same app without Celery.
"""

import json
from typing import Any

from benchmarks.app import OFFLOAD, PLAIN_JSON
from benchmarks.processes import Setting, run_module, setting
from benchmarks.report import Judge, Scale

TITLE = "Event loop"
WAYS = (PLAIN_JSON, OFFLOAD)
_MOST = 50  # ms of lag
_KINDS = {"idle": "requests alone", "publish": "publish", "both": "publish and read"}


def run(scale: Scale, judge: Judge) -> None:
    numbers, size = scale.concurrent
    with setting(WAYS) as servers:
        for number in numbers:
            for kind, label in _KINDS.items():
                what = f"{number:,} at once, {size / 1e6:g} MB, {label}"
                found = {way: _measured(servers, way, kind, number, size) for way in WAYS}
                _rows(judge, what, found, largest=number == max(numbers) and kind != "idle")


def _measured(servers: Setting, way: str, kind: str, number: int, size: int) -> dict[str, Any]:
    job = {"kind": kind, "number": number, "size": size}
    done = run_module("benchmarks.web", json.dumps(job), env=servers.environment(way))
    if done.returncode:
        raise RuntimeError(f"the web process failed:\n{done.stderr[-3000:]}")
    servers.settle()
    servers.forget(way)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _rows(judge: Judge, what: str, found: dict[str, dict[str, Any]], *, largest: bool) -> None:
    def figures(name: str, factor: float = 1) -> dict[str, float]:
        return {way: each[name] * factor for way, each in found.items()}

    judge.row(
        f"{what}: lag at most",
        "ms",
        figures("max", 1e3),
        at_most=_MOST if largest else None,
        of="ms" if largest else "",
    )
    judge.row(f"{what}: lag, 99%", "ms", figures("p99", 1e3))
    judge.row(f"{what}: until all were served", "s", figures("seconds"))
    judge.row(f"{what}: threads", "", figures("threads"))
