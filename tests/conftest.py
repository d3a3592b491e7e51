"""Servers that tests share, each started on first use, and the order of test files."""

from __future__ import annotations

import gc
import os
import tempfile
from bisect import bisect
from collections import Counter
from itertools import accumulate
from pathlib import Path

import kombu.pools
import pytest
from hypothesis import HealthCheck, settings

from offload.content.cache import node
from tests.support.s3_server import s3_server
from tests.support.servers import redis_cluster, redis_sentinel, redis_server

settings.register_profile(
    "offload",
    deadline=None,  # a busy machine takes as long as it takes
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,  # elsewhere, each run tries new examples
)
settings.load_profile("offload")

FOLDER = Path(__file__).parent
LONGEST = (  # files that take a minute or more, longest first
    "stores/test_conformance.py",
    "integration/test_parity.py",
    "benchmarks/test_benchmarks.py",
    "integration/test_shipping.py",
    "test_locks_processes.py",
    "faults/test_crashes.py",
    "faults/test_publishing.py",
    "dashboard/test_faults.py",
    "dashboard/test_browser_fleet.py",
    "dashboard/test_browser.py",
    "dashboard/test_blobs_browser.py",
    "integration/test_pools.py",
    "hooks/test_lifetimes_proof.py",
    "inspect/test_snapshot.py",
    # Files of 15 to 45 seconds that would otherwise be the last ones, beside idle processes.
    "stores/test_tiered_servers.py",
    "stores/test_tiered.py",
    "stores/test_redis.py",
    "stores/test_named.py",
    "stores/test_s3_faults.py",
    "stores/test_sqlite.py",
    "serializers/test_hostile.py",
)
PATCHING = ("integration/test_packages.py",)
"""Files whose packages patch this process; only those of `UNAFFECTED` run after them."""
UNAFFECTED = FOLDER / "packaging"
"""Tests that don't use Celery in this process. They keep the others busy at the end."""


def pytest_configure(config):
    """Have each process of xdist import the tests from another folder on.

    pytest rewrites the assertions of each file and caches it, which takes as long as all else of a
    collection. If all processes began with the same file, each would rewrite all of them.
    """
    process = getattr(config, "workerinput", None)
    if process is None or [Path(arg).resolve() for arg in config.args] != [FOLDER]:
        return
    sizes = Counter()
    for file in sorted(FOLDER.rglob("test_*.py")):
        sizes[FOLDER / file.relative_to(FOLDER).parts[0]] += file.stat().st_size
    parts = [*sizes]
    first = int(process["workerid"].removeprefix("gw")) * sizes.total() // process["workercount"]
    start = bisect([*accumulate(sizes.values(), initial=0)], first) - 1
    config.args = [*map(str, parts[start:] + parts[:start])]


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect no garbage while collecting tests: there is none, and looking takes 3 s of CPU."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before pytest groups tests by their fixtures
def pytest_collection_modifyitems(items):
    """Run slow files first, so that the processes of xdist finish together.

    xdist distributes files in this order. Files that start processes come next.
    """
    ranks = {FOLDER / name: rank for rank, name in enumerate(LONGEST)}
    for item in items:
        if item.get_closest_marker("integration"):
            ranks.setdefault(item.path, len(LONGEST))
    for item in items:
        ranks.setdefault(item.path, len(LONGEST) + (3 if UNAFFECTED in item.path.parents else 1))
    ranks.update({FOLDER / name: len(LONGEST) + 2 for name in PATCHING})
    items.sort(key=lambda item: (ranks[item.path], item.path))


def pytest_collection_finish():
    """Exempt ten thousand tests and their modules from garbage collections.

    With them, each `gc.collect` of a test takes 0.3 s of CPU.
    """
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_node_cache():
    """Give this process a default node cache of its own.

    Otherwise workers of tests in other processes decide whether what is stored here is cached, too.
    """
    if not node._SHM.is_dir():
        yield
        return
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="offload-test-", dir=node._SHM) as folder,
    ):
        patch.setattr(node, "_SHM", Path(folder))
        yield


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
