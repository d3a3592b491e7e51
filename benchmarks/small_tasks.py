"""Question 1: how much does a task with small arguments cost?

Publishing is measured in this process's CPU time, which other programs disturb less than wall time:
two apps in one process publish in alternating blocks, and the median of the blocks' ratios counts.
The number of function calls, which is exact, is shown as well. A worker's handling of a message is
measured the same way, with Celery's own tracer. End-to-end runs use wall time and real workers.
"""

import cProfile
import json
import pstats
import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.app import trace

from benchmarks.app import OFFLOAD, PLAIN_JSON
from benchmarks.measure import (
    alternately,
    commands,
    cpu_of_calls,
    cpu_seconds,
    median,
    ratio,
    reset_counters,
    wait_drained,
)
from benchmarks.processes import Setting, setting
from benchmarks.report import Judge, Scale

TITLE = "Small tasks: add(2, 2)"
WAYS = (PLAIN_JSON, OFFLOAD)
_BLOCK = 100
_DICTS = (10, 100, 500)  # all of them are below the threshold


def run(scale: Scale, judge: Judge) -> None:
    with setting(separate=True) as servers:
        apps = {way: servers.app(way) for way in WAYS}
        _publishing(scale, judge, servers, apps)
        _executing(scale, judge, apps)
    with setting(WAYS) as servers:
        _end_to_end(scale, judge, servers)


def _publishing(scale: Scale, judge: Judge, servers: Setting, apps: dict[str, Celery]) -> None:
    broker, store = servers.client("broker"), servers.client("store")
    block = min(_BLOCK, scale.tasks)

    def publish(way: str, task: str, *args: Any) -> Callable[[], float]:
        delay = apps[way].tasks[task].delay

        def measured() -> float:
            broker.flushall()
            return cpu_of_calls(lambda: delay(*args), block)

        return measured

    functions = {way: publish(way, "add", 2, 2) for way in WAYS}
    alternately(functions, 2)
    reset_counters(store)
    found = alternately(functions, scale.rounds * max(1, 2 * scale.tasks // block))
    judge.row(
        "publish, CPU of a call",
        "µs",
        {way: median(times) * 1e6 for way, times in found.items()},
        ratio=ratio(found[PLAIN_JSON], found[OFFLOAD]),
        at_least=0.97,
    )
    calls = {way: _python_calls(apps[way].tasks["add"].delay) for way in WAYS}
    judge.row(
        "publish, function calls that the interpreter makes",
        "",
        calls,
        ratio=calls[PLAIN_JSON] / calls[OFFLOAD],
        at_least=0.97,
    )
    for count in _DICTS:
        rows = [{"id": n, "name": f"name {n}", "tags": ["a", "b"]} for n in range(count)]
        found = alternately({way: publish(way, "take", rows) for way in WAYS}, scale.rounds * 2)
        judge.row(
            f"publish {count} small dicts, CPU of a call",
            "µs",
            {way: median(times) * 1e6 for way, times in found.items()},
            ratio=ratio(found[PLAIN_JSON], found[OFFLOAD]),
        )
    trips = sum(commands(store).values())
    judge.row("store commands for all of these", "", {"offload": trips}, at_most=0)


def _python_calls(delay: Callable[..., Any]) -> float:
    """Return the number of function calls of one publish: a cost without noise."""
    number = 50
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(number):
        delay(2, 2)
    profile.disable()
    return float(pstats.Stats(profile).total_calls) / number


def _executing(scale: Scale, judge: Judge, apps: dict[str, Celery]) -> None:
    """Measure a worker child's handling of a message, without the result backend."""
    block = min(_BLOCK, scale.tasks)

    def execute(way: str) -> Callable[[], float]:
        app = apps[way]
        task = app.tasks["add"]
        app.backend.store_result = _nothing
        tracer = trace.build_tracer("add", task, app=app, eager=False)  # offload replaces it
        request = {"id": "x", "args": [2, 2], "kwargs": {}, "delivery_info": {}, "hostname": "h"}
        body = json.dumps([[2, 2], {}, {"callbacks": None, "errbacks": None}])

        def one() -> None:
            args, kwargs, embed = json.loads(body)
            tracer("x", args, kwargs, {**request, **embed})

        return lambda: cpu_of_calls(one, block)

    found = alternately({way: execute(way) for way in WAYS}, scale.rounds * 20)
    judge.row(
        "execute in the worker, CPU of a call without the network",
        "µs",
        {way: median(times) * 1e6 for way, times in found.items()},
        ratio=ratio(found[PLAIN_JSON], found[OFFLOAD]),
    )


def _nothing(*_args: Any, **_options: Any) -> None:
    pass


def _end_to_end(scale: Scale, judge: Judge, servers: Setting) -> None:
    apps = {way: servers.app(way) for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}

    def rate(way: str) -> Callable[[], float]:
        add = apps[way].tasks["add"]
        others = [*servers.workers[way].pids, servers.server().pid]

        def measured() -> float:
            before = time.process_time() + sum(map(cpu_seconds, others))
            start = time.perf_counter()
            wait_drained([add.delay(2, 2) for _ in range(scale.end_to_end)])
            elapsed = time.perf_counter() - start
            cpu[way].append(time.process_time() + sum(map(cpu_seconds, others)) - before)
            return scale.end_to_end / elapsed

        return measured

    functions = {way: rate(way) for way in WAYS}
    alternately(functions, 1)
    for series in cpu.values():
        series.clear()
    found = alternately(functions, scale.rounds * 4)
    judge.row(
        "end to end, one worker child, by the clock",
        "tasks/s",
        {way: median(rates) for way, rates in found.items()},
        ratio=ratio(found[OFFLOAD], found[PLAIN_JSON]),
        at_least=0.99,
    )
    judge.row(
        "end to end, CPU of publisher, worker and server",
        "µs",
        {way: median(times) / scale.end_to_end * 1e6 for way, times in cpu.items()},
        ratio=sum(cpu[PLAIN_JSON]) / sum(cpu[OFFLOAD]),
        at_least=0.97,
    )
