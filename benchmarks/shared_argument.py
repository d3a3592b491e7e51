"""Question 3: how much memory do queued tasks with the same argument take?

No worker runs. INFO shows the increase in memory of one server (broker and store, a new one for
each way).
"""

from benchmarks.app import OFFLOAD, PLAIN_JSON, PLAIN_PICKLE
from benchmarks.processes import setting
from benchmarks.report import Judge, Scale
from benchmarks.values import value

TITLE = "Queued tasks with the same argument: memory of broker and store"
_WAYS = {"array": (PLAIN_PICKLE, OFFLOAD), "str": (PLAIN_JSON, PLAIN_PICKLE, OFFLOAD)}


def run(scale: Scale, judge: Judge) -> None:
    number, size = scale.shared
    for kind, ways in _WAYS.items():
        used = {way: _memory(way, kind, number, size) for way in ways}
        least = min(used[way] for way in ways if way != OFFLOAD)
        judge.row(
            f"{number} tasks with one {kind} of {size / 1e6:g} MB",
            "MB",
            used,
            ratio=least / used[OFFLOAD],
            at_least=50,
        )


def _memory(way: str, kind: str, number: int, size: int) -> float:
    with setting() as servers:
        client = servers.client()
        take = servers.app(way).tasks["take"]
        take.delay([])  # the queue, the connections' buffers
        shared = value(kind, size, seed=1)
        before = client.info("memory")["used_memory"]
        for at in range(number):
            take.delay(shared, at)
        return (client.info("memory")["used_memory"] - before) / 1e6
