"""Question 10: how much network traffic do tasks cause that share a few large arrays?

A store of two tiers, Redis and S3, and one worker with two processes. Bytes are counted from
outside: by the Redis servers, and by a relay in front of S3. The bytes delivered are the size of
the array for each task. Plain Celery would send them twice, into the broker and out of it.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks.app import OFFLOAD
from benchmarks.measure import network, reset_counters, wait_drained
from benchmarks.processes import Setting, setting
from benchmarks.relay import relay
from benchmarks.report import Judge, Scale
from benchmarks.values import array
from tests.support.s3_server import s3_server

TITLE = "Many tasks over a few large arrays, in two tiers: bytes over the network"
_MB = 1_000_000
_AHEAD = 50  # tasks queued at once, so that a slow worker doesn't fill the broker


def run(scale: Scale, judge: Judge) -> None:
    tasks, distinct, size = scale.tiered
    with (
        s3_server() as s3,
        relay(s3.port) as through,
        setting(separate=True) as servers,
    ):
        servers.store_after = s3.url("tiers", port=through.port)
        servers.worker(OFFLOAD, concurrency=2)
        clients = {role: servers.client(role) for role in ("broker", "backend", "store")}
        for client in clients.values():
            reset_counters(client)
        before = through.sent, through.received
        _work(servers, tasks, [array(size, seed) for seed in range(distinct)])
        up, down = through.sent - before[0], through.received - before[1]
        redis = {role: network(client) for role, client in clients.items()}
        _report(judge, scale.tiered, {"S3 up": up, "S3 down": down, **redis})


def _work(servers: Setting, tasks: int, arrays: Sequence[Any]) -> None:
    take = servers.app(OFFLOAD).tasks["take"]
    results: list[Any] = []
    for number in range(tasks):
        results.append(take.delay(arrays[number % len(arrays)], number))
        if number >= _AHEAD:
            results[number - _AHEAD].get(timeout=120)
    wait_drained(results)
    for result in results:
        assert result.get(timeout=120) == len(arrays[0])


def _report(judge: Judge, scale: tuple[int, int, int], used: dict[str, int]) -> None:
    tasks, distinct, size = scale
    total = sum(used.values())
    judge.row(
        f"{tasks} tasks, {distinct} arrays of {size / _MB:g} MB: all bytes over the network",
        "MB",
        {"delivered": tasks * size / _MB, "offload": total / _MB},
        ratio=tasks * size / total,
    )
    judge.row(
        "… of these: values to S3, and from it",
        "MB",
        {"values": distinct * size / _MB, "up": used["S3 up"] / _MB, "down": used["S3 down"] / _MB},
    )
    judge.row(
        "… of these: Redis, as broker, backend and first tier; for each task",
        "kB",
        {role: used[role] / tasks / 1e3 for role in ("broker", "backend", "store")},
    )
