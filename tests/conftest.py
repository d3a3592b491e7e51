"""Servers that tests share, each started on first use, and the order of test files."""

from __future__ import annotations

import gc
from pathlib import Path

import kombu.pools
import pytest

from tests.support.s3_server import s3_server
from tests.support.servers import redis_cluster, redis_sentinel, redis_server

LONGEST = (  # files that take a minute or more, longest first
    "stores/test_conformance.py",
    "integration/test_shipping.py",
    "integration/test_parity.py",
    "benchmarks/test_benchmarks.py",
    "faults/test_crashes.py",
    "integration/test_pools.py",
    "dashboard/test_faults.py",
    "test_locks_processes.py",
    "dashboard/test_browser.py",
    "dashboard/test_blobs_browser.py",
)
LAST = ("integration/test_packages.py",)
"""Files whose packages patch this process; no other file runs after them."""


def pytest_collection_modifyitems(items):
    """Run slow files first, so that the processes of xdist finish together.

    xdist distributes files in this order. Files that start processes come next.
    """
    folder = Path(__file__).parent
    ranks = {folder / name: rank for rank, name in enumerate(LONGEST)}
    for item in items:
        if item.get_closest_marker("integration"):
            ranks.setdefault(item.path, len(LONGEST))
    ranks.update({folder / name: len(LONGEST) + 2 for name in LAST})
    items.sort(key=lambda item: ranks.get(item.path, len(LONGEST) + 1))


def pytest_collection_finish():
    """Exempt ten thousand tests and their modules from garbage collections.

    With them, each `gc.collect` of a test takes 0.3 s of CPU.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def no_connections_left():
    """Close connections that a module's apps left open.

    Otherwise kombu closes them in a forked child, which blocks forever on a connection that waits
    for a message.
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
