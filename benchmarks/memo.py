"""Question 16: how much does a remembered result cost, and how much looking for one in vain?

A hit with a large argument is compared with a small task, both by one worker child, the argument
passed by its reference. Calls that are all different, which look for results in vain and write
them, are compared with the same small task without memo.
"""

import itertools
import time
from collections.abc import Callable

from benchmarks.app import OFFLOAD
from benchmarks.measure import (
    alternately,
    commands,
    cpu_seconds,
    median,
    ratio,
    requests,
    reset_counters,
    timed,
    wait_drained,
)
from benchmarks.processes import setting
from benchmarks.report import Judge, Scale
from benchmarks.values import array

TITLE = "Remembered results"
_HITS = 20  # calls, one after another, in a round


def run(scale: Scale, judge: Judge) -> None:
    with setting((OFFLOAD,), separate=True) as servers:
        app, store = servers.app(OFFLOAD), servers.client("store")
        add, once = app.tasks["add"], app.tasks["add_once"]
        take = app.tasks["take_once"]
        ref = app.offload.put(array(scale.again, 1))
        size = f"{scale.again / 1e6:,.1f} MB"

        def hit() -> float:
            return timed(lambda: [take.delay(ref).get(timeout=60) for _ in range(_HITS)]) / _HITS

        def small() -> float:
            return timed(lambda: [add.delay(2, 2).get(timeout=60) for _ in range(_HITS)]) / _HITS

        alternately({"hit": hit, "small": small}, 1)
        servers.settle()
        reset_counters(store)
        hit()
        servers.settle()
        fetched = commands(store).get("getrange", 0)
        found = alternately({"small task": small, "hit": hit}, scale.rounds * 2)
        judge.row(
            f"latency of a hit with {size}, next to a small task",
            "ms",
            {name: median(times) * 1e3 for name, times in found.items()},
            ratio=ratio(found["hit"], found["small task"]),
            at_most=1.3,
        )
        judge.row(f"chunks fetched by {_HITS} hits", "", {"offload": fetched}, at_most=0)

        numbers = itertools.count()
        others = [*servers.workers[OFFLOAD].pids, *{s.pid for s in servers.servers.values()}]
        cpu: dict[str, list[float]] = {"without memo": [], "all different": []}

        def rate(name: str, task: object) -> Callable[[], float]:
            def measured() -> float:
                before = time.process_time() + sum(map(cpu_seconds, others))
                start = time.perf_counter()
                wait_drained(
                    [task.delay(next(numbers), 2) for _ in range(scale.end_to_end)]  # type: ignore[attr-defined]
                )
                elapsed = time.perf_counter() - start
                cpu[name].append(time.process_time() + sum(map(cpu_seconds, others)) - before)
                return scale.end_to_end / elapsed

            return measured

        functions = {
            "without memo": rate("without memo", add),
            "all different": rate("all different", once),
        }
        alternately(functions, 1)
        for series in cpu.values():
            series.clear()
        before = requests(store)
        found = alternately(functions, scale.rounds * 2)
        servers.settle()
        calls = requests(store) - before
        judge.row(
            "throughput of calls that are all different",
            "tasks/s",
            {name: median(rates) for name, rates in found.items()},
            ratio=ratio(found["all different"], found["without memo"]),
            at_least=0.9,
        )
        judge.row(
            "their CPU: publisher, worker, and servers",
            "µs",
            {name: median(times) / scale.end_to_end * 1e6 for name, times in cpu.items()},
            ratio=sum(cpu["without memo"]) / sum(cpu["all different"]),
        )
        computed = scale.end_to_end * len(found["all different"])
        judge.row("round trips to the store of such a call", "", {"offload": calls / computed})
