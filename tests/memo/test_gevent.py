"""Locks, single flight, and the catalog among greenlets, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest

from offload.testing.store import unique

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(60)]

CODE = """
    from gevent import monkey; monkey.patch_all()
    import gevent, sys, time
    from offload import Catalog, Lock, LockLost, memoize, open_store

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

    def save(number):
        return catalog.save("m", [number] * 1000).version

    def keep():
        with Lock(store, "kept", ttl=0.3) as lock:
            while lock.heartbeats < 4:
                gevent.sleep(0.01)
            lasted.append(lock.owned())
            hog = time.monotonic() + 0.5
            while time.monotonic() < hog:
                pass  # no other greenlet runs, nor the heartbeat
            lasted.append(lock.lost)

    catalog, lasted, renew = Catalog(store), [], Lock._renew
    Lock.heartbeats = 0

    def counted(lock, *args):
        lock.heartbeats += 1
        return renew(lock, *args)

    Lock._renew = counted
    greenlets = [gevent.spawn(contend) for _ in range(5)]
    greenlets += [gevent.spawn(compute, 7) for _ in range(20)]
    saved = [gevent.spawn(save, number) for number in range(5)]
    kept = gevent.spawn(keep)
    gevent.joinall([*greenlets, *saved], raise_error=True)
    gevent.joinall([kept])
    print(max(most), len(fences), len({*fences}), runs, [7] * 3 == compute(7) * 3)
    print(sorted(each.value for each in saved), lasted, type(kept.exception).__name__)
"""


@pytest.mark.parametrize("kind", ("redis", "sqlite", "file"))
def test_greenlets_exclude_each_other_and_compute_once(request, tmp_path, kind):
    """Of greenlets that want a lock, one has it at a time, each with a fence of its own; of equal
    calls by greenlets, one computes; and each that saves gets a number of its own. A heartbeat
    keeps a lock longer than its ttl, unless a greenlet lets no other one run: then it is lost.
    """
    pytest.importorskip("gevent")
    place = f"{tmp_path}/store.db" if kind == "sqlite" else f"{tmp_path}/store"
    url = f"{kind}://{place}"
    if kind == "redis":
        url = f"{request.getfixturevalue('redis').url}?prefix={unique().replace('/', '-')}"
    ran = subprocess.run(
        [sys.executable, "-c", dedent(CODE), url],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    expected = "1 5 5 [7] True\n['1', '2', '3', '4', '5'] [True, True] LockLost\n"
    assert ran.stdout == expected, ran.stderr
