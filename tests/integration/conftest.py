"""A broker and a separate store, so that commands to the store can be counted."""

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
