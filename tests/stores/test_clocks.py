"""A client with a fast clock expires nothing early, because S3 and Redis use their own clocks.

`test_file` and `test_fsspec` test stores that have no server's clock.
"""

from __future__ import annotations

import time
from datetime import timedelta

import botocore.auth
import pytest

from offload.errors import StoreError, StoreUnavailable
from offload.stores import open_store
from offload.testing.store import HOUR, blob, blobs, contents, unique
from tests.support.servers import redis_client

pytestmark = pytest.mark.server


@pytest.fixture(params=("redis", "s3"))
def url(request):
    """Return the URL of a separate store on a real server."""
    server = request.getfixturevalue(request.param)
    if request.param == "s3":
        return server.url(unique(), skew=1, ahead=0)
    with redis_client(server) as client:
        client.flushall()
    return server.url


@pytest.fixture
def stores(url, monkeypatch):
    """Return the store, and a function that opens it for a client with a fast clock."""
    opened = [open_store(url)]
    now, steady = time.time, time.monotonic

    def ahead(seconds):
        monkeypatch.setattr(time, "time", lambda: now() + seconds)
        monkeypatch.setattr(time, "monotonic", lambda: steady() + seconds)
        opened.append(open_store(url))
        return opened[-1]

    yield opened[0], ahead
    for store in opened:
        store.close()


def test_blobs_live_by_the_servers_clock(stores):
    """A client with a fast clock finds and extends live blobs, reports their remaining life, and
    its sweep deletes none.
    """
    store, ahead = stores
    many = blobs(5)
    store.blobs.put(many, HOUR / 2)
    other = ahead(HOUR)
    assert contents(other, many) == [content for (content,) in many.values()]
    for seen in (store, other):
        lives = [info.ttl for info in seen.blobs.scan() if info.digest in many]
        assert len(lives) == 5
        assert all(HOUR / 2 - 60 < life <= HOUR / 2 + 3 for life in lives)
    assert list(other.sweep(dry_run=True)) == []
    assert list(other.sweep()) == []
    assert other.blobs.hold(list(many), 60) == set()
    assert store.blobs.hold(list(many), 60) == set()
    assert all(info.ttl > HOUR / 2 - 60 for info in store.blobs.scan() if info.digest in many)


def test_a_blob_from_a_client_with_a_fast_clock_lives_its_time(stores):
    """The lifetime of a blob starts when the server has it, by the server's clock."""
    store, ahead = stores
    digest, content = blob()
    ahead(HOUR).blobs.put({digest: [content]}, 600)
    (life,) = [info.ttl for info in store.blobs.scan() if info.digest == digest]
    assert 540 < life <= 603


def test_holds_expire_by_the_servers_clock(stores):
    """A hold doesn't expire by the clock of another client."""
    store, ahead = stores
    if not store.blobs.tracks_holds:
        pytest.skip("it keeps no account of holds")
    digest, content = blob()
    store.blobs.put({digest: [content]}, 10)
    assert store.blobs.hold([digest], HOUR / 2, "task:one") == set()
    other = ahead(HOUR)
    assert other.blobs.hold([digest], 60, "task:two") == set()
    assert HOUR / 2 - 60 < other.blobs.holders(digest)["task:one"] <= HOUR / 2
    other.blobs.release([digest], "task:two", 1)
    assert HOUR / 2 - 60 < store.blobs.holders(digest)["task:one"] <= HOUR / 2
    (life,) = [info.ttl for info in store.blobs.scan() if info.digest == digest]
    assert life > HOUR / 2 - 60


def test_leases_and_pointers_last_by_the_servers_clock(stores):
    """A lease is neither taken nor forgotten early, even by a client two days ahead."""
    store, ahead = stores
    name = unique("lease")
    number = store.leases.acquire(name, "one", 600)
    store.pointers.swap(name, None, b"1")
    store.pointers.swap(name, b"1", None)
    other = ahead(2 * 86400 + HOUR)
    assert other.leases.acquire(name, "two", 600) is None
    assert list(other.sweep()) == []
    assert other.leases.renew(name, "one", 600)
    assert store.leases.acquire(name, "one", 600) == number


@pytest.mark.skipif(
    not hasattr(botocore.auth, "get_current_datetime"), reason="earlier ones have no seam for it"
)
@pytest.mark.parametrize("seconds", (HOUR, -HOUR))
def test_s3_refuses_a_client_whose_clock_is_off(s3, monkeypatch, seconds):
    """S3 refuses requests from a client with a wrong clock: the error says so, and nothing is
    deleted.
    """
    url = s3.url(unique(), skew=1, max_attempts=1)
    store = open_store(url)
    many = blobs(3)
    store.blobs.put(many, 60)
    other = open_store(url)
    now, signed = time.time, botocore.auth.get_current_datetime
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + seconds)
        patch.setattr(
            botocore.auth,
            "get_current_datetime",
            lambda *args, **options: signed(*args, **options) + timedelta(seconds=seconds),
        )
        for call in (
            lambda: list(other.sweep()),
            lambda: other.blobs.hold(list(many), 60),
            lambda: contents(other, many),
            lambda: other.pointers.read("p"),
        ):
            with pytest.raises(StoreError, match="clock is") as caught:
                call()
            assert not isinstance(caught.value, StoreUnavailable)
    assert store.blobs.hold(list(many), 1) == set()
    store.close()
    other.close()
