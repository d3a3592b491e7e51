"""Mode ``observe``: its numbers, and how they are written to an otherwise unused store."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest

from offload.content.observe import LEAST
from offload.errors import StoreUnavailable
from offload.metrics.storage import sums_of
from offload.stores import open_store
from offload.stores.memory import MemoryStore
from offload.stores.redis import client
from offload.stores.sums import LABEL, MemorySums
from tests.support.processes import wait_until
from tests.support.servers import redis_server
from tests.support.wire import make_wire

ROOT = Path(__file__).parents[2]
MIB = 1024**2
HEAD = len(b"bytes")  # stored with the content of bytes


@pytest.fixture
def url():
    return f"memory://observed-{os.urandom(4).hex()}"


def observed(wire):
    """Return what was counted for a task since the last call, without durations."""
    found = Counter()
    for what, amount in wire.hook.counters.take().items():
        if "seconds" not in what.name:
            found[what.name] += amount
    return found


def test_values_are_counted_by_hand():
    """Observed numbers match a count by hand: serialized bytes, repeated values, and nothing below
    1 KiB.
    """
    wire = make_wire(mode="observe", store=None, watch=False, threshold=65536)
    for _ in range(3):
        wire.app.send_task(
            "take",
            (
                b"x" * 100_000,
                b"y" * 3000,
                b"z" * (LEAST - HEAD - 1),
            ),
        )
    large, small = 100_000 + HEAD, 3000 + HEAD
    assert observed(wire) == {
        "values_seen": 9,
        "observed_values": 3,
        "observed_bytes": 3 * large,
        "observed_repeated_values": 2,
        "observed_repeated_bytes": 2 * large,
        "size_16": 3,
        "size_16_bytes": 3 * large,
        "size_16_repeated": 2 * large,
        "size_11": 3,
        "size_11_bytes": 3 * small,
        "size_11_repeated": 2 * small,
    }


def test_chunks_that_were_seen_are_repeated():
    """Chunks that were observed before count as deduplicated, as in a store."""
    wire = make_wire(mode="observe", store=None, watch=False)
    whole, more = os.urandom(4 * MIB), os.urandom(2 * MIB)
    wire.app.send_task("take", (whole,))
    wire.app.send_task("take", (whole + more,))
    counts = observed(wire)
    assert counts["observed_repeated_bytes"] == 4 * MIB
    assert counts["observed_repeated_values"] == 0


def test_the_same_is_counted_by_size_as_in_mode_on():
    """Observed sizes equal what mode on stores and deduplicates, at every level."""
    shared = os.urandom(4 * MIB)
    values = [b"a" * 5000, b"a" * 5000, shared, shared + b"more", [1] * 9000, b"", "x" * 70_000]
    found = []
    for mode in ("observe", "on"):
        wire = make_wire(mode=mode, threshold=2000)
        for value in values:
            wire.app.send_task("take", (value,))
        found.append(observed(wire))
    seen, stored = found
    sizes = {what: n for what, n in seen.items() if what.startswith("size")}
    assert sizes == {what: n for what, n in stored.items() if what.startswith("size")}
    for would, did in (
        ("observed_values", "values_offloaded"),
        ("observed_bytes", "bytes_offloaded"),
        ("observed_repeated_values", "values_deduplicated"),
    ):
        assert seen[would] == stored[did]


def test_unserializable_values_are_logged_and_sent(caplog):
    """A value that offload couldn't serialize is logged and sent by Celery."""
    wire = make_wire(mode="observe", store=None, watch=False, conf={"task_serializer": "pickle"})
    with patch.object(wire.hook._runtime.observer, "_observe", side_effect=RuntimeError("broken")):
        wire.app.send_task("take", (b"x" * 5000,))
    assert "couldn't send" in caplog.text
    assert len(wire.sent) == 1


# -- what is written


def test_without_a_store_there_is_no_thread():
    """Without a store no thread starts."""
    before = set(threading.enumerate())
    wire = make_wire(mode="observe", store=None, watch=False)
    wire.app.send_task("take", (b"x" * 5000,))
    assert set(threading.enumerate()) <= before


def test_publishing_asks_the_store_nothing(redis):
    """Publishing makes no store call; a thread writes what was counted, and only then."""
    url = f"{redis.url}?prefix=behind-{os.urandom(4).hex()}"
    wire = make_wire(mode="observe", store=url, watch=False, stats_interval=0.05)
    asking, send = [], client.send

    def noted(pool, commands):
        asking.append(threading.current_thread().name)
        return send(pool, commands)

    with patch.object(client, "send", noted):
        for _ in range(3):
            wire.app.send_task("take", (b"x" * 5000,))
        wait_until(lambda: asking, "something is written")
        wire.hook._runtime.recorder.end()
    assert set(asking) == {"offload-stats"}
    total = sums_of(open_store(url)).total()
    assert total[LABEL.join(("observed_values", "take", "args[0]"))] == 3
    assert total[LABEL.join(("size_12_bytes", "take", ""))] == 3 * (5000 + HEAD)


def test_the_default_store_is_not_used(redis):
    """Without `offload_store`, no store is contacted, not even the result backend's Redis."""
    conf = {"result_backend": redis.url}
    wire = make_wire(mode="observe", store=None, watch=False, conf=conf, stats_interval=0.05)
    sent, send = [], client.send

    def noted(pool, commands):
        sent.append(commands)
        return send(pool, commands)

    with patch.object(client, "send", noted):
        wire.app.send_task("take", (b"x" * 100_000,))
        assert wire.hook.store.url.startswith(redis.url)  # as a worker's banner shows
        wire.hook._runtime.recorder.end()
    assert observed(wire)["observed_values"] == 1
    assert sent == []


def test_an_unavailable_store_delays_and_loses_nothing(url, caplog):
    """While the store is unavailable, publishing works; counts are written once it is back."""
    caplog.set_level(logging.INFO, "offload")
    add, calls, mine = MemorySums.add, [], sums_of(open_store(url))

    def unavailable(self, tally):
        if self is not mine:  # of another test's app
            return add(self, tally)
        calls.append(tally.number)
        if len(calls) < 4:
            raise StoreUnavailable(f"{url} is away")
        return add(self, tally)

    with patch.object(MemorySums, "add", unavailable):
        wire = make_wire(mode="observe", store=url, watch=False, stats_interval=0.05)
        wire.app.send_task("take", (b"x" * 5000,))
        wait_until(lambda: len(calls) >= 4, "writing was retried")
        wire.hook._runtime.recorder.end()
    assert calls == [1] * 4  # the same batch, so that it counts once
    logged = [text for text in caplog.messages if url in text]  # apps of other tests log as well
    assert logged == [f"cannot write statistics, retrying later: {url} is away"] * 3
    total = sums_of(open_store(url)).total()
    assert total[LABEL.join(("observed_values", "take", "args[0]"))] == 1


def test_a_store_that_cannot_be_opened_is_logged_once(caplog):
    """A store that can't be opened is logged once, not for each interval."""
    wire = make_wire(mode="observe", store="redis://localhost/0?colour=red", watch=False)
    for _ in range(3):
        wire.app.send_task("take", (b"x" * 5000,))
    wire.hook._runtime.recorder.end()
    found = [text for text in caplog.messages if text.startswith("observed counters are not")]
    assert len(found) == 1
    assert len(wire.sent) == 3


def test_with_an_interval_of_0_nothing_is_written(url):
    """An interval of 0 disables writing."""
    wire = make_wire(mode="observe", store=url, watch=False, stats_interval=0)
    wire.app.send_task("take", (b"x" * 5000,))
    wire.hook._runtime.recorder.end()
    assert isinstance(open_store(url), MemoryStore)
    assert sums_of(open_store(url)).total() == {}


SCRIPT = """
import os, sys
from celery import Celery
from offload import Offload
app = Celery("observed", broker="memory://")
Offload(app, mode="observe", store=sys.argv[1], threshold=1000)
def publish():
    app.send_task("take", (b"x" * 5000,))
publish()
if "fork" in sys.argv:
    child = os.fork()
    publish()
    if child:
        assert os.waitpid(child, 0)[1] == 0
"""


def run(*words):
    warned = "ignore:This process:DeprecationWarning"  # has threads and forks, from Python 3.12 on
    done = subprocess.run(
        [sys.executable, "-W", warned, "-c", SCRIPT, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(("words", "number"), (((), 1), (("fork",), 3)))
def test_a_short_process_and_its_child_write_at_their_end(redis, words, number):
    """A short process and its forked child both write their counts once when they exit."""
    url = f"{redis.url}?prefix=behind-{os.urandom(4).hex()}"
    assert run(url, *words) == ""
    total = sums_of(open_store(url)).total()
    assert total[LABEL.join(("observed_values", "take", "args[0]"))] == number


def test_a_process_exits_while_the_store_hangs():
    """A process waits at most two seconds for a store that hangs, whatever its timeouts are."""
    with redis_server() as server:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            run(f"{server.url}?socket_timeout=3600")
        finally:
            os.kill(server.pid, signal.SIGCONT)
