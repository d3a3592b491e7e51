"""Question 12: how much does counting cost?

Publishes and resolves a value just above the threshold, alternating between real counters and
counters that do nothing. Round trips are exchanges with the server. The size of statistics is what
Redis reports for each period once every task was counted with every counter, and for all periods
that are stored at once: the total, three hours of minutes, three days of hours, and 90 days.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

from celery import Celery

from benchmarks.measure import alternately, cpu_of_calls, median, ratio, timed
from benchmarks.report import Judge, Scale
from offload import Counters, Offload
from offload.metrics.counters import NAMES, STEPS
from offload.metrics.prometheus import Collector
from offload.metrics.recorder import Recorder
from offload.metrics.storage import sums_of
from offload.stores import open_store
from offload.stores.redis import client
from offload.stores.sums import KEPT, SPANS
from tests.support.servers import redis_client, redis_server

TITLE = "Counting"
COUNTED, UNCOUNTED, OFFLOAD = "counted", "uncounted", "offload"
_SIZE = 100_000
_ARGUMENTS = 3
_CALLS = 100


class _Nothing(Counters):
    """Counters that do nothing."""

    def about(self, task: str, argument: str = "") -> Any:  # noqa: ARG002
        return nullcontext()

    def add(self, **amounts: int) -> None:
        pass

    def offloaded(self, size: int, repeated: int, *, whole: bool) -> None:
        pass

    def timed(self, step: str) -> Any:  # noqa: ARG002
        return nullcontext(_Step())


class _Step:
    def note(self, *_what: Any, **_more: Any) -> None:
        pass


def run(scale: Scale, judge: Judge) -> None:
    with redis_server() as server:
        _cost(server.url, scale, judge)
    with redis_server() as server, redis_client(server) as client:
        _size(server.url, client, scale, judge)


def _app(url: str, counters: Counters, interval: float) -> Celery:
    app = Celery("counting", broker="memory://", set_as_current=False)
    app.offload = Offload(app, store=url, cache="off", stats_interval=interval)
    app.offload._runtime.counters = counters
    app.task(_take, name="take")
    return app


def _take(value: Any) -> None:
    del value


def _cost(url: str, scale: Scale, judge: Judge) -> None:
    apps = {COUNTED: _app(url, Counters(), 1.0), UNCOUNTED: _app(url, _Nothing(), 0)}
    value = ["some text"] * (_SIZE // 12)
    ref = apps[COUNTED].offload.put(value)

    def publish(app: Celery) -> Callable[[], Any]:
        return lambda: app.amqp.create_task_message("an-id", "take", (value,), {})

    def resolve(app: Celery) -> Callable[[], Any]:
        return lambda: app.offload._runtime.content.open(ref.wire).get()

    for what, make in (("publishing", publish), ("resolving", resolve)):
        ways = {way: make(app) for way, app in apps.items()}
        for call in ways.values():
            call()
        found = alternately(
            {way: lambda c=call: cpu_of_calls(c, _CALLS) for way, call in ways.items()},
            max(scale.rounds, 5) * 2 if scale.judged else 1,
        )
        judge.row(
            f"{what} a list of {_SIZE / 1000:g} kB, CPU",
            "µs",
            {way: median(times) * 1e6 for way, times in found.items()},
            ratio=ratio(found[COUNTED], found[UNCOUNTED]),
            at_most=1.03,
        )
    trips = {way: float(_trips(publish(app))) for way, app in apps.items()}
    judge.row(
        "exchanges with the server for 100 publishings",
        "",
        trips,
        ratio=trips[COUNTED] / trips[UNCOUNTED],
        at_most=1,
    )


def _trips(call: Callable[[], Any]) -> int:
    with patch.object(client, "send", side_effect=client.send) as counted:
        for _ in range(100):
            call()
        return int(counted.call_count)


def _size(url: str, client: Any, scale: Scale, judge: Judge) -> None:
    store = open_store(url)
    count_everything(store, scale.kinds_of_tasks)
    sizes = {"total": float(client.memory_usage(sums_of(store)._key, samples=0))}
    for span in SPANS:
        [key] = client.keys(f"{sums_of(store)._key}:{span}:*")
        sizes[span] = float(client.memory_usage(key, samples=0))
    kinds = scale.kinds_of_tasks
    for span, size in sizes.items():
        what = "total" if span == "total" else f"one {span}"
        judge.row(f"{kinds} tasks: the {what}", "kB", {OFFLOAD: size / 1e3})
    at_once = sum(sizes[span] * (KEPT[span] // seconds) for span, seconds in SPANS.items())
    judge.row(
        f"{kinds} tasks: all that is ever kept, if each runs in every hour",
        "MB",
        {OFFLOAD: (sizes["total"] + at_once) / 1e6},
    )
    collector = Collector(store)
    scrapes = [timed(lambda: list(collector.collect())) for _ in range(scale.rounds)]
    judge.row(
        f"{kinds} tasks: a scrape", "ms", {OFFLOAD: median(scrapes) * 1e3}, at_most=300, of="ms"
    )


def count_everything(store: Any, kinds_of_tasks: int) -> None:
    """Count every task with every counter."""
    for task in range(kinds_of_tasks):
        counters = Counters()
        recorder = Recorder(counters, 1)
        recorder.attach(store)
        for argument in range(_ARGUMENTS):
            with counters.about(f"shop.orders.tasks.make_report_{task}", f"argument_{argument}"):
                counters.add(**dict.fromkeys(NAMES, 10**9))
                for step in STEPS:
                    for seconds in (0.0005, 0.003, 0.01, 0.05):
                        counters.took(step, seconds)
        recorder.write()
