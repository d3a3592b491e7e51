"""Stores for classes, and classes to store."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import textwrap
from types import ModuleType

import pytest

from offload.classes import hashing, loading, pushing
from offload.classes import registry as registry_module
from offload.classes.registry import ClassRegistry
from offload.stores import open_store
from offload.stores.file import FileStore
from offload.stores.memory import MemoryStore

SERVERS = ("redis", "valkey", "s3")
SHARED = ("file", *SERVERS)


def servers(names):
    """Return *names* as parameters of a test, with marks on those of servers."""
    return [
        pytest.param(name, marks=pytest.mark.server if name in SERVERS else ()) for name in names
    ]


def url_of(kind, request, tmp_path):
    """Return the URL of an unused store of this kind."""
    if kind == "file":
        return f"file://{tmp_path}/store"
    server = request.getfixturevalue(kind)
    if kind == "s3":
        return server.url(os.urandom(4).hex())
    return f"{server.url}?prefix={os.urandom(4).hex()}"


def store_of(kind, request, tmp_path):
    """Yield an empty store of this kind."""
    if kind == "memory":
        yield MemoryStore()
    elif kind == "file":
        yield FileStore(tmp_path / "store", fsync=False)
    else:
        store = open_store(url_of(kind, request, tmp_path))
        yield store
        store.close()


@pytest.fixture(params=servers(("memory", "file", "redis", "s3")))
def store(request, tmp_path):
    """Return an empty store with each driver.

    Valkey has the driver of Redis; that it answers as Redis does is for the conformance suite.
    """
    yield from store_of(request.param, request, tmp_path)


@pytest.fixture(params=servers(SHARED))
def url(request, tmp_path):
    """Return the URL of an empty store of each kind that processes can share."""
    return url_of(request.param, request, tmp_path)


def separate_processes():
    """Return a context of `multiprocessing` whose processes share nothing but imports.

    They are forked from a process that has only imported these tests: a new interpreter would
    import them in each, which takes longer than the tests.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["boto3", "tests.classes.test_registry", "tests.classes.test_storage"]
    )
    return context


@pytest.fixture
def memory():
    """Return an empty store, for tests that need any kind."""
    return MemoryStore()


@pytest.fixture
def defined():
    """Return a function that defines classes and functions as in ``__main__``."""

    def define(source, name="F", module="__main__"):
        names = {"__name__": module}
        exec(textwrap.dedent(source), names)
        return names[name]

    return define


@pytest.fixture
def module():
    """Return a function that creates a module, importable during the test."""
    made = []

    def make(source, name="shop_of_the_producer"):
        module = ModuleType(name)
        sys.modules[name] = module
        made.append(name)
        exec(textwrap.dedent(source), vars(module))
        return module

    yield make
    for name in made:
        sys.modules.pop(name, None)


class Counting:
    """Pointers of a store that count calls."""

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
    """A store whose pointers count calls."""

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
    """Return a registry that loads everything in the store."""
    return ClassRegistry(store, mode="trusted")


class Modules:
    """Modules that are written to files and importable, but not elsewhere (on another Python)."""

    def __init__(self, folder, monkeypatch):
        self._folder = folder
        self._monkeypatch = monkeypatch
        self._names = set()

    def __call__(self, source, name="written_shop"):
        """Write and return a module; from now on, this process can import modules."""
        self._go(str(self._folder), hashing.python_tag)
        path = self._folder.joinpath(*name.split("."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        parts = name.split(".")
        self._names |= {".".join(parts[: i + 1]) for i in range(len(parts))}
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    def leave(self, tag="cpython-399"):
        """Make this process one that can't import them, with the Python of *tag*."""
        self._go(None, lambda: tag)

    def _go(self, folder, python_tag):
        for module in (registry_module, loading, pushing):
            self._monkeypatch.setattr(module, "python_tag", python_tag)
        for name in self._names:
            sys.modules.pop(name, None)
        path = [each for each in sys.path if each != str(self._folder)]
        self._monkeypatch.setattr(sys, "path", [folder, *path] if folder else path)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Return a function that writes a module to a file and imports it."""
    # A module that is written again within a second, as long as before, would be read from there.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "modules").mkdir()
    modules = Modules(tmp_path / "modules", monkeypatch)
    yield modules
    modules.leave()


@pytest.fixture
def elsewhere(written):
    """Return a function that makes this process one of another Python, without the modules."""
    return written.leave
