"""Question 15: how much does a store in a SQLite file cost, next to one in files?

Both are asked the same: to store blobs, to hold and release them for a task, and to read them, from
one process, and to store them from four at once. Each is measured with and without `fsync`.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import alternately, median, ratio, timed
from benchmarks.report import Judge, Scale
from offload.digest import Digest, digest_of
from offload.stores import Store, open_store

TITLE = "A store in a SQLite file, next to one in files"
HOUR = 3600.0
PROCESSES = 4
_SIZES = ((10_000, 100), (1_000_000, 20), (4 << 20, 10))  # bytes of a blob, and how many
_FORK = multiprocessing.get_context("fork")


def run(scale: Scale, judge: Judge) -> None:
    for fsync in (True, False):
        for size, count in _SIZES if scale.judged else _SIZES[:1]:
            _measure(scale, judge, size, count, fsync=fsync)


def _measure(scale: Scale, judge: Judge, size: int, count: int, *, fsync: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="offload-bench-", dir=Path.cwd()) as folder:
        options = "" if fsync else "?fsync=no"
        urls = {
            "files": f"file://{folder}/files{options}",
            "sqlite": f"sqlite://{folder}/offload.db{options}",
        }
        stores = {name: open_store(url) for name, url in urls.items()}
        kept: dict[str, list[Digest]] = {name: [] for name in stores}

        def put(name: str) -> float:
            some = _blobs(size, count)
            kept[name] = list(some)
            return timed(lambda: [stores[name].blobs.put({d: [some[d]]}, HOUR) for d in some])

        def hold(name: str) -> float:
            return timed(lambda: _hold(stores[name], kept[name]))

        def read(name: str) -> float:
            return timed(lambda: list(stores[name].blobs.get(kept[name], size)))

        def put_at_once(name: str) -> float:
            return timed(lambda: _together(urls[name], size, count // PROCESSES or 1))

        for what, function in (
            ("put", put),
            ("hold and release", hold),
            ("get", read),
            (f"put by {PROCESSES} processes", put_at_once),
        ):
            _row(scale, judge, f"{what}, {size:,} bytes{'' if fsync else ', no fsync'}", function)
        for store in stores.values():
            store.close()


def _row(scale: Scale, judge: Judge, what: str, function: Callable[[str], float]) -> None:
    times = alternately(
        {"files": lambda: function("files"), "sqlite": lambda: function("sqlite")}, scale.rounds
    )
    figures = {name: median(found) * 1e3 for name, found in times.items()}
    judge.row(what, "ms", figures, ratio=ratio(times["sqlite"], times["files"]), of="of files")


def _blobs(size: int, count: int) -> dict[Digest, bytes]:
    contents = [os.urandom(size) for _ in range(count)]
    return {digest_of([content]): content for content in contents}


def _hold(store: Store, digests: list[Digest]) -> None:
    for number, digest in enumerate(digests):
        store.blobs.hold([digest], HOUR, f"task:{number}")
        store.blobs.release([digest], f"task:{number}", 60)


def _together(url: str, size: int, count: int) -> None:
    children = [_FORK.Process(target=_put, args=(url, size, count)) for _ in range(PROCESSES)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    if any(child.exitcode for child in children):
        raise RuntimeError(f"a process failed to put blobs into {url}")


def _put(url: str, size: int, count: int) -> None:
    store = open_store(url)
    for digest, content in _blobs(size, count).items():
        store.blobs.put({digest: [content]}, HOUR)
