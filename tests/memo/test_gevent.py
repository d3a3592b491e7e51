"""Locks and single flight among greenlets, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(60)]

CODE = """
    from gevent import monkey; monkey.patch_all()
    import gevent, sys
    from offload import Lock, memoize, open_store

    store = open_store(sys.argv[1])
    inside, most, fences, runs = [], [], [], []

    def contend():
        with Lock(store, "greenlets", ttl=30) as lock:
            inside.append(1)
            most.append(len(inside))
            fences.append(lock.fence)
            gevent.sleep(0)
            inside.pop()

    @memoize(store, ttl=60, version="1")
    def compute(number):
        runs.append(number)
        gevent.sleep(0)
        return [number]

    greenlets = [gevent.spawn(contend) for _ in range(10)]
    greenlets += [gevent.spawn(compute, 7) for _ in range(20)]
    gevent.joinall(greenlets, raise_error=True)
    print(max(most), len(fences), len({*fences}), runs, [7] * 3 == compute(7) * 3)
"""


def test_greenlets_exclude_each_other_and_compute_once(redis):
    """Of greenlets that want a lock, one has it at a time, each with a fence of its own; of equal
    calls by greenlets, one computes.
    """
    pytest.importorskip("gevent")
    ran = subprocess.run(
        [sys.executable, "-c", dedent(CODE), f"{redis.url}?prefix=greenlets"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.stdout == "1 10 10 [7] True\n", ran.stderr
