"""Faults of network, server, and setup in S3, injected by a proxy in front of a real server."""

from __future__ import annotations

from contextlib import suppress

import pytest

from offload.content.retrying import Retrying
from offload.errors import BlobMissing, StoreError, StoreUnavailable
from offload.settings import RetryPolicy
from offload.stores import open_store
from offload.testing.store import HOUR, blob, blobs, contents, unique
from tests.support.http_proxy import (
    HTTPProxy,
    cut,
    cut_upload,
    lost,
    refused,
    says,
    silent,
    stalled,
    web_page,
)
from tests.support.s3_server import s3_server
from tests.support.servers import HOST, free_port

pytestmark = pytest.mark.server


@pytest.fixture
def proxy(s3):
    with HTTPProxy(s3.port) as proxy:
        yield proxy


@pytest.fixture
def opened(s3, proxy):
    """Open stores through the proxy: ``opened(max_attempts=1)``."""
    stores = []

    def opened(**options):
        stores.append(open_store(s3.url("faults", port=proxy.port, **options)))
        return stores[-1]

    yield opened
    for store in stores:
        store.close()


@pytest.fixture
def store(opened):
    return opened(max_attempts=1, read_timeout=20)


@pytest.fixture
def impatient(opened):
    return opened(max_attempts=1, read_timeout=0.5)


def calls(store):
    """Return every call of a store."""
    digest, content = blob()
    name = unique("n")
    return {
        "get": lambda: contents(store, [digest]),
        "missing": lambda: store.blobs.hold([digest], HOUR),
        "put": lambda: store.blobs.put({digest: [content]}, HOUR),
        "delete": lambda: store.blobs.delete([digest]),
        "scan": lambda: list(store.blobs.scan()),
        "read": lambda: store.pointers.read(name),
        "swap": lambda: store.pointers.swap(name, None, b"1"),
        "names": lambda: list(store.pointers.names()),
        "acquire": lambda: store.leases.acquire(name, "me", 1),
        "renew": lambda: store.leases.renew(name, "me", 1),
        "release": lambda: store.leases.release(name, "me"),
    }


NAMES = tuple(calls(None))


@pytest.mark.parametrize("name", NAMES)
def test_every_call_raises_store_unavailable(s3, name):
    """With nobody listening, every call raises StoreUnavailable and names the endpoint."""
    store = open_store(s3.url(port=free_port(), max_attempts=1))
    with pytest.raises(StoreUnavailable, match="endpoint_url") as caught:
        calls(store)[name]()
    assert caught.value.store == store.url
    assert "secret" not in str(caught.value)
    store.close()


@pytest.mark.parametrize("name", NAMES)
def test_every_call_survives_a_reset(store, proxy, name):
    """A reset connection raises StoreUnavailable or is retried, and the next call succeeds."""
    proxy.fail(refused, times=2)  # after a lost answer, the pointer is read
    call = calls(store)[name]
    with pytest.raises(StoreUnavailable):
        call()
    proxy.restore()
    with suppress(BlobMissing):
        call()


def test_a_name_that_does_not_resolve(s3):
    """A wrong host in the endpoint is named."""
    url = s3.url().replace(f"{HOST}%3A{s3.port}", "nowhere.invalid")
    store = open_store(url, max_attempts=1)
    with pytest.raises(StoreUnavailable, match=r"nowhere\.invalid.*endpoint_url"):
        store.blobs.hold([blob()[0]], HOUR)


@pytest.mark.parametrize("status", (200, 403, 404, 501))
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"missing"}))
def test_a_web_server_in_its_place(store, proxy, name, status):
    """A web server's 404 doesn't mean that a blob is missing."""
    proxy.fail(web_page(status), times=9)
    with pytest.raises(
        StoreError, match=rf"\({status}, a web page\): check endpoint_url"
    ) as caught:
        calls(store)[name]()
    assert not isinstance(caught.value, StoreUnavailable)


def test_a_hold_on_a_web_server(store, proxy):
    """An error in reply to HEAD has no text, so storing reports it; a web page is no blob."""
    digest, content = blob()
    proxy.fail(web_page(404), times=2)
    assert store.blobs.hold([digest], HOUR) == {digest}
    with pytest.raises(StoreError, match="a web page"):
        store.blobs.put({digest: [content]}, HOUR)
    proxy.fail(web_page(200))
    with pytest.raises(StoreError, match="a web page"):
        store.blobs.hold([digest], HOUR)


@pytest.mark.parametrize("status", (429, 502, 503))
def test_an_error_page_of_a_load_balancer(store, proxy, status):
    """A load balancer's error page in front of S3 raises StoreUnavailable."""
    proxy.fail(web_page(status))
    with pytest.raises(StoreUnavailable):
        contents(store, [blob()[0]])


def test_something_else_in_its_place(redis):
    """A port that speaks another protocol is named with the endpoint."""
    url = f"s3://key:secret@bucket/x?endpoint_url=http%3A//{HOST}%3A{redis.port}&max_attempts=1"
    store = open_store(f"{url}&region=us-east-1")
    for call in calls(store).values():
        with pytest.raises(StoreUnavailable, match=f"{redis.port}.*check endpoint_url"):
            call()
    store.close()


def test_a_silent_server(impatient, proxy):
    """A server that accepts requests and never answers runs into the read timeout."""
    proxy.fail(silent)
    with pytest.raises(StoreUnavailable, match=r"too slow.*read_timeout"):
        impatient.blobs.hold([blob()[0]], HOUR)


def test_no_such_bucket(s3):
    """A missing bucket is a final error if the server says so."""
    store = open_store(s3.url().replace("offload-test", "no-such-bucket"))
    found = calls(store)
    for name in set(NAMES) - {"missing"}:  # the answer to HEAD has no text
        with pytest.raises(StoreError, match=r"bucket doesn't exist.*create it") as caught:
            found[name]()
        assert not isinstance(caught.value, StoreUnavailable)
    assert len(found["missing"]()) == 1
    store.close()


@pytest.mark.parametrize("name", NAMES)
def test_wrong_credentials(s3, name):
    """Wrong credentials are a final error that says what to check."""
    store = open_store(s3.url().replace("with%2Bsigns", "with%2Bsins"))
    with pytest.raises(StoreError, match="secret key") as caught:
        calls(store)[name]()
    assert not isinstance(caught.value, StoreUnavailable)
    assert "with+" not in str(caught.value)
    store.close()


@pytest.mark.parametrize(
    ("code", "status", "message"),
    (
        ("AccessDenied", 403, "s3:ListBucket"),
        ("ExpiredToken", 400, "renew the credentials"),
        ("RequestTimeTooSkewed", 403, "clock is wrong.*NTP"),
        ("PermanentRedirect", 301, "region="),
        ("NotImplemented", 501, "doesn't support"),
        ("SomethingNew", 400, "refuses: 400 PutObject: SomethingNew injected"),
    ),
)
def test_a_final_error(store, proxy, code, status, message):
    """An error that a retry can't fix is a StoreError that says what to do."""
    digest, content = blob()
    proxy.fail(says(status, code))
    with pytest.raises(StoreError, match=message) as caught:
        store.blobs.put({digest: [content]}, HOUR)
    assert not isinstance(caught.value, StoreUnavailable)


def test_a_wrong_clock_is_reported(store, proxy):
    """The answer to HEAD has no text; its date shows that the clock is wrong."""
    proxy.fail(says(403, "RequestTimeTooSkewed", "Sat, 01 Jan 2000 00:00:00 GMT"))
    with pytest.raises(StoreError, match=r"clock is .* s off"):
        store.blobs.hold([blob()[0]], HOUR)
    proxy.fail(says(403, "AccessDenied"))
    with pytest.raises(StoreError, match="s3:ListBucket"):
        store.blobs.hold([blob()[0]], HOUR)


@pytest.mark.parametrize(
    ("code", "status"),
    (
        ("SlowDown", 503),
        ("InternalError", 500),
        ("TooManyRequests", 429),
        ("XMinioStorageFull", 507),
    ),
)
def test_throttling_is_retried(store, proxy, code, status):
    """Throttling and similar errors raise StoreUnavailable, so that offload retries."""
    many = blobs(5)
    proxy.fail(says(status, code), "PUT", times=7)
    waits = []
    retrying = Retrying(RetryPolicy(max_retries=5), sleep=waits.append)
    retrying(lambda: store.blobs.put(many, HOUR))
    assert len(waits) >= 2
    assert contents(store, many) == [content for (content,) in many.values()]


def test_boto_retries_a_lost_connection(opened, proxy):
    """One lost connection among many is retried by boto3."""
    store = opened()
    many = blobs(5)
    proxy.fail(refused, "PUT")
    store.blobs.put(many, HOUR)
    assert contents(store, many) == [content for (content,) in many.values()]


@pytest.mark.parametrize("size", (0, 1, 60_000, 100_015))
def test_a_truncated_body(store, proxy, size):
    """A truncated answer raises StoreUnavailable, and never returns a shorter blob."""
    digest, content = blob(100_000)
    store.blobs.put({digest: [content]}, HOUR)
    proxy.fail(cut(size), "GET")
    with pytest.raises(StoreUnavailable, match="incomplete response"):
        contents(store, [digest])
    assert contents(store, [digest]) == [content]


def test_a_slow_body(store, impatient, proxy):
    """A body that stops midway runs into the read timeout."""
    digest, content = blob(100_000)
    store.blobs.put({digest: [content]}, HOUR)
    proxy.fail(stalled(5000), "GET")
    with pytest.raises(StoreUnavailable, match="too slow"):
        contents(impatient, [digest])
    assert contents(store, [digest]) == [content]


def test_one_bad_answer_among_many(store, proxy):
    """Reading many blobs yields those before the bad one, then raises the error."""
    many = blobs(12, 100_000)
    store.blobs.put(many, HOUR)
    proxy.fail(cut(10), "GET")
    with pytest.raises(StoreUnavailable):
        contents(store, many)
    assert contents(store, many) == [content for (content,) in many.values()]


def test_an_upload_that_is_cut(store, proxy):
    """A blob whose upload was cut is missing, and can be stored again."""
    digest, content = blob(3 << 20)
    proxy.fail(cut_upload(1 << 20), "PUT")
    with pytest.raises(StoreUnavailable):
        store.blobs.put({digest: [content]}, HOUR)
    assert store.blobs.hold([digest], HOUR) == {digest}
    store.blobs.put({digest: [content]}, HOUR)
    assert contents(store, [digest]) == [content]


@pytest.mark.parametrize("size", (100, 1 << 20))
def test_a_put_with_a_lost_answer(opened, proxy, size):
    """After a lost answer, boto3 repeats the put and learns that the blob exists: success."""
    store = opened(read_timeout=5)
    digest, content = blob(size)
    proxy.fail(lost, "PUT")
    store.blobs.put({digest: [content]}, HOUR)
    assert [exchange.method for exchange in proxy.seen] == ["PUT", "PUT", "HEAD"]
    assert contents(store, [digest]) == [content]


def test_a_swap_with_a_lost_answer(store, proxy):
    """A swap is sent once; after a lost answer, the pointer is read to see whether it was done."""
    name = unique()
    assert store.pointers.swap(name, None, b"0")
    proxy.fail(lost, "PUT")
    assert store.pointers.swap(name, b"0", b"1")
    proxy.fail(lost, "PUT")
    assert store.pointers.swap(name, b"1", None)
    assert store.pointers.swap(name, None, b"2")
    proxy.fail(refused, "PUT")
    with pytest.raises(StoreUnavailable):
        store.pointers.swap(name, b"2", b"3")
    assert store.pointers.read(name) == b"2"


def test_a_lease_with_a_lost_answer(store, proxy):
    """A lease whose answer was lost belongs to the process that took it."""
    name = unique("lease")
    store.leases.acquire(name, "before", HOUR)
    store.leases.release(name, "before")
    proxy.fail(lost, "PUT")
    number = store.leases.acquire(name, "one", HOUR)
    assert number
    assert store.leases.acquire(name, "two", HOUR) is None
    proxy.fail(lost, "PUT")
    assert store.leases.release(name, "one")
    assert store.leases.acquire(name, "two", HOUR) > number


def test_signed_parts_of_requests(opened, proxy):
    """Requests for pointers sign their content; those for blobs, named by content, don't."""
    store = opened()
    store.blobs.put(blobs(1, 200_000), HOUR)
    store.pointers.swap(unique(), None, b"1")
    hashes = {
        exchange.path.split("/")[3]: exchange.headers["X-Amz-Content-SHA256"]
        for exchange in proxy.seen
        if exchange.method == "PUT"
    }
    assert hashes["blobs"] == "UNSIGNED-PAYLOAD"
    assert len(hashes["pointers"]) == 64
    assert not any(name.lower().startswith("x-amz-checksum") for name in proxy.seen[0].headers)
    proxy.seen.clear()
    opened(sign_payload=True).blobs.put(blobs(1, 200_000), HOUR)
    assert len(proxy.seen[0].headers["X-Amz-Content-SHA256"]) == 64


def test_a_server_that_comes_back():
    """After a kill and restart, the server has what it confirmed, and clients continue."""
    with s3_server() as server:
        store = open_store(server.url(max_attempts=1))
        digest, content = blob(100_000)
        store.blobs.put({digest: [content]}, HOUR)
        store.pointers.swap("p", None, b"1")
        server.stop()
        with pytest.raises(StoreUnavailable):
            contents(store, [digest])
        with pytest.raises(StoreUnavailable):
            store.pointers.swap("p", b"1", b"2")
        server.start()
        assert contents(store, [digest]) == [content]
        assert store.pointers.swap("p", b"1", b"2")
        store.close()
