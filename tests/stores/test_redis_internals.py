"""The undocumented parts of redis-py that stores use still exist."""

from __future__ import annotations

import inspect

import fakeredis
import redis
from redis.connection import AbstractConnection, ConnectionPool

from offload.stores.redis.redis_internals import Packer, database_of, send


def test_redis_py_packs_by_a_class_that_can_be_replaced():
    """redis-py's connections pack commands with their `command_packer`."""
    connection = redis.Connection(command_packer=Packer(6000, lambda value: value))
    assert connection.pack_command(b"GET", b"k") == [b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"]
    assert {"command_packer", "socket_read_size", "protocol", "retry"} <= {
        *inspect.signature(AbstractConnection.__init__).parameters
    }


def test_redis_py_keeps_a_connections_options():
    """redis-py's pool has the options of its connections, including the database."""
    client = redis.Redis(connection_pool=ConnectionPool(host="host.invalid", db=3))
    assert database_of(client) == 3
    assert database_of(redis.Redis()) == 0


def test_redis_py_exchanges_commands_on_one_connection():
    """redis-py's pool lends a connection that sends packed commands and reads their answers."""
    client = fakeredis.FakeRedis()
    commands = [("SET", "a", "1"), ("INCR", "a"), ("LPUSH", "a", "x"), ("GET", "a")]
    first, second, error, last = send(client.connection_pool, commands)()
    assert (first, second, last) == (b"OK", 2, b"2")
    assert isinstance(error, redis.ResponseError)
