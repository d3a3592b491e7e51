"""Question 5: large results through a chain and a chord.

Broker, result backend, and store are three servers, so that their traffic is measured separately.
Plain Celery can transfer arrays only with pickle.
"""

import os
from collections.abc import Callable
from typing import Any

from celery import Celery, chain, chord

from benchmarks.app import OFFLOAD, PLAIN_PICKLE
from benchmarks.measure import (
    commands,
    median,
    network,
    peak,
    ratio,
    reset_counters,
    reset_peak,
    timed,
    wait_drained,
)
from benchmarks.processes import Setting, setting
from benchmarks.report import Judge, Scale

TITLE = "Large results through a chain and a chord"
WAYS = (PLAIN_PICKLE, OFFLOAD)
_TIMEOUT = 300
_ROLES = ("broker", "backend", "store")
_CHAIN = 15


def run(scale: Scale, judge: Judge) -> None:
    jobs: dict[str, Callable[[Celery, int], Any]] = {
        f"chain of 3, {scale.result / 1e6:g} MB": lambda app, seed: _chain(app, scale, seed),
        f"chord of {scale.parts}, {scale.result / 1e6:g} MB each": (
            lambda app, seed: _chord(app, scale, seed)
        ),
    }
    for name, job in jobs.items():
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for number in range(max(1, scale.rounds // 2)):
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                # New servers and a new worker for each: their memory must not include
                # earlier work.
                with setting([way], separate=True, concurrency=2) as servers:
                    found[way].append(_measured(servers, way, job))
        _rows(judge, name, found)


def _chain(app: Celery, scale: Scale, seed: int) -> None:
    grow = app.tasks["grow"]
    work = chain(app.tasks["part"].s(scale.result, seed), grow.s(), app.tasks["take"].s())
    assert work.delay().get(timeout=_TIMEOUT) == max(1, scale.result // 8)


def _chord(app: Celery, scale: Scale, seed: int) -> None:
    parts = [app.tasks["part"].s(scale.result, seed + at) for at in range(scale.parts)]
    chord(parts, app.tasks["gather"].s()).delay().get(timeout=_TIMEOUT)


def _measured(servers: Setting, way: str, job: Callable[[Celery, int], Any]) -> dict[str, float]:
    app = servers.app(way)
    # Imports in the children aren't a cost of the canvas.
    wait_drained([app.tasks["part"].delay(800_000, at) for at in range(8)])
    clients = {role: servers.client(role) for role in _ROLES}
    for client in clients.values():
        reset_counters(client)
    worker = servers.workers[way]
    worker.watch()
    for role in _ROLES:
        reset_peak(servers.server(role).pid)
    reset_peak()
    seed = int.from_bytes(os.urandom(3), "little")
    found = {"time": timed(lambda: job(app, seed))}
    for role, client in clients.items():
        found[f"{role} traffic"] = network(client)
        found[f"{role} memory"] = peak(servers.server(role).pid)
    found["uploads"] = _uploads(clients["store"])
    main, *pool = (peak(pid) for pid in worker.pids)
    found["worker main"], found["worker child"] = main, max(pool)
    return found


def _uploads(store: Any) -> float:
    """Return the number of blobs written: a value's chunks and its manifest."""
    return commands(store).get("set", 0)


def _rows(judge: Judge, name: str, found: dict[str, list[dict[str, float]]]) -> None:
    def figures(key: str, unit: float) -> dict[str, float]:
        return {way: median([one[key] for one in rounds]) / unit for way, rounds in found.items()}

    def compared(key: str) -> float:
        plain, ours = ([one[key] for one in found[way]] for way in WAYS)
        return ratio(plain, ours)

    judge.row(
        f"{name}: time",
        "s",
        figures("time", 1),
        ratio=compared("time"),
        at_least=_CHAIN if name.startswith("chain") else None,
    )
    for role in _ROLES:
        key = f"{role} traffic"
        judge.row(
            f"{name}: bytes in and out of the {role}",
            "MB",
            figures(key, 1e6),
            ratio=compared(key) if role != "store" else None,
        )
    judge.row(f"{name}: blobs written", "", figures("uploads", 1))
    for role in _ROLES:
        judge.row(f"{name}: peak of the {role}", "MB", figures(f"{role} memory", 1e6))
    judge.row(f"{name}: peak of the worker's main process", "MB", figures("worker main", 1e6))
    judge.row(f"{name}: peak of a worker's child", "MB", figures("worker child", 1e6))
