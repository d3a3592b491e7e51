"""Replicas: which writes a failover may lose."""

from __future__ import annotations

import os
import signal

import pytest

from offload.digest import digest_of
from offload.doctor.store import diagnose
from offload.errors import BlobMissing, ConfigurationError, StoreUnavailable
from offload.stores import open_store
from offload.testing.store import HOUR, contents
from tests.support.processes import wait_until
from tests.support.servers import redis_client, redis_sentinel

pytestmark = pytest.mark.server


@pytest.fixture
def replicated():
    """Return a separate store on a primary with a replica, monitored by Sentinel."""
    with redis_sentinel() as setup:
        yield setup


def store_of(setup, **options):
    query = "".join(f"&{name}={value}" for name, value in options.items())
    return open_store(f"{setup.url}&prefix={os.urandom(4).hex()}{query}")


def put(store, number):
    """Store a blob like a publisher; return its digest."""
    content = str(number).encode() * 2000
    digest = digest_of([content])
    store.blobs.hold([digest], HOUR, "task:1")
    store.blobs.put({digest: [content]}, HOUR)
    return digest


def test_a_failover_loses_no_write_that_replicas_have(replicated):
    """A failover loses writes that were acknowledged while a replica hung; with WAIT those writes
    fail, and no acknowledged write is lost.
    """
    store = store_of(replicated)
    waiting = store_of(replicated, wait_replicas=1, wait_timeout=0.2)
    replicated.wait_for_sync()
    patient = store_of(replicated, wait_replicas=1, wait_timeout=9)
    kept = put(patient, 1)
    primary = replicated.primary
    (replica,) = (server for server in replicated.data if server is not primary)
    os.kill(replica.pid, signal.SIGSTOP)
    try:
        with redis_client(primary) as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")  # writes are lost
        lost = put(store, 2)
        with pytest.raises(StoreUnavailable, match="reached 0 replicas within 200 ms"):
            put(waiting, 3)
        with pytest.raises(StoreUnavailable, match="wait_replicas"):
            waiting.pointers.swap("name", None, b"value")
        primary.stop(signal.SIGKILL)
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    wait_until(lambda: replicated.primary is replica, "the replica is the primary")

    def answers():
        try:
            return store.pointers.read("name") is None
        except StoreUnavailable:
            return None

    wait_until(answers, "the store is available again")
    assert contents(patient, [kept])
    with pytest.raises(BlobMissing):
        contents(store, [lost])


def test_doctor_warns_about_replicas_that_no_write_waits_for(replicated):
    """doctor warns without WAIT and min-replicas-to-write, and about too few replicas."""

    def report(**options):
        findings = diagnose(store_of(replicated, **options), longest=HOUR)
        return [(each.level, each.what) for each in findings if "replica" in each.what]

    ((level, what),) = report()
    assert level == "warning"
    assert "a failover loses" in what
    assert report(wait_replicas=1) == [("ok", "it has replicas (1), and wait_replicas is 1")]
    ((level, _),) = report(wait_replicas=2)
    assert level == "error"
    with redis_client(replicated.primary) as client:
        client.config_set("min-replicas-to-write", 1)
        assert [level for level, _ in report()] == ["ok"]


@pytest.mark.parametrize(
    ("url", "why"),
    (
        ("redis+cluster://host:1?wait_replicas=1", "min-replicas-to-write"),
        ("redis://host?wait_replicas=1&wait_timeout=10", "shorter than socket_timeout"),
        ("redis://host?wait_replicas=x", "wait_replicas"),
    ),
)
def test_invalid_options_are_refused(url, why):
    """A Cluster refuses WAIT, and WAIT's timeout must be below the socket's."""
    with pytest.raises(ConfigurationError, match=why):
        open_store(url)
