"""Stores to keep classes in, and classes to keep there."""

from __future__ import annotations

import os
import textwrap

import fakeredis
import pytest

from offload.registry.registry import ClassRegistry
from offload.stores import open_store
from offload.stores.file import FileStore
from offload.stores.memory import MemoryStore
from offload.stores.redis.packer import PACKER
from offload.stores.redis.store import RedisStore

SERVERS = ("redis", "valkey", "s3")
SHARED = ("file", *SERVERS)


def servers(names):
    """Return *names* as parameters of a test, those of servers marked as such."""
    return [
        pytest.param(name, marks=pytest.mark.server if name in SERVERS else ()) for name in names
    ]


def fake_redis():
    server = fakeredis.FakeServer()

    def connect():
        client = fakeredis.FakeRedis(server=server, protocol=2)
        client.connection_pool.connection_kwargs["command_packer"] = PACKER
        return client

    return RedisStore(connect, url="redis://fake")


def url_of(kind, request, tmp_path):
    """Return the URL of a store of this kind that nobody has used."""
    if kind == "file":
        return f"file://{tmp_path}/store"
    server = request.getfixturevalue(kind)
    if kind == "s3":
        return server.url(os.urandom(4).hex())
    return f"{server.url}?prefix={os.urandom(4).hex()}"


@pytest.fixture(params=servers(("memory", "file", "fakeredis", *SERVERS)))
def store(request, tmp_path):
    """An empty store of each kind."""
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "fakeredis":
        yield fake_redis()
    elif request.param == "file":
        yield FileStore(tmp_path / "store", fsync=False)
    else:
        store = open_store(url_of(request.param, request, tmp_path))
        yield store
        store.close()


@pytest.fixture(params=servers(SHARED))
def url(request, tmp_path):
    """The URL of an empty store of each kind that processes may share."""
    return url_of(request.param, request, tmp_path)


@pytest.fixture
def memory():
    """An empty store, where it does not matter which."""
    return MemoryStore()


@pytest.fixture
def defined():
    """Return what defines classes and functions, as in ``__main__``."""

    def define(source, name="F", module="__main__"):
        names = {"__name__": module}
        exec(textwrap.dedent(source), names)
        return names[name]

    return define


class Counting:
    """A store's pointers, which count how often they are asked."""

    def __init__(self, pointers):
        self._pointers = pointers
        self.calls = []

    def __getattr__(self, name):
        call = getattr(self._pointers, name)

        def counted(*args):
            self.calls.append((name, *args))
            return call(*args)

        return counted


class CountingStore:
    """A store whose pointers count how often they are asked."""

    def __init__(self, store):
        self._store = store
        self.pointers = Counting(store.pointers)

    def __getattr__(self, name):
        return getattr(self._store, name)


@pytest.fixture
def counting(store):
    return CountingStore(store)


@pytest.fixture
def registry(store):
    """A registry that loads all that is in the store."""
    return ClassRegistry(store, mode="trusted")
