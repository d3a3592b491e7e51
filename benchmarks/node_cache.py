"""Question 7: how much does a value in the node cache cost?

Reading is `Ref.get`. It maps the file without touching it, so each read is also shown with one
use of all bytes, which no cache can avoid. For eight processes that have the same value, memory is
their proportional set size, which counts shared pages once.
"""

import gc
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.app import OFFLOAD, PLAIN_PICKLE, make_app
from benchmarks.measure import median, ratio, timed
from benchmarks.processes import Setting, setting
from benchmarks.report import Judge, Scale
from benchmarks.values import array

TITLE = "A value in the node cache"
PROCESSES = 8
_SHM = Path("/dev/shm")  # noqa: S108 (a folder made by mkdtemp)
_WARM = 20  # reads per round, of which the median counts
_MB = 1_000_000


def run(scale: Scale, judge: Judge) -> None:
    with setting() as servers, _folder() as folder:
        _read(servers, scale, judge, folder)
        _memory(servers, scale, judge, folder)
    with setting((PLAIN_PICKLE, OFFLOAD)) as servers:
        _task(servers, scale, judge)


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="offload-bench-", dir=_SHM if _SHM.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _read(servers: Setting, scale: Scale, judge: Judge, folder: Path) -> None:
    size = scale.again
    plain = servers.app(OFFLOAD, cache="off").offload
    cached = servers.app(OFFLOAD, cache=folder, cache_size=4 * size).offload
    ref = cached.put(array(size, 1))
    others = plain.get(ref), cached.get(ref)  # connections, imports
    del others
    found: dict[str, list[float]] = {name: [] for name in ("off", "cold", "warm")}
    used: dict[str, list[float]] = {name: [] for name in found}

    def measure(offload: Any) -> tuple[float, float]:
        opened = offload._runtime.content.open(ref.wire)
        gc.collect()
        value = []
        read = timed(lambda: value.append(opened.get()))
        return read, read + timed(value[0].sum)

    def measure_into(name: str, offload: Any, times: int = 1) -> None:
        figures = [measure(offload) for _ in range(times)]
        found[name].append(median([one for one, _ in figures]))
        used[name].append(median([one for _, one in figures]))

    for _ in range(scale.rounds):
        measure_into("off", plain)
        for file in folder.iterdir():
            file.unlink()
        measure_into("cold", cached)
        measure_into("warm", cached, _WARM)
    what = f"array of {size / _MB:g} MB: "
    for label, figures, goal in (
        ("read", found, 50),
        ("read and summed up", used, None),
    ):
        judge.row(
            what + label + ", by the cache's state",
            "ms",
            {name: median(times) * 1e3 for name, times in figures.items()},
            ratio=ratio(figures["cold"], figures["warm"]),
            at_least=goal,
        )


def _memory(servers: Setting, scale: Scale, judge: Judge, folder: Path) -> None:
    size, number = scale.again, PROCESSES if scale.judged else 2
    urls = servers.urls(OFFLOAD)
    ref = servers.app(OFFLOAD, cache="off").offload.put(array(size, 2))
    context = multiprocessing.get_context("spawn")
    pipes, readers = [], []
    for _ in range(number):
        ours, theirs = context.Pipe()
        reader = context.Process(
            target=_reader, args=(theirs, urls, str(folder), 4 * size, ref.wire), daemon=True
        )
        reader.start()
        pipes.append(ours)
        readers.append(reader)

    def ask(question: str, *numbers: int) -> list[Any]:
        chosen = [pipes[at] for at in numbers or range(number)]
        for pipe in chosen:
            pipe.send(question)
        return [pipe.recv() for pipe in chosen]

    before = sum(ask("memory"))
    sums = ask("read")
    grown = max(0, sum(ask("memory")) - before)
    ask("write", 0)
    changed = sum(one != sums[0] for one in ask("sum", *range(1, number)))
    ask("end")
    for reader in readers:
        reader.join()
    judge.row(
        f"{number} processes read one array of {size / _MB:g} MB: they grow by",
        "MB",
        {OFFLOAD: grown / _MB},
        ratio=grown / size,
        at_most=1.2,
    )
    judge.row(
        "one of them writes: others that see it", "", {OFFLOAD: changed}, at_most=0, of="processes"
    )


def _reader(pipe: Any, urls: dict[str, str], folder: str, size: int, wire: str) -> None:
    """Answer requests in a separate process."""
    app = make_app(OFFLOAD, urls, cache=folder, cache_size=size)
    app.offload.get(app.offload.put(array(2 * _MB, os.getpid())))  # connections, imports
    value = None
    while (question := pipe.recv()) != "end":
        gc.collect()
        if question == "memory":
            pipe.send(_proportional())
        elif question == "write":
            value[:] = 0
            pipe.send(None)
        else:
            if question == "read":
                value = app.offload._runtime.content.open(wire).get()
            pipe.send(float(value.sum()))
    pipe.send(None)


def _proportional() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _task(servers: Setting, scale: Scale, judge: Judge) -> None:
    size = scale.again
    found: dict[str, list[float]] = {PLAIN_PICKLE: [], OFFLOAD: []}
    for number in range(scale.rounds):
        for way in found if number % 2 == 0 else reversed(found):
            job = {"kind": "array", "size": size, "seed": time.time_ns() % 10**9}
            found[way].append(servers.publisher(way, job)["again"]["latency"])
            servers.empty_store(way)
    judge.row(
        f"task with an array of {size / _MB:g} MB, again: latency",
        "ms",
        {way: median(times) * 1e3 for way, times in found.items()},
        ratio=ratio(found[PLAIN_PICKLE], found[OFFLOAD]),
        at_least=120,
    )
