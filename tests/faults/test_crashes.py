"""Processes are killed at random while tasks flow: no value is lost, and none stays behind.

CRASH_SECONDS in the environment says for how long, CRASH_SEED where the killer's dice begin.
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
from crash_stores import OnRedis, OnS3, OnTiers

from tests.support.processes import wait_until

SECONDS = float(os.environ.get("CRASH_SECONDS", "15"))
SEED = os.environ.get("CRASH_SEED") or str(random.randrange(10**6))
PACE = 0.35  # seconds between kills, on average
LOOK = 0.5  # seconds between looks at the store, and at what is to be given again
DRAINED = 60.0  # seconds
GRACE = 40.0  # seconds, more than what is released lives on
PAUSE = threading.Event()  # never set

pytestmark = [
    pytest.mark.server,
    pytest.mark.integration,
    pytest.mark.timeout(SECONDS + 180),
]


STORES = [OnRedis, OnTiers]
if "CRASH_SECONDS" in os.environ:  # S3 alone is slower, and much the same
    STORES.append(OnS3)


@pytest.fixture(params=STORES)
def under_test(request, store):
    made = request.param(store, lambda: request.getfixturevalue("s3"))
    yield made
    made.close()


def test_no_value_is_lost_and_none_stays(under_test, broker, tmp_path, capsys):
    """Whoever is killed, every task gets its value or fails by its own fault, but for what
    plain Celery loses; and when all is done the store ends empty.
    """
    dice = random.Random(SEED)
    config = {"broker": broker.url, "folder": str(tmp_path), **under_test.config}
    config["offload"]["cache"] = str(tmp_path / "cache")
    config["last"] = time.time() + SECONDS - 6  # when no task is published any more that waits
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
        wait_until(lambda: all(under_test.held().values()), "what was released is gone", GRACE)
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
    """Do so for the time set; return all blobs that were seen meanwhile."""
    ever = set()
    end = time.monotonic() + SECONDS
    look = 0.0
    while (now := time.monotonic()) < end:
        if now >= look:
            queue.give_again()
            ever |= under_test.blobs()
            look = now + LOOK
        PAUSE.wait(dice.uniform(0, 2 * PACE))
        chaos.kill_one()
    return ever


def check_tasks(account, chaos):
    """Nothing was lost that plain Celery keeps, and nobody got what was not theirs."""
    shown = [f"{fault}\n{account.shown(fault.get('id'))}" for fault in account.faults]
    assert not shown, "\n\n".join(shown[:5])
    for kind in ("worker", "publisher", "sweeper"):
        for error in ("BlobMissing", "IntegrityError", "InvalidRef"):
            assert error not in chaos.log(kind)
    unexplained = [*account.lost().get(None, ()), *account.lost_results()]
    assert not unexplained, "\n".join(map(account.shown, unexplained))


def check_holds(account, kept):
    """What is held still is held by what a killed process was at, and by stored results: all
    others gave up what they held.
    """
    holders = {holder for held in kept.values() for holder in held}
    assert [holder for holder in holders if not account.may_hold(holder)] == []


def line(store, account, chaos, ever, kept, left):
    """Return the counts, for people."""
    counts = account.counts()
    counts |= {f"kills of {kind}": count for kind, count in sorted(chaos.kills.items())}
    counts |= {"blobs stored": len(ever), "held until they expire": len(kept), "left": len(left)}
    shown = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"crashes {store}, seed {SEED}, {SECONDS:g} s: {shown}"
