"""Real calls of memo tasks, with numbers that a reader can count by hand."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

from offload.hooks import execute
from offload.hooks import memo as hooks
from offload.memo import forget

SECONDS = 1.25  # how long each computation takes, by the clock that measures it
ROWS = ["row"] * 50_000


def _fail(arguments):
    raise ValueError(arguments)


def call_memo_tasks(wire, monkeypatch):
    """Call tasks of *wire* until these are their counts:

    ===========  ====  ============  =====  ======  ========  ==========
    task         hits  computations  waits  fenced  uncached  time saved
    ===========  ====  ============  =====  ======  ========  ==========
    memo.total      2             3      1       1         0       2.5 s
    memo.report     2             1      0       0         0       2.5 s
    memo.odd        0             0      0       0         1         0 s
    ===========  ====  ============  =====  ======  ========  ==========
    """
    clock = itertools.count()
    measured = SimpleNamespace(perf_counter=lambda: next(clock) * SECONDS)
    monkeypatch.setattr(execute, "time", measured)
    monkeypatch.setattr(hooks.Call, "countdown", lambda self, waits: 0)
    inside = []

    @wire.app.task(name="memo.total", shared=False, offload={"memo": 3600, "version": "1"})
    def total(number):
        while inside:
            inside.pop()()
        return number

    @wire.app.task(name="memo.report", shared=False, offload={"memo": 3600, "version": "1"})
    def report(rows):
        return len(rows)

    @wire.app.task(name="memo.odd", shared=False, offload={"memo": 3600, "memo_key": _fail})
    def odd(number):
        return number

    for _ in range(2):
        total.delay(1)
    inside.append(lambda: wire.execute(wire.take()))  # the second waits for the first
    wire.work()
    for number in (1, 2):
        total.delay(number)
    wire.work()
    total.delay(3)
    inside.append(lambda: forget(total, 3))
    wire.work()
    for _ in range(3):
        report.delay(ROWS)
        wire.work()
    odd.delay(1)
    wire.work()
    return SimpleNamespace(total=total, report=report, odd=odd)
