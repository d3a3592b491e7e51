"""No held blob is ever missing, and nothing remains after the last hold and its grace period."""

from __future__ import annotations

import os
from collections import Counter

import boto3
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from offload.content import get, holds, manifest
from offload.stores import open_store
from offload.stores.file.store import FileStore
from offload.stores.memory import MemoryStore
from offload.stores.sqlite import SQLiteStore
from offload.stores.tiered import TieredStore
from offload.testing.store import FakeClock
from tests.hooks.lifetimes import Setup, lifetimes_machine
from tests.support.moto_s3 import moto_s3
from tests.support.servers import redis_client

pytestmark = pytest.mark.timeout(600)  # histories on S3 take minutes on a busy machine


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Cut values of kilobytes into chunks, like values of megabytes."""
    for name, module in (
        ("CHUNK", manifest),
        ("_SMALLEST_CHUNK", manifest),
        ("SINGLE", manifest),
        ("SINGLE", get),
        ("SINGLE", holds),
    ):
        monkeypatch.setattr(module, name, 4096)


@pytest.fixture
def prove(capsys):
    """Return what runs random histories on a store.

    Files and S3 get the fewest: they are slow, and what follows each history is the same
    everywhere. What stores do by themselves is compared with a model in `test_conformance`.
    """

    def prove(name, make, examples):
        counts = Counter()
        run_state_machine_as_test(
            lifetimes_machine(make, counts),
            settings=settings(
                max_examples=examples,
                stateful_step_count=40,
                deadline=None,
                phases=[Phase.explicit, Phase.generate],  # shrinking a history takes minutes
                suppress_health_check=list(HealthCheck),
            ),
        )
        with capsys.disabled():
            report = ", ".join(f"{number} {what}" for what, number in counts.items())
            print(f"\nlifetimes on {name}: {report}")
        assert counts["found empty in the end"] >= examples

    return prove


def test_on_memory(prove):
    """The lifetimes model holds on the memory store."""

    def make():
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        return Setup(store, clock.advance, lambda: _inside(store.blobs))

    prove("memory", make, 40)


@pytest.mark.parametrize("first", ("small", "fail"))
def test_what_a_second_delivery_resends_keeps_its_values(first):
    """A message that was done, redelivered in an outage, and resent keeps its values for hours."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    setup = Setup(store, clock.advance, lambda: _inside(store.blobs))
    history = lifetimes_machine(lambda: setup, Counter())()
    history.publish(key="small 1", countdown=None)
    [message] = history._deliverable()
    history._run(message, first)
    history._run(message, "outage")
    [resent] = [each for each in history._deliverable() if each is not message]
    history._run(resent, "long")
    history.exactly_needed_blobs_are_stored()
    assert store.blobs.holders(history.digests["small 1"][0]) == {}


def _inside(blobs):
    """Return the blobs of a memory store."""
    kept = vars(blobs._state)
    return [key for value in kept.values() if isinstance(value, dict) for key in value]


def test_on_files(prove, tmp_path):
    """The lifetimes model holds on files, with 60 seconds of allowed clock skew."""

    def make():
        clock, folder = FakeClock(), tmp_path / os.urandom(4).hex()
        store = FileStore(folder, clock=clock, skew=60, fsync=False)

        def remains():
            return [
                str(path)
                for part in ("blobs", "tmp")
                for path in (folder / part).rglob("*")
                if path.is_file()
            ]

        return Setup(store, clock.advance, remains, skew=60)

    prove("files", make, 10)


def test_on_sqlite(prove, tmp_path):
    """The lifetimes model holds on SQLite."""

    def make():
        clock = FakeClock()
        store = SQLiteStore(tmp_path / os.urandom(4).hex(), clock=clock, fsync=False)

        def remains():
            with store.database.reading() as connection:
                return [
                    *connection.execute("SELECT digest FROM blob"),
                    *connection.execute("SELECT digest, holder FROM hold"),
                ]

        return Setup(store, clock.advance, remains)

    prove("SQLite", make, 20)


@pytest.mark.server
def test_on_redis(prove, redis):
    """The lifetimes model holds on a Redis server."""
    with redis_client(redis) as raw:

        def make():
            prefix = f"proof-{os.urandom(4).hex()}"
            keys = lambda: raw.scan_iter(f"{prefix}:*", count=1000)

            def advance(seconds):
                """Move the clock; on a server, shorten the remaining time of every key."""
                gone = int(seconds * 1000)
                found = list(keys())
                holds = [key for key in found if b":holds:" in key]
                asked = raw.pipeline(transaction=False)
                for key in found:
                    asked.pttl(key)
                for key in holds:
                    asked.zrange(key, 0, -1)
                answers = asked.execute()
                for key, left in zip(found, answers, strict=False):
                    if left >= 0:
                        asked.pexpire(key, left - gone)
                for key, members in zip(holds, answers[len(found) :], strict=True):
                    for member in members:
                        asked.zadd(key, {member: -gone}, xx=True, incr=True)
                asked.execute()

            return Setup(
                open_store(f"{redis.url}?prefix={prefix}"),
                advance,
                lambda: [str(key) for key in keys()],
            )

        prove("Redis", make, 20)


def test_on_s3(prove):
    """The lifetimes model holds on S3, which tracks no holds."""
    clock = FakeClock()
    with moto_s3(clock, skew=60) as store:

        def make():
            store.blobs.delete([info.digest for info in store.blobs.scan()])

            return Setup(store, clock.advance, _in_bucket, skew=120)

        prove("S3", make, 4)


def test_on_tiers(prove):
    """The tier index in Redis decides when blobs in S3 expire."""
    clock = FakeClock()
    with moto_s3(clock, skew=60) as lower:

        def make():
            lower.blobs.delete([info.digest for info in lower.blobs.scan()])
            first = MemoryStore(clock=clock)
            store = TieredStore(first, [lower], [3000], small=1000, clock=clock)
            return Setup(store, clock.advance, lambda: [*_inside(first.blobs), *_in_bucket()])

        prove("memory and S3", make, 6)


def _in_bucket():
    found = boto3.client("s3", region_name="us-east-1").list_objects_v2(Bucket="bucket")
    keys = [entry["Key"] for entry in found.get("Contents", [])]
    return [key for key in keys if "/blobs/" in key]
