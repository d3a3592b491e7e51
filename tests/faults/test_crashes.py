"""Processes are killed at random while tasks run: no value is lost and none remains.

CRASH_SECONDS in the environment sets the duration, and CRASH_SEED the random seed.
"""

from __future__ import annotations

import os
import random
import threading
import time

import pytest
from crash_account import Account
from crash_broker import Broker, Watch
from crash_chaos import Chaos
from crash_stores import OnRedis, OnS3, OnSQLite, OnTiers

from tests.support.processes import wait_until

SECONDS = float(os.environ.get("CRASH_SECONDS", "10"))
SEED = os.environ.get("CRASH_SEED") or str(random.randrange(10**6))
PACE = 0.35  # seconds between kills, on average
LOOK = 0.5  # seconds between checks of the store and of messages to redeliver
DRAINED = 60.0  # seconds
GRACE = 40.0  # seconds; longer than released values live
PAUSE = threading.Event()  # never set

pytestmark = [
    pytest.mark.server,
    pytest.mark.integration,
    pytest.mark.timeout(SECONDS + 180),
]


STORES = [OnRedis, OnTiers, OnSQLite]
if "CRASH_SECONDS" in os.environ:  # S3 alone is slower, and similar
    STORES.append(OnS3)


@pytest.fixture(params=STORES)
def under_test(request, store):
    made = request.param(store, lambda: request.getfixturevalue("s3"))
    yield made
    made.close()


def test_no_value_is_lost_and_none_remains(under_test, broker, tmp_path, capsys):
    """Whatever is killed, every task gets its value or fails with its own error, except for tasks
    that plain Celery loses; in the end the store is empty.
    """
    dice = random.Random(SEED)
    config = {"broker": broker.url, "folder": str(tmp_path), **under_test.config}
    config["offload"]["cache"] = str(tmp_path / "cache")
    config["last"] = time.time() + SECONDS - 6  # last publication of a long wait
    print(f"seed {SEED}")
    queue = Broker(broker)
    watch = Watch(broker)
    chaos = Chaos(tmp_path, config, dice, SEED)
    try:
        ever = kill_at_random(chaos, under_test, queue, dice)
        (tmp_path / "stop").touch()
        chaos.finish("publisher")
        chaos.kill_workers()
        wait_until(queue.is_drained, "all messages are done", DRAINED)
        chaos.stop_workers()
        assert queue.is_empty()
        chaos.start("reader")
        chaos.finish("reader")
        ever |= under_test.blobs()
        account = Account(tmp_path, chaos.killed, watch)
        check_tasks(account, chaos)
        wait_until(lambda: all(under_test.held().values()), "released blobs are deleted", GRACE)
        kept = under_test.held()
        (tmp_path / "enough").touch()
        chaos.finish("sweeper")
    finally:
        chaos.close()
        watch.close()
        queue.close()
    under_test.end()
    left = under_test.left()
    with capsys.disabled():
        print("\n" + line(type(under_test).__name__, account, chaos, ever, kept, left))
    check_holds(account, kept)
    assert left == []


def kill_at_random(chaos, under_test, queue, dice):
    """Kill processes at random for the set time; return all blobs that were seen meanwhile."""
    ever = set()
    end = time.monotonic() + SECONDS
    look = 0.0
    while (now := time.monotonic()) < end:
        if now >= look:
            queue.redeliver()
            ever |= under_test.blobs()
            look = now + LOOK
        PAUSE.wait(dice.uniform(0, 2 * PACE))
        chaos.kill_one()
    return ever


def check_tasks(account, chaos):
    """Check that nothing was lost that plain Celery keeps, and that no task got another's value."""
    shown = [f"{fault}\n{account.shown(fault.get('id'))}" for fault in account.faults]
    assert not shown, "\n\n".join(shown[:5])
    for kind in ("worker", "publisher", "sweeper"):
        for error in ("BlobMissing", "IntegrityError", "InvalidRef"):
            assert error not in chaos.log(kind)
    unexplained = [*account.lost().get(None, ()), *account.lost_results()]
    assert not unexplained, "\n".join(map(account.shown, unexplained))


def check_holds(account, kept):
    """Check that only killed processes and stored results still hold blobs."""
    holders = {holder for held in kept.values() for holder in held}
    assert [holder for holder in holders if not account.may_hold(holder)] == []


def line(store, account, chaos, ever, kept, left):
    """Return a summary line."""
    counts = account.counts()
    counts |= {f"kills of {kind}": count for kind, count in sorted(chaos.kills.items())}
    counts |= {"blobs stored": len(ever), "held until they expire": len(kept), "left": len(left)}
    shown = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"crashes {store}, seed {SEED}, {SECONDS:g} s: {shown}"
