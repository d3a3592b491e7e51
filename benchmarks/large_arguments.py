"""Question 2: one large argument, the first time and again.

Each measurement runs in a fresh publishing process (`benchmarks.publisher`), and the ways
alternate. ``again`` is another object with the same content.
"""

import os
from typing import Any

from benchmarks.app import OFFLOAD, PLAIN_JSON, PLAIN_PICKLE, PROXYSTORE
from benchmarks.measure import median, ratio
from benchmarks.processes import Setting, setting
from benchmarks.report import Judge, Scale

TITLE = "One large argument"
WAYS = (PLAIN_JSON, PLAIN_PICKLE, PROXYSTORE, OFFLOAD)
_MB = 1_000_000
_PUBLISH = {"array": 15, "str": 8}
_LATENCY = {"array": 35, "str": 8}
_LATENCY_AGAIN = {"array": 200}


def run(scale: Scale, judge: Judge) -> None:
    with setting(WAYS) as servers:
        for size in scale.large:
            for kind in scale.kinds:
                found = _rounds(servers, scale, kind, size)
                _rows(judge, kind, size, found, largest=size == max(scale.large))


def _rounds(
    servers: Setting, scale: Scale, kind: str, size: int
) -> dict[str, list[dict[str, Any]]]:
    ways = [way for way in WAYS if way != PLAIN_JSON or kind == "str"]  # it can't transfer arrays
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for way in ways:  # exclude the workers' imports for this kind
        servers.publisher(way, {"kind": kind, "size": min(size, _MB), "seed": 0})
    for number in range(scale.rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            servers.empty_store(way)
            worker = servers.workers[way]
            worker.watch()
            seed = int.from_bytes(os.urandom(4), "little")
            one = servers.publisher(way, {"kind": kind, "size": size, "seed": seed})
            one["worker main"], one["worker child"] = worker.growth
            found[way].append(one)
            servers.empty_store(way)
    return found


def _rows(
    judge: Judge, kind: str, size: int, found: dict[str, list[dict[str, Any]]], *, largest: bool
) -> None:
    what = f"{kind} of {size / _MB:g} MB: "

    def of(name: str, time: str) -> dict[str, list[float]]:
        return {way: [one[time][name] for one in rounds] for way, rounds in found.items()}

    def speed(
        label: str,
        series: dict[str, list[float]],
        plain: dict[str, list[float]],
        goal: float | None,
    ) -> None:
        judge.row(
            what + label,
            "ms",
            {way: median(times) * 1e3 for way, times in series.items()},
            ratio=ratio(plain[PLAIN_PICKLE], series[OFFLOAD]),
            at_least=goal if largest else None,
        )

    first, again = of("publish", "first"), of("publish", "again")
    speed("publish, first", first, first, _PUBLISH.get(kind))
    speed("publish, again", again, again, 30 if kind == "array" else None)
    latency = of("latency", "first")
    speed("latency, first", latency, latency, _LATENCY.get(kind))
    latency = of("latency", "again")
    speed("latency, again", latency, latency, _LATENCY_AGAIN.get(kind))
    extra = of("peak", "first")
    judge.row(
        what + "publisher's extra peak",
        "MB",
        {way: median(peaks) / _MB for way, peaks in extra.items()},
        at_most=16 if kind == "array" else None,
        of="MB",
    )
    for name, goal in (("worker main", 5), ("worker child", None)):
        judge.row(
            f"{what}{name} process grows by at most",
            "MB",
            {way: max(one[name] for one in rounds) / _MB for way, rounds in found.items()},
            at_most=goal,
            of="MB",
        )
