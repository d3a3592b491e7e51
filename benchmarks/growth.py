"""Question 14: how does cost grow with the work, compared with plain Celery on JSON?

Each job runs at several counts. A ratio (offload's time over plain Celery's) that stays constant as
the count rises means that offload adds nothing that grows faster than Celery's own cost.
"""

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import Celery, chain, chord, group

from benchmarks.app import OFFLOAD, PLAIN_JSON
from benchmarks.measure import median, peak, ratio, reset_peak, resident, timed
from benchmarks.processes import Setting, setting
from benchmarks.report import Judge, Scale
from benchmarks.values import text

TITLE = "How cost grows with the work"
WAYS = (PLAIN_JSON, OFFLOAD)
_TIMEOUT = 300
_BOUND = 1.2
_MOST = 512 << 20
"""Bytes of all parts together beyond which plain Celery fails: a chord's body is one Redis string,
and Redis drops the connection that awaits the results of a group.
"""
SMALL, MEDIUM, LARGE = 10, 100_000, 1_000_000


@dataclass(frozen=True)
class Job:
    """A job measured at several counts.

    Attributes:
        name: ``{}`` stands for the count.
        run: runs the job with an app, a count, and the result of *prepare*.
        prepare: untimed preparation with an app, a count, and a seed that makes values unique.
        part_bytes: bytes per count that plain Celery transfers at once.
    """

    name: str
    run: Callable[[Celery, int, Any], None]
    counts: Sequence[int]
    part_bytes: int = 0
    prepare: Callable[[Celery, int, int], Any] = lambda _app, _count, seed: seed


def jobs(scale: Scale) -> list[Job]:
    parts, steps, arguments, references = scale.growth
    made = [
        Job(f"{kind} of {{}} parts, {shown} each", run, parts, size)
        for kind, make in (("chord", _chord), ("group", _group))
        for size, shown in ((SMALL, "10 B"), (MEDIUM, "100 kB"), (LARGE, "1 MB"))
        for run in [make(size)]
    ]
    return [
        *made,
        Job("chain of {} steps, 10 B each", _chain(SMALL), steps),
        Job("chain of {} steps, 100 kB each", _chain(MEDIUM), steps),
        Job("message with {} arguments of 100 kB", _message, arguments, MEDIUM),
        Job("chord of {} chords of 10 parts, 100 kB each", _nested, parts[:2], 10 * MEDIUM),
        Job("message with {} references to 10 kB", _references, references, 10_000, _values),
    ]


def run(scale: Scale, judge: Judge) -> None:
    with setting(WAYS, concurrency=2) as servers:
        apps = {way: servers.app(way) for way in WAYS}
        for job in jobs(scale):
            for count in job.counts:
                if count * job.part_bytes < _MOST:
                    _measure(judge, servers, apps, job, count, scale.rounds)


def _measure(
    judge: Judge, servers: Setting, apps: dict[str, Celery], job: Job, count: int, rounds: int
) -> None:
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    publisher: dict[str, float] = dict.fromkeys(WAYS, 0)
    child: dict[str, float] = dict.fromkeys(WAYS, 0)
    for number in range(rounds if count < 1000 else max(1, rounds // 2)):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            seed = int.from_bytes(os.urandom(5), "little")
            prepared = job.prepare(apps[way], count, seed)
            worker = servers.workers[way]
            worker.watch()
            gc.collect()
            reset_peak()
            before = resident()
            times[way].append(timed(partial(job.run, apps[way], count, prepared)))
            publisher[way] = max(publisher[way], peak() - before)
            child[way] = max(child[way], worker.growth[1])
            servers.forget(way)
    name = job.name.format(f"{count:,}")
    judge.row(
        name,
        "s",
        {way: median(found) for way, found in times.items()},
        ratio=ratio(times[OFFLOAD], times[PLAIN_JSON]),
        at_most=_BOUND,
        of="of plain",
    )
    for who, found in (("publisher", publisher), ("a worker's child", child)):
        judge.row(f"{name}: peak of {who}", "MB", {way: found[way] / 1e6 for way in WAYS})


def _chord(size: int) -> Callable[[Celery, int, int], None]:
    def run(app: Celery, count: int, seed: int) -> None:
        header = [app.tasks["write"].s(size, seed + at) for at in range(count)]
        done = chord(header, app.tasks["measure"].s()).delay().get(timeout=_TIMEOUT)
        assert done == [count, count * size], done

    return run


def _group(size: int) -> Callable[[Celery, int, int], None]:
    def run(app: Celery, count: int, seed: int) -> None:
        made = group(app.tasks["write"].s(size, seed + at) for at in range(count)).delay()
        assert sum(map(len, made.get(timeout=_TIMEOUT))) == count * size

    return run


def _chain(size: int) -> Callable[[Celery, int, int], None]:
    def run(app: Celery, count: int, seed: int) -> None:
        turns = [app.tasks["turn"].s() for _ in range(count - 1)]
        done = chain(app.tasks["write"].s(size, seed), *turns).delay().get(timeout=_TIMEOUT)
        assert len(done) == size

    return run


def _message(app: Celery, count: int, seed: int) -> None:
    values = [text(MEDIUM, seed + at) for at in range(count)]
    done = app.tasks["measure"].delay(*values).get(timeout=_TIMEOUT)
    assert done == [count, count * MEDIUM], done


def _nested(app: Celery, count: int, seed: int) -> None:
    measure, write = app.tasks["measure"], app.tasks["write"]
    inner = [
        chord([write.s(MEDIUM, seed + 10 * at + part) for part in range(10)], app.tasks["join"].s())
        for at in range(count)
    ]
    done = chord(inner, measure.s()).delay().get(timeout=_TIMEOUT)
    assert done == [count, count * 10 * MEDIUM], done


def _values(app: Celery, count: int, seed: int) -> list[Any]:
    values = [text(10_000, seed + at) for at in range(count)]
    offload = getattr(app, "offload", None)
    return values if offload is None else [offload.put(value) for value in values]


def _references(app: Celery, count: int, values: list[Any]) -> None:
    done = app.tasks["measure"].delay(values).get(timeout=_TIMEOUT)
    assert done == [count, count * 10_000], done
