"""A broker, and a separate store behind a proxy that injects faults."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from faults import make_setup  # in this folder

from tests.support.servers import redis_server


@pytest.fixture(scope="session")
def broker():
    with redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def store():
    with redis_server() as server:
        yield server


@pytest.fixture
def setup(broker, store, tmp_path):
    """Return a new setup that uses JSON and has no worker."""
    with make_setup(broker, store, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def running(broker, store, tmp_path_factory):
    """Return a setup with one worker for all tests of a module; its servers are not emptied between
    them.
    """
    with make_setup(broker, store, tmp_path_factory.mktemp("worker")) as made:
        made.shared = made.worker()
        yield made
        if made.shared.ended:
            pytest.fail(f"the worker ended: {made.shared.log()[-3000:]}")


@pytest.fixture(autouse=True)
def whole_network(request):
    """Reset the proxy of a shared setup after each test."""
    yield
    if "running" in request.fixturenames:
        request.getfixturevalue("running").proxy.restore()
