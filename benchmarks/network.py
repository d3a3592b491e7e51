"""Question 17: what does it cost over a network?

Broker, result backend, and store are behind a delay line (`benchmarks.delay`) with a round-trip
time and 1 Gbit/s for all connections together. Texts travel as an argument that is new, as one that
was sent before, and as a result; one at a time and many at once. The ratio is the median of
offload's time divided by that of the faster plain way just before or after. Single calls take
turns, so that a slow moment of the machine affects all ways.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.app import OFFLOAD, PLAIN_JSON, PLAIN_PICKLE
from benchmarks.measure import alternately, median, peak, ratio, reset_peak, resident
from benchmarks.processes import Setting, setting
from benchmarks.report import Judge, Scale
from benchmarks.values import equal, text
from offload.settings import Settings

TITLE = "Over a network: latency and 1 Gbit/s between everyone and Redis"
WAYS = (PLAIN_JSON, PLAIN_PICKLE, OFFLOAD)
_RATE = 1000  # Mbit/s
_MOST = 1.05  # of plain Celery's time, from the default threshold up
_ONE_BY_ONE = 8  # tasks in a round
_TIMEOUT = 300

Calls = Callable[[str, int], Sequence[Callable[[], Any]]]
"""Returns calls that send a number of tasks in a way."""


def run(scale: Scale, judge: Judge) -> None:
    times, sizes, number, most = scale.network
    with setting(WAYS, slow=True) as servers:
        apps = {way: servers.app(way) for way in WAYS}
        for milliseconds in times:
            assert servers.line is not None
            servers.line.set(milliseconds, _RATE)
            for size in sizes:
                kinds = {
                    "new argument": lambda way, n, size=size: _new(apps[way], size, n),
                    "repeated argument": lambda way, n, size=size: _repeated(apps[way], size, n),
                    "result": lambda way, n, size=size: _results(apps[way], size, n),
                }
                for kind, calls in kinds.items():
                    many = max(2, min(number, most // size))
                    _measure(servers, scale, judge, (milliseconds, kind), size, many, calls)
        servers.line.set(0, 1e6)


def _new(app: Any, size: int, number: int) -> list[Callable[[], Any]]:
    values = [text(size, _seed()) for _ in range(number)]
    return [lambda value=value: app.tasks["take"].delay(value) for value in values]


def _repeated(app: Any, size: int, number: int) -> list[Callable[[], Any]]:
    value = text(size, _seed())
    app.tasks["take"].delay(value).get(timeout=_TIMEOUT)
    values = [equal(value) for _ in range(number)]
    return [lambda value=value: app.tasks["take"].delay(value) for value in values]


def _results(app: Any, size: int, number: int) -> list[Callable[[], Any]]:
    seeds = [_seed() for _ in range(number)]
    return [lambda seed=seed: app.tasks["write"].delay(size, seed) for seed in seeds]


def _seed() -> int:
    return int.from_bytes(os.urandom(4), "little")


def _measure(
    servers: Setting,
    scale: Scale,
    judge: Judge,
    case: tuple[float, str],
    size: int,
    many: int,
    calls: Calls,
) -> None:
    milliseconds, kind = case
    what = f"{milliseconds:g} ms, {kind} of {size / 1000:g} kB"
    goal = _MOST if size >= Settings.threshold else None
    published: dict[str, list[float]] = {way: [] for way in WAYS}
    grown: dict[str, list[tuple[int, int]]] = {way: [] for way in WAYS}

    def one_by_one() -> dict[str, list[float]]:
        ready = {way: iter(calls(way, _ONE_BY_ONE)) for way in WAYS}

        def one(way: str) -> float:
            call = next(ready[way])
            start = time.perf_counter()
            call().get(timeout=_TIMEOUT)
            return time.perf_counter() - start

        found = alternately({way: partial(one, way) for way in WAYS}, _ONE_BY_ONE)
        for way in WAYS:
            servers.forget(way)
        return found

    def at_once(way: str) -> float:
        prepared = calls(way, many)
        worker = servers.workers[way]
        worker.watch()
        reset_peak()
        before = resident()
        start = time.perf_counter()
        results = [call() for call in prepared]
        published[way].append(time.perf_counter() - start)
        for result in results:
            result.get(timeout=_TIMEOUT)
        lasted = time.perf_counter() - start
        grown[way].append((max(0, peak() - before), max(0, *worker.growth)))
        servers.forget(way)
        return lasted

    def row(label: str, found: dict[str, list[float]], unit: str, factor: float) -> None:
        figures = {way: median(series) * factor for way, series in found.items()}
        plain = min((PLAIN_JSON, PLAIN_PICKLE), key=lambda way: figures[way])
        slower = ratio(found[OFFLOAD], found[plain])
        judge.row(f"{what}, {label}", unit, figures, ratio=slower, at_most=goal, of="of plain")

    one_by_one()  # scripts, connections, imports
    alone: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(scale.rounds):
        for way, series in one_by_one().items():
            alone[way] += series
    row("one at a time", alone, "ms", 1e3)
    found = alternately({way: partial(at_once, way) for way in WAYS}, scale.rounds)
    if kind != "result":  # whose messages are small
        row(f"{many} published", published, "s", 1)
    row(f"{many} at once", found, "s", 1)
    for name, at in (("publisher", 0), ("worker", 1)):
        peaks = {way: median([each[at] for each in grown[way]]) / 1e6 for way in WAYS}
        judge.row(f"{what}, {many} at once: peak of {name}", "MB", peaks)
