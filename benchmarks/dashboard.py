"""Question 13: how long does a page of the dashboard take, and what does it cost the store?

``celery offload dashboard`` runs in its own process. Pages are requested over loopback after their
caches have expired, so that each is rendered from new data. The store has many small blobs, half of
them held, and statistics of many tasks. A page of blobs comes from a background scan of all blobs.
Meanwhile, the overview is requested repeatedly.
"""

import os
import re
import signal
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.app import OFFLOAD
from benchmarks.measure import median, resident, timed
from benchmarks.processes import PATIENCE, ROOT, start_module
from benchmarks.report import Judge, Scale
from benchmarks.statistics import count_everything
from offload.digest import Digest
from offload.stores import open_store
from tests.support.processes import wait_until
from tests.support.servers import redis_server

TITLE = "Pages of the dashboard"
HOUR = 3600.0
_AT_ONCE = 1000
_CONTENT = 100  # minimum bytes of a blob; the maximum is twice as much
_FORGOTTEN = 2.5  # seconds after which statistics are read again
_APP = """
from celery import Celery
from offload import Offload

app = Celery("bench", broker="memory://", set_as_current=True)
Offload(app, store={store!r})
"""


@dataclass
class _Dashboard:
    url: str
    pid: int

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as answer:  # noqa: S310
            return str(answer.read().decode())


def run(scale: Scale, judge: Judge) -> None:
    with redis_server() as server:
        digests = _fill(server.url, scale.blobs)
        count_everything(open_store(server.url), scale.kinds_of_tasks)
        with _served(server.url) as dashboard:
            _first_look(dashboard, scale, judge)
            many = f"{scale.blobs:,} blobs, {scale.kinds_of_tasks} tasks"
            chosen = "blobs?sort=expiry&desc=1&larger=120&held=yes"
            # Request another page, or another blob, each time: blobs are cached longer.
            pages: dict[str, Callable[[int], str]] = {
                "overview": lambda _: "",
                "tasks": lambda _: "tasks",
                "values by size": lambda turn: f"values?page={turn + 1}",
                "blobs by size": lambda turn: f"blobs?page={turn + 1}",
                "blobs by expiry, chosen by size and holders": (
                    lambda turn: f"{chosen}&page={turn + 1}"
                ),
                "one blob": lambda turn: f"blobs/{digests[turn]}",
            }
            for name, path in pages.items():
                times = [_timed(dashboard, path(turn), scale) for turn in range(scale.rounds)]
                judge.row(
                    f"{many}: {name}", "ms", {OFFLOAD: median(times) * 1e3}, at_most=300, of="ms"
                )
            seconds = timed(lambda: dashboard.get("blobs?by=task-2"))
            judge.row(f"{many}: blobs, by who holds them", "ms", {OFFLOAD: seconds * 1e3})


def _first_look(dashboard: _Dashboard, scale: Scale, judge: Judge) -> None:
    """Measure the scan of all blobs, and the overview during it."""
    dashboard.get("")
    before = resident(dashboard.pid)
    dashboard.get("values")
    meanwhile: list[float] = []
    start = time.monotonic()
    while "Scanning the store" in dashboard.get("blobs"):
        meanwhile.append(timed(lambda: dashboard.get("")))
        time.sleep(0.05)
    took = time.monotonic() - start
    judge.row(f"{scale.blobs:,} blobs: the look at all of them", "s", {OFFLOAD: took})
    judge.row(
        "… memory of the dashboard that it adds",
        "MB",
        {OFFLOAD: max(resident(dashboard.pid) - before, 0) / 1e6},
    )
    if meanwhile:
        judge.row(
            "… the overview meanwhile",
            "ms",
            {OFFLOAD: median(meanwhile) * 1e3},
            at_most=300,
            of="ms",
        )


def _timed(dashboard: _Dashboard, path: str, scale: Scale) -> float:
    if scale.judged:
        time.sleep(_FORGOTTEN)
    return timed(lambda: dashboard.get(path))


def _fill(url: str, number: int) -> list[Digest]:
    """Store small blobs, and hold every other one; return their digests."""
    blobs = open_store(url).blobs
    digests = [Digest(f"b3:{os.urandom(32).hex()}") for _ in range(number)]
    for begin in range(0, number, _AT_ONCE):
        some = digests[begin : begin + _AT_ONCE]
        parts = {
            digest: [b"\x00" + bytes(_CONTENT + at % _CONTENT)] for at, digest in enumerate(some)
        }
        blobs.put(parts, HOUR + begin)
        blobs.hold(some[::2], HOUR, f"task:task-{begin // _AT_ONCE}")
    return digests


@contextmanager
def _served(store: str) -> Iterator[_Dashboard]:
    with tempfile.TemporaryDirectory(prefix="offload-bench-") as name:
        folder = Path(name)
        (folder / "bench.py").write_text(_APP.format(store=store))
        log = folder / "log"
        with log.open("wb") as file:
            process = start_module(
                "celery",
                *("-A", "bench", "offload", "dashboard", "--port=0"),
                env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
                output=file,
                cwd=folder,
            )
        try:
            wait_until(lambda: _address(log), "the dashboard is open", PATIENCE)
            yield _Dashboard(_address(log), process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)


def _address(log: Path) -> str:
    found = re.search(r"(http://\S+) is open", log.read_text())
    return "" if found is None else found[1]
