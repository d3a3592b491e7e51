"""A broker and, apart from it, a store: so that commands on the store can be counted."""

from __future__ import annotations

import pytest

from tests.support.servers import redis_server


@pytest.fixture(scope="session")
def broker_server():
    with redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def store_server():
    with redis_server() as server:
        yield server
