"""Properties of S3 stores, checked with a plain client."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
import threading
import tracemalloc
from unittest.mock import patch

import pytest

from offload.errors import ConfigurationError, IntegrityError, StoreError, StoreUnavailable
from offload.stores import open_store
from offload.stores.processes import Threads
from offload.stores.s3.blobs import NONCE
from offload.stores.s3.client import Body, S3Client, ServerClock, body_of
from offload.stores.s3.store import S3Store
from offload.testing.store import HOUR, FakeClock, blob, blobs, contents, scanned, swept, unique
from tests.support.moto_s3 import moto_bucket
from tests.support.processes import wait_until
from tests.support.s3_server import BUCKET, s3_client


class Client:
    """A client that counts its calls and can run code before one of them."""

    def __init__(self, client):
        self._client = client
        self.calls = []
        self.before = {}

    def __getattr__(self, name):
        def call(**options):
            self.calls.append((name, options))
            self.before.pop(name, lambda: None)()
            return getattr(self._client, name)(**options)

        return call

    def count(self, name):
        return sum(called == name for called, _ in self.calls)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def raw(clock):
    """Return a plain client of moto's bucket, whose dates come from *clock*."""
    with moto_bucket(clock) as client:
        yield client


@pytest.fixture
def client(raw):
    return Client(raw)


def make_store(client, clock, *, skew=60.0, ahead=1.0, **options):
    options = {"threads": 1, "clock": clock, "sleep": lambda seconds: None, **options}
    url = "s3://bucket/offload"
    s3 = S3Client(lambda *, records: client, bucket="bucket", url=url, **options)
    return S3Store(s3, skew=skew, ahead=ahead)


@pytest.fixture
def store(client, clock):
    return make_store(client, clock)


def key_of(digest):
    return f"offload/blobs/{digest.replace(':', '-')}"


def keys(raw):
    return sorted(
        entry["Key"] for entry in raw.list_objects_v2(Bucket="bucket").get("Contents", [])
    )


# -- stored objects


def test_a_blob_is_one_object(store, raw):
    """A blob is an object with its content and 16 random bytes; its metadata have its lifetime."""
    digest, content = blob()
    store.blobs.put({digest: [b"\0", content]}, 100)
    assert keys(raw) == [key_of(digest)]
    found = raw.get_object(Bucket="bucket", Key=key_of(digest))
    assert found["Body"].read()[:-NONCE] == b"\0" + content
    assert found["Metadata"] == {"offload-ttl": "260.000"}


def test_no_two_writes_have_one_etag(store, raw):
    """Storing a blob again changes its ETag, so that conditional requests can distinguish the
    writes.
    """
    digest, content = blob()
    etags = set()
    for _ in range(3):
        store.blobs.put({digest: [content]}, 100)
        etags.add(raw.head_object(Bucket="bucket", Key=key_of(digest))["ETag"])
        store.blobs.delete([digest])
    assert len(etags) == 3


def test_pointers_and_leases_are_small_objects(store, raw):
    """A pointer's name has ! for /, and its value follows random bytes; unset, it stays as an empty
    object.
    """
    store.pointers.swap("a/b", None, b"value")
    store.leases.acquire("a/b", "me", 10)
    assert keys(raw) == ["offload/leases/a!b", "offload/pointers/a!b"]
    body = raw.get_object(Bucket="bucket", Key="offload/pointers/a!b")["Body"].read()
    assert body[NONCE:] == b"\x01value"
    store.pointers.swap("a/b", b"value", None)
    body = raw.get_object(Bucket="bucket", Key="offload/pointers/a!b")["Body"].read()
    assert len(body) == NONCE
    assert list(store.pointers.names()) == []


def test_encryption_and_owner_are_asked_for(client, clock):
    """SSE options are sent with every write, and the expected owner with every request."""
    store = make_store(
        client,
        clock,
        ahead=0,
        writing={"ServerSideEncryption": "AES256"},
        common={"ExpectedBucketOwner": "123456789012"},
    )
    digest, content = blob()
    store.blobs.put({digest: [content]}, 10)
    clock.advance(2)
    store.blobs.hold([digest], 100)
    store.pointers.swap("p", None, b"1")
    assert contents(store, [digest]) == [content]
    for name, options in client.calls:
        assert options["ExpectedBucketOwner"] == "123456789012"
        assert ("ServerSideEncryption" in options) == (name in ("put_object", "copy_object"))
        assert ("ExpectedSourceBucketOwner" in options) == (name == "copy_object")


# -- lifetimes


def test_repeated_holds_are_cheap(store, client, clock):
    """A lifetime is written twice as long as asked for, and copied when half has passed."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    for _ in range(5):
        assert store.blobs.hold([digest], HOUR) == set()
        store.blobs.put({digest: [content]}, HOUR)
        clock.advance(HOUR / 5)
    assert client.count("copy_object") == 0
    clock.advance(1)
    assert store.blobs.hold([digest], HOUR) == set()
    assert store.blobs.hold([digest], HOUR) == set()
    assert client.count("copy_object") == 1
    assert scanned(store)[digest].ttl == 2 * HOUR + 60


def test_a_check_takes_one_request_per_blob(store, client):
    """Checking blobs takes one HEAD each, and nothing more."""
    here, gone = blobs(3), blobs(2)
    store.blobs.put(here, HOUR)
    client.calls.clear()
    assert store.blobs.hold([*here, *gone, *here], HOUR) == set(gone)
    assert [name for name, _ in client.calls] == ["head_object"] * 5


def test_a_copy_that_came_too_late_does_not_count(store, client, raw, clock):
    """A lifetime that expired while it was being extended has expired, and the blob is stored
    again.
    """
    digest, content = blob()
    store.blobs.put({digest: [content]}, 10)  # 80 seconds in all
    first = raw.head_object(Bucket="bucket", Key=key_of(digest))["ETag"]
    clock.advance(70)
    client.before["copy_object"] = lambda: clock.advance(10)
    assert store.blobs.hold([digest], HOUR) == {digest}
    assert client.count("copy_object") == 1
    assert store.blobs.hold([digest], 1) == {digest}
    store.blobs.put({digest: [content]}, HOUR)
    assert raw.head_object(Bucket="bucket", Key=key_of(digest))["ETag"] != first
    assert store.blobs.hold([digest], HOUR) == set()


def test_no_copy_follows_in_the_same_second(client, clock):
    """Dates in whole seconds can't distinguish two writes within one second, so no copy follows in
    the same second.
    """
    waits = []
    store = make_store(client, clock, sleep=waits.append)
    digest, content = blob()
    store.blobs.put({digest: [content]}, 1)
    assert store.blobs.hold([digest], HOUR) == set()
    assert waits == [1.0]


def test_an_expired_blob_is_replaced_conditionally(store, client, raw, clock):
    """Of two writers that replace an expired blob, the second notices the first's write."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, 10)
    clock.advance(100)
    other = make_store(raw, clock)
    # Between the second's check and its write:
    puts = iter((lambda: None, lambda: other.blobs.put({digest: [content]}, 5 * HOUR)))

    def before():
        client.before["put_object"] = before
        next(puts, lambda: None)()

    client.before["put_object"] = before
    client.calls.clear()
    store.blobs.put({digest: [content]}, HOUR)
    assert scanned(store)[digest].ttl == 10 * HOUR + 60
    assert client.count("put_object") == 2


def test_the_sweep_removes_what_expired(store, raw, clock):
    """The sweep removes what expired longer ago than clocks may differ, and nothing else."""
    ended, kept = blobs(3), blobs(2)
    store.blobs.put(ended, HOUR)
    store.blobs.put(kept, 3 * HOUR)
    raw.put_object(Bucket="bucket", Key="offload/blobs/something-else", Body=b"")
    raw.put_object(Bucket="bucket", Key="other", Body=b"")
    clock.advance(2 * HOUR + 60)
    assert store.blobs.hold(list(ended), 1) == set(ended)
    assert swept(store) == 0
    clock.advance(60)
    assert swept(store) == 3
    assert keys(raw) == sorted([*map(key_of, kept), "offload/blobs/something-else", "other"])


def test_the_sweep_keeps_a_blob_that_was_stored_again(store, client, raw, clock):
    """A blob that is stored again between the sweep's check and its deletion stays."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    clock.advance(3 * HOUR)
    other = make_store(raw, clock)
    store.conditions.require_deletes()  # so that the next deletion is of the blob
    client.before["delete_object"] = lambda: other.blobs.put({digest: [content]}, HOUR)
    assert swept(store) == 0
    assert contents(store, [digest]) == [content]


def test_the_sweep_removes_old_pointers_and_leases(store, raw, clock):
    """Unset pointers and expired leases are removed after a day; fencing numbers still rise."""
    store.pointers.swap("set", None, b"1")
    store.pointers.swap("unset", None, b"1")
    store.pointers.swap("unset", b"1", None)
    number = store.leases.acquire("lease", "me", 10)
    held = store.leases.acquire("held", "me", 1e9)
    clock.advance(80_000)
    assert swept(store) == 0
    clock.advance(10_000)
    assert swept(store) == 2
    assert keys(raw) == ["offload/leases/held", "offload/pointers/set"]
    assert store.leases.acquire("lease", "me", 10) > number
    assert store.leases.acquire("held", "me", 10) == held


def test_the_sweep_removes_test_objects(store, client, raw, clock):
    """A process that is killed while it tests conditional requests leaves an object, which is
    removed later.
    """

    def killed(**_):
        raise KeyboardInterrupt

    dying = patch.object(client, "delete_object", killed, create=True)
    with dying, pytest.raises(KeyboardInterrupt):
        store.pointers.swap("p", None, b"1")
    (left,) = keys(raw)
    assert left.startswith("offload/probe/")
    clock.advance(3000)
    assert swept(store) == 0
    assert left in keys(raw)
    clock.advance(1000)
    (seen,) = store.sweep(dry_run=True)
    assert (seen.kind, seen.size) == ("file", 7)
    assert left in keys(raw)
    assert swept(store) == 1
    assert keys(raw) == []


def test_an_object_without_metadata_is_kept(store, raw, clock):
    """An object without our metadata, copied by a tool for example, is kept."""
    digest, content = blob()
    raw.put_object(Bucket="bucket", Key=key_of(digest), Body=content + bytes(NONCE))
    clock.advance(1e9)
    assert store.blobs.hold([digest], HOUR) == set()
    assert contents(store, [digest]) == [content]
    assert scanned(store)[digest].ttl == math.inf
    assert swept(store) == 0


# -- limits


class Unread(io.BytesIO):
    def read(self, *_args):
        raise AssertionError("a content over the limit was read")


def test_the_limit_holds_before_content_is_read(store, client, raw):
    """An object over the limit is refused by its length."""
    digest, content = blob(1000)
    store.blobs.put({digest: [content]}, HOUR)
    answer = raw.get_object(Bucket="bucket", Key=key_of(digest))
    with (
        patch.object(client, "get_object", lambda **_: {**answer, "Body": Unread()}, create=True),
        pytest.raises(IntegrityError),
    ):
        contents(store, [digest], 999)


@pytest.mark.parametrize("limit", (999, 1000))
def test_the_limit_holds_without_a_length(store, client, raw, limit):
    """Without a length from the server, at most one byte over the limit is read."""
    digest, content = blob(1000)
    store.blobs.put({digest: [content]}, HOUR)
    answer = raw.get_object(Bucket="bucket", Key=key_of(digest))
    del answer["ContentLength"]
    with patch.object(client, "get_object", lambda **_: answer, create=True):
        if limit == 1000:
            assert contents(store, [digest], limit) == [content]
        else:
            with pytest.raises(IntegrityError):
                contents(store, [digest], limit)


def test_a_blob_too_large_for_a_request_is_refused(store):
    """A blob over S3's 5 GiB is refused before anything is sent."""
    digest, _ = blob()
    part = memoryview(bytearray(1 << 20))
    with pytest.raises(StoreError, match="accepts up to"):
        store.blobs.put({digest: [part] * 5121}, HOUR)


def test_a_body_is_the_callers_memory():
    """Large parts are sent as views, in pieces; small ones are joined."""
    parts = [b"\0", memoryview(bytearray(3 << 20)), os.urandom(10)]
    body = body_of(parts)
    assert isinstance(body, Body)
    pieces = list(iter(body.read, b""))
    assert b"".join(pieces) == b"".join(parts)
    assert len(body) == sum(map(len, parts)) == body.tell()
    assert [len(piece) for piece in pieces] == [1, *[1 << 20] * 3, 10]
    assert pieces[1].obj is parts[1].obj
    assert body.seek(0) == 0
    assert body.read() == b"\0"
    assert body.tell() == 1
    with pytest.raises(OSError, match="start of a piece"):
        body.seek(5)
    assert body_of([b"a", memoryview(b"b")]) == b"ab"


# -- incomplete S3 servers


def ignoring(raw, *names):
    """Make *raw* omit these headers."""

    def drop(request, **_):
        for name in names:
            del request.headers[name]

    raw.meta.events.register("before-sign.s3", drop)


@pytest.mark.parametrize("name", ("If-None-Match", "If-Match"))
def test_a_server_that_ignores_conditions(store, client, raw, name):
    """A server that ignores conditions is detected once, when it matters, and refused for pointers
    and leases only.
    """
    ignoring(raw, name)
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    assert contents(store, [digest]) == [content]
    assert store.pointers.read("p") is None
    for _ in range(2):
        for call in (
            lambda: store.pointers.swap("p", None, b"1"),
            lambda: store.leases.acquire("l", "me", 1),
        ):
            with pytest.raises(ConfigurationError, match="ignores conditions") as caught:
                call()
            assert caught.value.store == store.url
    assert client.count("put_object") <= 4
    assert keys(raw) == [key_of(digest)]  # the test object is gone


def test_a_server_that_deletes_unconditionally(store, raw, clock):
    """With a server that ignores conditions on deletions, pointers and leases work but the sweep
    doesn't: a lifecycle rule must delete.
    """
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    clock.advance(10 * HOUR)

    def drop(request, **_):
        if request.method == "DELETE":
            del request.headers["If-Match"]

    raw.meta.events.register("before-sign.s3", drop)
    assert store.pointers.swap("p", None, b"1")
    with pytest.raises(ConfigurationError, match="lifecycle rule"):
        swept(store)
    assert key_of(digest) in keys(raw)


def test_conditions_are_tested_once(store, client):
    """A process tests conditional requests once."""
    for number in range(3):
        store.pointers.swap(f"p{number}", None, b"1")
    probes = [name for name, options in client.calls if "/probe/" in options.get("Key", "")]
    assert len(probes) == 5


def test_a_pointer_that_vanishes_meanwhile(store, client, raw):
    """If an object to be replaced is deleted meanwhile, servers answer 404 or 412; both are
    handled.
    """
    store.pointers.swap("p", None, b"1")
    client.before["put_object"] = lambda: raw.delete_object(
        Bucket="bucket", Key="offload/pointers/p"
    )
    assert not store.pointers.swap("p", b"1", b"2")
    assert store.pointers.read("p") is None


def test_retries_of_refused_writes_are_bounded(store, client, raw, clock):
    """If every write is refused, the call ends with StoreUnavailable."""
    digest, content = blob()
    refusal = raw.exceptions.ClientError(
        {"Error": {"Code": "Conflict"}, "ResponseMetadata": {"HTTPStatusCode": 409}}, "PutObject"
    )

    def refuse(**_):
        raise refusal

    with patch.object(client, "put_object", refuse, create=True):
        with pytest.raises(StoreUnavailable, match="20 times"):
            store.blobs.put({digest: [content]}, HOUR)
        store.conditions._found.get().update(put=True)
        with pytest.raises(StoreUnavailable, match="100 times"):
            store.pointers.swap("p", None, b"1")


# -- from a URL


@pytest.mark.parametrize(
    ("url", "shown"),
    (
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b?region=eu-central-1", "s3://bucket/a/b"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        (
            "s3://key:se%2Fcret@bucket/a?endpoint_url=http://h:9000",
            "s3://bucket/a?endpoint_url=http://h:9000",
        ),
    ),
)
def test_a_url_is_shown_without_credentials(url, shown):
    """A store's URL is shown with its endpoint and without secrets."""
    assert open_store(url).url == shown


@pytest.mark.parametrize(
    ("url", "message"),
    (
        ("s3://", "a bucket is written"),
        ("s3://bucket:80", "a bucket is written"),
        ("s3://a,b", "a bucket is written"),
        ("s3://bucket/a//b", "a prefix is of"),
        ("s3://bucket/a b", "a prefix is of"),
        ("s3://bucket/..", "a prefix is of"),
        ("s3://bucket?regio=x", "unknown option 'regio'; known: .*region"),
        ("s3://bucket?endpoint_url=host:9000", "is not a URL such as https"),
        ("s3://bucket?endpoint_url=http://u:p@h", "is not a URL such as https"),
        ("s3://bucket?addressing_style=dns", "one of auto, path, virtual"),
        ("s3://bucket?threads=0", "a whole number of at least 1"),
        ("s3://bucket?max_attempts=x", "a whole number"),
        ("s3://bucket?read_timeout=0", "a number of seconds above 0"),
        ("s3://bucket?sse=rot13", "one of AES256, aws:kms"),
        ("s3://bucket?sse=AES256&sse_kms_key_id=x", "need sse=aws:kms"),
        ("s3://key@bucket", "an access key and a secret key"),
        ("s3://key:secret@bucket?profile=x", "not both"),
    ),
)
def test_wrong_urls_and_options_are_named(url, message):
    """A wrong URL or option is refused by name."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        open_store(url)
    assert "secret" not in str(caught.value).replace("a secret key: s3://key:secret@", "")


def test_options_reach_boto3(monkeypatch):
    """Region, endpoint, addressing, timeouts, and credentials reach the client."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    store = open_store(
        "s3://us%2Fer:p%2Fw@bucket?region=eu-west-3&endpoint_url=https://h:1&connect_timeout=2"
        "&read_timeout=3&max_attempts=4&threads=5&sse=aws:kms&sse_kms_key_id=k&sse_bucket_key=1"
    )
    client = store.client._clients.get()
    credentials = client._request_signer._credentials
    config = client.meta.config
    assert (credentials.access_key, credentials.secret_key) == ("us/er", "p/w")
    assert (client.meta.region_name, client.meta.endpoint_url) == ("eu-west-3", "https://h:1")
    assert (config.connect_timeout, config.read_timeout) == (2, 3)
    assert config.retries["total_max_attempts"] == 4
    assert config.s3["addressing_style"] == "path"
    assert store.client._record_clients.get().meta.config.retries["total_max_attempts"] == 1
    assert store.client.threads.number == 5
    assert store.client._writing == {
        "ServerSideEncryption": "aws:kms",
        "SSEKMSKeyId": "k",
        "BucketKeyEnabled": True,
    }
    found = open_store("s3://bucket?region=eu-west-3").client._clients.get()
    assert found.meta.config.s3["addressing_style"] == "auto"
    assert "amazonaws.com" in found.meta.endpoint_url


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    """Remove all credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path


def test_credentials_come_from_boto3(no_credentials, monkeypatch):
    """Profiles and the environment provide credentials; without any, the error says where it
    searched.
    """
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        open_store("s3://bucket").blobs.hold([blob()[0]], 1)
    with pytest.raises(StoreError, match=r"\(team\).*check profile="):
        open_store("s3://bucket?profile=team").blobs.hold([blob()[0]], 1)
    (no_credentials / "credentials").write_text(
        "[team]\naws_access_key_id = from-profile\naws_secret_access_key = x\n"
    )
    client = open_store("s3://bucket?profile=team").client._clients.get()
    assert client._request_signer._credentials.access_key == "from-profile"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    client = open_store("s3://bucket").client._clients.get()
    assert client._request_signer._credentials.access_key == "from-environment"


def test_without_boto3_the_extra_is_named():
    """Without boto3, opening a store names the extra to install; importing works."""
    code = (
        "import sys; sys.modules['boto3'] = None; sys.modules['botocore'] = None\n"
        "import offload.stores.s3.connect\n"
        "from offload.stores import open_store\n"
        "open_store('s3://bucket')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert 'ConfigurationError: store s3://bucket: S3 needs boto3: pip install "offload[s3]"' in (
        done.stderr
    )


# -- the server's clock


def test_dates_bound_the_servers_time(monkeypatch):
    """Dates in whole seconds, read often, bound the server's time to within a request."""
    now = [50.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = ServerClock()
    assert clock.bounds() == (-math.inf, math.inf)
    ahead = 1000.3  # to be found out

    def ask(at):
        now[0] = at + 0.01
        clock.learn(math.floor(at + 0.005 + ahead), at, at + 0.01)
        earliest, latest = clock.bounds()
        assert earliest <= now[0] + ahead <= latest
        return latest - earliest

    assert ask(50.0) <= 1.02
    for step in range(300):
        width = ask(50.1 + step * 0.013)
    assert width < 0.04
    ahead -= 500.0  # its clock was set
    assert ask(60.0) > 0.9


# -- threads


def test_threads_are_bounded_and_started_late():
    """One item is done by the caller; many are done in a bounded number of threads, and errors are
    raised at the end.
    """
    threads = Threads(3, "test")
    caller = threading.get_ident()
    assert threads.each(lambda _: threading.get_ident(), [1]) == [caller]
    assert list(threads.ahead(lambda _: threading.get_ident(), [1], 5)) == [caller]
    assert threads._pools.take() is None
    meeting = threading.Barrier(3)
    found = threads.each(lambda _: (meeting.wait(10) and 0) or threading.get_ident(), range(6))
    assert len(set(found)) == 3
    under_way = []

    def fail(number):
        under_way.append(number)
        if number == 0:
            raise ValueError
        under_way.remove(number)

    with pytest.raises(ValueError):
        threads.each(fail, range(20))
    assert under_way == [0]
    threads.close()
    assert threads.each(lambda number: number, range(5)) == list(range(5))
    threads.close()


def test_reading_ahead_is_bounded():
    """At most a window is read ahead, and what was not started when the reader stops never is."""
    threads = Threads(8, "test")
    started = []
    reading = threads.ahead(started.append, range(100), 3)
    next(reading)
    reading.close()
    threads.close()
    assert len(started) <= 4


# -- a real server


@pytest.fixture
def real(s3):
    store = open_store(s3.url(os.urandom(4).hex()))
    yield store
    store.close()


@pytest.mark.server
def test_a_late_copy_cannot_shorten_a_lifetime(s3, real):
    """Extending a lifetime that others have extended meanwhile needs another check."""
    digest, content = blob()
    real.blobs.put({digest: [content]}, 10)
    seen = real.blobs.life_at(digest)
    other = open_store(s3.url(real.client.prefix.strip("/")))
    assert other.blobs.hold([digest], 100 * HOUR) == set()
    assert real.blobs._prolong(digest, seen, HOUR) is None
    assert scanned(real)[digest].ttl > 150 * HOUR
    other.close()


@pytest.mark.server
def test_a_real_sweep(s3, real):
    """On a real server, conditions on deletions work, and live blobs stay."""
    short = open_store(s3.url(real.client.prefix.strip("/"), skew=0, ahead=0))
    ended, kept = blobs(5), blobs(5)
    short.blobs.put(ended, 0.001)
    real.blobs.put(kept, HOUR)
    removed = []
    wait_until(lambda: removed.append(swept(short)) or sum(removed) == 5, "all five are removed")
    listed = s3_client(s3).list_objects_v2(Bucket=BUCKET, Prefix=real.client.prefix)["Contents"]
    assert len(listed) == 5
    assert contents(real, kept) == [content for (content,) in kept.values()]
    short.close()


@pytest.mark.server
def test_only_large_bodies_wait_for_100_continue(s3, real):
    """Small bodies, also empty ones, are sent at once, and the next answers are still parsed."""
    asked = []

    def see(request, **_):
        asked.append((int(request.headers["Content-Length"]), "Expect" in request.headers))

    client = real.client._record_clients.get()
    client.meta.events.register("before-send.s3.PutObject", see)
    for body in (b"", b"x" * 1000, b"", body_of([bytes(100_000)]), b"x"):
        real.client.ask("put_object", records=True, Key=f"{real.client.prefix}some", Body=body)
    assert asked == [(0, False), (1000, False), (0, False), (100_000, True), (1, False)]


@pytest.mark.server
def test_uploads_copy_nothing(real):
    """Storing needs no memory of the size of the value."""
    content = memoryview(bytearray(os.urandom(1 << 20) * 24))
    digests = [blob()[0] for _ in range(6)]
    chunks = {
        digest: [b"\0", content[at << 22 : (at + 1) << 22]] for at, digest in enumerate(digests)
    }
    real.blobs.put(blobs(2), HOUR)  # clients and threads exist by now
    tracemalloc.start()
    try:
        real.blobs.put(chunks, HOUR)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20
    assert [bytes(found) for found in real.blobs.get(digests, 5 << 20)] == [
        b"".join(parts) for parts in chunks.values()
    ]


@pytest.mark.server
def test_greenlets_work_at_once(s3):
    """With gevent, several greenlets put and get many blobs at once."""
    code = """
        from gevent import monkey; monkey.patch_all()
        import sys, gevent
        from offload.stores import open_store
        from offload.testing.store import HOUR, blobs, contents
        store = open_store(sys.argv[1])
        def work():
            many = blobs(8, 100_000)
            store.blobs.put(many, HOUR)
            assert store.blobs.hold(list(many), HOUR) == set()
            assert contents(store, many) == [content for (content,) in many.values()]
            return True
        jobs = [gevent.spawn(work) for _ in range(5)]
        gevent.joinall(jobs, raise_error=True)
        assert all(job.value for job in jobs)
        store.close()
    """
    lines = "\n".join(line[8:] for line in code.splitlines())
    command = [sys.executable, "-W", "ignore", "-c", lines, s3.url(unique())]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
