"""Question 9: how much does hold tracking cost?

Round trips are the server's own count of commands: publishing a stored value checks for it and
holds it in one. Memory is the increase in one server, for many small blobs with and without one
holder each, and for many holders of one blob. A sweep scans all blobs and deletes those that have
expired, here half of them.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.app import OFFLOAD
from benchmarks.measure import commands, reset_counters, timed
from benchmarks.processes import setting
from benchmarks.report import Judge, Scale
from benchmarks.values import array
from offload.digest import Digest, digest_of
from offload.stores import open_store
from offload.stores.file import FileStore
from tests.support.servers import redis_client, redis_server

TITLE = "Hold tracking: round trips, memory, and sweeps"
HOUR = 3600.0
_AT_ONCE = 1000
_CONTENT = 100  # bytes of a small blob


def run(scale: Scale, judge: Judge) -> None:
    _round_trips(scale, judge)
    _memory(scale, judge)
    _sweep(scale, judge)


def _round_trips(scale: Scale, judge: Judge) -> None:
    size = scale.again
    with setting((OFFLOAD,), separate=True) as servers:
        app, store = servers.app(OFFLOAD), servers.client()
        take = app.tasks["take"]
        take.delay(array(size, 1)).get(timeout=60)
        servers.settle()
        value = array(size, 1)
        reset_counters(store)
        app.amqp.create_task_message("an-id", take.name, (value,), {})
        publishing = sum(commands(store).values())
        judge.row(
            f"array of {size / 1e6:g} MB, stored already: publishing",
            "round trips",
            {"offload": publishing},
            at_most=2,  # the first is made while the rest is hashed
            of="round trips",
        )
        reset_counters(store)
        take.delay(value).get(timeout=60)
        servers.settle()
        judge.row(
            "… its task, which gives it up: both together",
            "round trips",
            {"offload": sum(commands(store).values())},
        )


def _memory(scale: Scale, judge: Judge) -> None:
    number = scale.blobs
    digests = _digests(number)
    with redis_server() as server, redis_client(server) as client:
        blobs = open_store(server.url).blobs

        def grown(work: Callable[[], None]) -> float:
            before = client.info("memory")["used_memory"]
            work()
            return float(client.info("memory")["used_memory"] - before)

        def put() -> None:
            for some in _batches(digests):
                blobs.put({digest: [os.urandom(_CONTENT)] for digest in some}, HOUR)

        def hold(holder: str) -> None:
            for some in _batches(digests):
                blobs.hold(some, HOUR, holder)

        def hold_one() -> None:
            for at in range(number):
                blobs.hold(digests[:1], HOUR, f"task:{_task_id(at)}")

        each = grown(put) / number
        first = grown(lambda: hold(f"task:{_task_id(0)}")) / number
        more = grown(lambda: [hold(f"task:{_task_id(at)}") for at in range(1, 11)] and None)
        row = judge.row
        row(f"Redis: each of {number} blobs of {_CONTENT} bytes", "bytes", {"offload": each})
        row("Redis: the first hold of a blob", "bytes", {"offload": first})
        row("Redis: each of ten more", "bytes", {"offload": more / number / 10})
        many = grown(hold_one) / number
        row(f"Redis: each of {number} holds of one blob", "bytes", {"offload": many})


def _sweep(scale: Scale, judge: Judge) -> None:
    number = scale.blobs
    digests = _digests(number)
    with redis_server() as server:
        store = open_store(server.url)
        for some in _batches(digests):
            store.blobs.put({digest: [b"x" * _CONTENT] for digest in some}, HOUR)
        judge.row(
            f"sweep of Redis with {number} blobs, which removes what has ended by itself",
            "ms",
            {"offload": timed(lambda: list(store.sweep())) * 1e3},
        )
    with tempfile.TemporaryDirectory(prefix="offload-bench-") as folder:
        now = [time.time() - 10 * HOUR]
        files = FileStore(Path(folder), skew=0, fsync=False, clock=lambda: now[0])
        for at, some in enumerate(_batches(digests)):
            life = HOUR if at % 2 else 3 * HOUR
            files.blobs.put({digest: [b"x" * _CONTENT] for digest in some}, life)
        now[0] += 2 * HOUR
        took: dict[str, float] = {}
        gone: dict[str, int] = {}
        for dry_run, how in ((True, "dry"), (False, "offload")):
            found: list[object] = []
            took[how] = timed(lambda: found.extend(files.sweep(dry_run=dry_run)))  # noqa: B023
            gone[how] = len(found)
        assert gone["dry"] == gone["offload"] >= number // 2 - _AT_ONCE
        judge.row(
            f"sweep of {number} files, half of which have ended",
            "s",
            took,
        )


def _digests(number: int) -> list[Digest]:
    return [digest_of([at.to_bytes(8, "little")]) for at in range(number)]


def _batches(digests: list[Digest]) -> list[list[Digest]]:
    return [digests[at : at + _AT_ONCE] for at in range(0, len(digests), _AT_ONCE)]


def _task_id(number: int) -> str:
    return f"{number:08x}-1234-4567-89ab-0123456789ab"
