"""Question 6: from which size does offloading pay off, and with how many distinct arguments?

The same tasks run with everything offloaded (threshold 1) and with plain Celery. A task's cost is
the CPU time of publisher, worker, and server, which is steadier on a busy machine than wall time.
Both are shown.
"""

import itertools
import os
import time
from collections.abc import Callable

from benchmarks.app import OFFLOAD, PLAIN_JSON
from benchmarks.measure import alternately, cpu_seconds, median, ratio, wait_drained
from benchmarks.processes import Setting, setting
from benchmarks.report import Judge, Scale
from benchmarks.values import text

TITLE = "Cost of a task by the size of its argument (str): in the message or offloaded"
WAYS = (PLAIN_JSON, OFFLOAD)
_DISTINCT = (1, 10, 100)
_MOST = 200_000_000  # bytes of all tasks of one measurement


def run(scale: Scale, judge: Judge) -> None:
    with setting() as servers:
        servers.worker(PLAIN_JSON)
        servers.worker(OFFLOAD, threshold=1)
        for distinct, size in itertools.product(_DISTINCT, scale.sizes):
            tasks = max(1, min(scale.distinct_tasks, _MOST // size))
            if tasks < distinct and distinct > _DISTINCT[0] and size > _MOST // distinct:
                continue
            _size(servers, scale, judge, size, min(distinct, tasks), tasks)


def _size(
    servers: Setting, scale: Scale, judge: Judge, size: int, distinct: int, tasks: int
) -> None:
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    apps = {PLAIN_JSON: servers.app(PLAIN_JSON), OFFLOAD: servers.app(OFFLOAD, threshold=1)}

    def measured(way: str) -> Callable[[], float]:
        take = apps[way].tasks["take"]
        others = [*servers.workers[way].pids, servers.server().pid]

        def measure() -> float:
            servers.empty_store(way)
            seed = int.from_bytes(os.urandom(4), "little")
            values = [text(size, seed + at) for at in range(distinct)]
            before = time.process_time(), sum(map(cpu_seconds, others))
            start = time.perf_counter()
            wait_drained([take.delay(values[at % distinct], at) for at in range(tasks)])
            elapsed = time.perf_counter() - start
            used = time.process_time() - before[0] + sum(map(cpu_seconds, others)) - before[1]
            cpu[way].append(used / tasks)
            return elapsed / tasks

        return measure

    functions = {way: measured(way) for way in WAYS}
    alternately(functions, 1)
    for series in cpu.values():
        series.clear()
    wall = alternately(functions, scale.rounds)
    label = f"{size / 1000:g} kB, {distinct} distinct of {tasks}"
    for unit, found in (("ms of CPU", cpu), ("ms", wall)):
        judge.row(
            label,
            unit,
            {way: median(found[way]) * 1e3 for way in WAYS},
            ratio=ratio(found[PLAIN_JSON], found[OFFLOAD]),
        )
