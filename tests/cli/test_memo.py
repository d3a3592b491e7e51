"""``celery offload memo``: what operators see of remembered results, and how they forget them."""

from __future__ import annotations

import json
import os
import re
import time
from hashlib import blake2b

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from offload.cli import offload
from offload.memo.records import Record, list_records, record_name, write_record
from tests.support.memo_calls import call_memo_tasks
from tests.support.round_trips import Wire
from tests.support.wire import make_wire

pytestmark = pytest.mark.server


class Memo:
    """``celery offload memo`` for an app whose store has the results that `remember` writes."""

    def __init__(self, url):
        self.wire = make_wire(store=url, watch=False)
        self.content = self.wire.app._offload.content
        self.store = self.wire.hook.store

    def remember(self, task, call, *, age=60.0, left=3540.0, seconds=2.5, value="x" * 90):
        """Write the record of a call; return its key."""
        now = time.time()
        key = blake2b(call.encode(), digest_size=20).hexdigest()
        name = record_name(task, "shop", key)
        ref = self.wire.hook.put(value).wire
        record = Record(name, task, "shop", ref, seconds, 1, now - age, now + left)
        self.store.pointers.swap(name, None, write_record(record, self.content.signing.keys))
        return key

    def __call__(self, *words, code=0, answer=None):
        context = CLIContext(self.wire.app, True, None)
        done = CliRunner().invoke(offload, ["memo", *words], obj=context, input=answer)
        assert done.exit_code == code, done.output
        return done.output

    def json(self, *words, code=0):
        return json.loads(self(*words, "--json", code=code))

    @property
    def tasks(self):
        return sorted(record.task for record in list_records(self.store))


@pytest.fixture
def memo(redis):
    memo = Memo(f"{redis.url}?prefix=memo-cli-{os.getpid()}-{os.urandom(3).hex()}")
    yield memo
    memo.store.close()


def test_results_are_listed(memo):
    """Each result has a row with its key, age, expiry, duration, size, scope, and task."""
    assert "no remembered results in redis://" in memo("list")
    assert memo("list", "shop").startswith("no remembered results of shop… in redis://")
    assert memo.json("list") == []
    key = memo.remember("shop.report", "one", value="x" * 200_000)
    memo.remember("shop.total", "one", seconds=0.04)
    memo.remember("shop.total", "two", left=-1)
    head, *rows = [re.split(" {2,}", line) for line in memo("list").splitlines()]
    assert head == ["KEY", "AGE", "EXPIRES IN", "TOOK", "SIZE", "SCOPE", "TASK"]
    assert sorted(row[-1] for row in rows) == ["shop.report", "shop.total"]  # one has expired
    rows = {row[-1]: row for row in rows}
    assert rows["shop.report"] == [
        *(key[:12], "1.0 min", "59.0 min", "2.5 s", "200.0 kB", "shop", "shop.report")
    ]
    assert rows["shop.total"][3:5] == ["40.0 ms", "93 B"]


def test_json_has_the_same_numbers(memo):
    """The JSON list has full keys, times, and exact numbers."""
    key = memo.remember("shop.report", "one", value="x" * 200_000)
    (found,) = memo.json("list")
    times = [found.pop("created"), found.pop("expires")]
    assert found == {
        "task": "shop.report",
        "scope": "shop",
        "key": key,
        "seconds": 2.5,
        "bytes": 200_000 + len(b"str"),
    }
    assert times == sorted(times)


def test_a_listing_is_limited(memo):
    """PREFIX and --limit choose which results are listed."""
    for number in range(230):
        memo.remember("shop.total" if number % 2 else "shop.report", str(number))
    assert len(memo.json("list")) == 230
    assert {each["task"] for each in memo.json("list", "shop.t")} == {"shop.total"}
    assert len(memo.json("list", "shop.t")) == 115
    assert len(memo.json("list", "--limit", "7")) == 7
    assert len(memo("list", "--limit", "110").splitlines()) == 111


def test_round_trips_of_a_listing(memo, monkeypatch):
    """Listing 230 results reads them in 3 round trips, not one for each."""
    for number in range(230):
        memo.remember("shop.total", str(number))
    wire = Wire(monkeypatch)
    assert len(memo("list").splitlines()) == 231
    assert wire.trips - b"".join(wire.sent).count(b"SCAN") == 3


def test_a_result_signed_with_another_secret_has_no_size(memo, redis):
    """A record whose reference this app can't verify is listed without a size."""
    memo.remember("shop.report", "one")
    other = make_wire(store=memo.store.url, secret="another secret, long enough", watch=False)
    memo.wire = other
    (found,) = memo.json("list")
    assert found["bytes"] is None
    assert " -  " in memo("list").splitlines()[1]


def test_results_of_tasks_are_forgotten(memo):
    """`forget` takes tasks by their full names, and says how many results each had."""
    for task in ("shop.report", "shop.report", "shop.report2", "shop.total"):
        memo.remember(task, str(len(memo.tasks)))
    out = memo("forget", "shop.report", "shop.total", "--yes")
    assert out.splitlines() == ["shop.report: forgot 2 results", "shop.total: forgot 1 result"]
    assert memo.tasks == ["shop.report2"]
    done = memo.json("forget", "shop.report2", "other", "--yes", code=1)
    assert done == {"forgotten": {"shop.report2": 1, "other": 0}}
    assert memo.tasks == []


def test_a_result_is_forgotten_by_its_key(memo):
    """--key forgets the one result whose key has this prefix of at least 8 characters."""
    key, _ = memo.remember("shop.report", "one"), memo.remember("shop.report", "two")
    assert "fewer than 8 characters" in memo("forget", "--key", key[:7], "--yes", code=2)
    assert memo("forget", "--key", key[:12], "-y") == f"{key[:12]}: forgot 1 result\n"
    assert [record.key for record in list_records(memo.store)] != [key]
    assert len(memo.tasks) == 1
    assert memo("forget", "--key", key, "-y", code=1) == f"{key}: forgot 0 results\n"


def test_a_prefix_of_several_keys_is_refused(memo):
    """A prefix of the keys of two results names none of them, and nothing is forgotten."""
    key = memo.remember("shop.report", "one")
    memo.remember("shop.total", "one")
    assert "2 results have keys" in memo("forget", "--key", key[:8], "--yes", code=2)
    assert len(memo.tasks) == 2


def test_all_results_are_forgotten(memo):
    """--all forgets the results of every task; without any, that is no failure."""
    memo.remember("shop.report", "one")
    memo.remember("shop.<locals>.total", "one")
    assert memo("forget", "--all", "--yes") == "all: forgot 2 results\n"
    assert memo.json("forget", "--all", "--yes") == {"forgotten": {"all": 0}}


def test_forgetting_asks_first(memo):
    """Without --yes, `forget` asks and keeps everything unless the answer is yes."""
    memo.remember("shop.report", "one")
    out = memo("forget", "shop.report", answer="n\n", code=1)
    assert "Forget the results of shop.report in redis://" in out
    out = memo("forget", "a", "b", "c", "d", answer="n\n", code=1)
    assert "Forget the results of a, b, c, and 1 more in redis://" in out
    assert memo.tasks == ["shop.report"]
    assert "Forget all results in redis://" in memo("forget", "--all", answer="y\n")
    assert memo.tasks == []


@pytest.mark.parametrize(
    ("words", "message"),
    (
        ((), "name tasks, --key, or --all"),
        (("shop.report", "--all"), "name tasks, --key, or --all"),
        (("--all", "--json"), "--json can't prompt: add --yes"),
    ),
)
def test_wrong_options_are_refused(memo, words, message):
    """Nothing, everything and something, or JSON with a prompt end with exit code 2."""
    assert message in memo("forget", *words, code=2)


def test_real_calls_are_listed_and_computed_again(memo, monkeypatch):
    """The list has the results of real calls with their durations; a forgotten one is computed."""
    tasks = call_memo_tasks(memo.wire, monkeypatch)
    found = memo.json("list")
    assert sorted((each["task"], each["seconds"]) for each in found) == [
        *(("memo.report", 1.25), ("memo.total", 1.25), ("memo.total", 1.25))
    ]
    counters = memo.wire.hook.counters
    for words, computed in (((), 0), (("memo.total",), 1), (("--all",), 1)):
        if words:
            memo("forget", *words, "--yes")
        before = counters.snapshot()["memo_misses"]
        memo.wire.run(tasks.total, 1)
        assert counters.snapshot()["memo_misses"] == before + computed
    (left,) = memo.json("list")
    assert memo.json("forget", "--key", left["key"][:12], "-y")["forgotten"] == {
        left["key"][:12]: 1
    }
