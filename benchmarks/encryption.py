"""Question 18: what does encryption cost?

Arrays are published, received, and read, without keys and with one. Each measurement runs in a
fresh publishing process (`benchmarks.publisher`), and the ways alternate. ``again`` is another
object with the same content. Publisher and worker share a node cache, so what the worker reads
isn't decrypted. Reading from the store, as a worker on another machine does, is measured in this
process.
"""

import os
from typing import Any

from benchmarks.app import ENCRYPTED, OFFLOAD
from benchmarks.measure import alternately, median, ratio, timed
from benchmarks.processes import Setting, setting
from benchmarks.report import Judge, Scale
from benchmarks.values import array

TITLE = "Encryption"
WAYS = (OFFLOAD, ENCRYPTED)
_MB = 1_000_000
_MOST = 1.3  # times offload without encryption, of the largest array end to end
_SMALL = 10 * _MB  # bytes below which measurements are repeated more often


def run(scale: Scale, judge: Judge) -> None:
    with setting(WAYS) as servers:
        for size in scale.encrypted:
            rounds = scale.rounds if size >= _SMALL else 2 * scale.rounds
            found = _rounds(servers, rounds, size)
            _rows(judge, size, found, largest=size == max(scale.encrypted))
            _read(servers, judge, size, 2 * scale.rounds)


def _rounds(servers: Setting, rounds: int, size: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for way in WAYS:  # exclude the workers' imports
        servers.publisher(way, {"kind": "array", "size": min(size, _MB), "seed": 0})
    for number in range(rounds):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            worker = servers.workers[way]
            worker.watch()
            one = servers.publisher(way, {"kind": "array", "size": size, "seed": _seed()})
            one["worker main"], one["worker child"] = worker.growth
            found[way].append(one)
            servers.empty_store(way)
    return found


def _rows(
    judge: Judge, size: int, found: dict[str, list[dict[str, Any]]], *, largest: bool
) -> None:
    what = f"array of {size / _MB:g} MB: "
    for label, name in (
        ("publish", "publish"),
        ("end to end", "latency"),
        ("publisher's CPU", "cpu"),
    ):
        for shown, time in (("new", "first"), ("again", "again")):
            series = {way: [one[time][name] for one in each] for way, each in found.items()}
            is_target = largest and (name, time) == ("latency", "first")
            judge.row(
                f"{what}{label}, {shown}",
                "ms",
                {way: median(times) * 1e3 for way, times in series.items()},
                ratio=ratio(series[ENCRYPTED], series[OFFLOAD]),
                at_most=_MOST if is_target else None,
            )
    peaks = {way: median([one["first"]["peak"] for one in each]) for way, each in found.items()}
    judge.row(
        f"{what}publisher's extra peak", "MB", {way: peak / _MB for way, peak in peaks.items()}
    )
    for name in ("worker main", "worker child"):
        judge.row(
            f"{what}{name} process grows by at most",
            "MB",
            {way: max(one[name] for one in each) / _MB for way, each in found.items()},
        )


def _read(servers: Setting, judge: Judge, size: int, rounds: int) -> None:
    value = array(size, _seed())
    refs = {way: servers.app(way, cache="off").offload.put(value) for way in WAYS}
    reads = {way: lambda ref=ref: timed(ref.get) for way, ref in refs.items()}
    alternately(reads, 1)  # connections
    found = alternately(reads, rounds)
    judge.row(
        f"array of {size / _MB:g} MB: read from the store",
        "ms",
        {way: median(times) * 1e3 for way, times in found.items()},
        ratio=ratio(found[ENCRYPTED], found[OFFLOAD]),
    )
    for way in WAYS:
        servers.empty_store(way)


def _seed() -> int:
    return int.from_bytes(os.urandom(4), "little")
