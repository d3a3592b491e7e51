"""Servers that tests share, each started once when it is first asked for."""

from __future__ import annotations

import kombu.pools
import pytest

from tests.support.s3_server import s3_server
from tests.support.servers import redis_cluster, redis_sentinel, redis_server


@pytest.fixture(scope="module", autouse=True)
def no_connections_left():
    """Close what a module's apps left open: kombu has a forked child close it, which waits
    for ever on a connection that was waiting for a message.
    """
    yield
    kombu.pools.reset()


@pytest.fixture(scope="session")
def redis():
    with redis_server("redis-server") as server:
        yield server


@pytest.fixture(scope="session")
def valkey():
    with redis_server("valkey-server") as server:
        yield server


@pytest.fixture(scope="session")
def redis_tls():
    with redis_server("redis-server", tls=True) as server:
        yield server


@pytest.fixture(scope="session")
def sentinel():
    with redis_sentinel() as setup:
        yield setup


@pytest.fixture(scope="session")
def cluster():
    with redis_cluster() as setup:
        yield setup


@pytest.fixture(scope="session")
def s3():
    with s3_server() as server:
        yield server
