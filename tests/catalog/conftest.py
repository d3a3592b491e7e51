"""Stores of every kind for catalogs."""

from __future__ import annotations

import pytest

from offload import Catalog, open_store
from offload.testing.store import unique

KINDS = ("memory", "file", "sqlite", "redis", "s3", "tiers")


@pytest.fixture
def make_urls(request, tmp_path):
    """Return a function that returns the URL or URLs of an empty store of a kind."""
    redis = lambda: f"{request.getfixturevalue('redis').url}?prefix={unique().replace('/', '-')}"
    s3 = lambda: request.getfixturevalue("s3").url(unique())
    makers = {
        "memory": lambda: f"memory://{unique()}",
        "file": lambda: f"file://{tmp_path}/store",
        "sqlite": lambda: f"sqlite://{tmp_path}/store.db",
        "redis": redis,
        "s3": s3,
        "tiers": lambda: [redis(), s3()],
    }
    return lambda kind: makers[kind]()


@pytest.fixture(params=KINDS)
def urls(make_urls, request):
    return make_urls(request.param)


@pytest.fixture
def store(urls):
    store = open_store(urls)
    yield store
    store.close()


@pytest.fixture
def catalog(store, tmp_path):
    return Catalog(store, cache=str(tmp_path / "cache"))
