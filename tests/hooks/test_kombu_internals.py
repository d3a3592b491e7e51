"""kombu: its Redis transport tells its connection's parameters where we look for them."""

from __future__ import annotations

import pytest
from kombu import Connection
from kombu.transport import redis

from offload.hooks.kombu_internals import channel_params, uses_sentinel


def test_kombu_computes_a_channels_parameters_before_it_connects():
    """kombu reads host, port, database, password, and transport options; nothing connects."""
    options = {"socket_timeout": 3, "socket_connect_timeout": 4}
    with Connection("redis://:pass@host.invalid:1234/7", transport_options=options) as connection:
        found = channel_params(connection, connection.transport)
    named = ("host", "port", "db", "password", "socket_timeout", "socket_connect_timeout")
    assert [found[name] for name in named] == ["host.invalid", 1234, 7, "pass", 3, 4]


@pytest.mark.parametrize(
    ("kind", "expected"), ((redis.Channel, False), (redis.SentinelChannel, True))
)
def test_kombu_has_a_pool_managed_by_sentinels_for_sentinels_only(kind, expected):
    """kombu's channel class for Sentinel is told from the other one by a method."""
    assert uses_sentinel(kind) is expected
