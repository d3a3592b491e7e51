"""Properties of Redis stores, checked with a separate client."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest
from packaging.version import Version

from offload.digest import digest_of
from offload.errors import IntegrityError, StoreError, StoreUnavailable
from offload.stores import open_store
from offload.stores.capabilities import Wanted
from offload.stores.redis import blobs as redis_blobs
from offload.stores.redis.client import script
from offload.stores.redis.redis_internals import PACKER, Bulk
from offload.testing.store import HOUR, blob, blobs, contents, unique
from tests.support.processes import wait_until
from tests.support.round_trips import Wire
from tests.support.servers import (
    free_port,
    redis_client,
    redis_cluster,
    redis_sentinel,
    redis_server,
)

pytestmark = pytest.mark.server

JOIN = 60.0  # seconds


@pytest.fixture
def store(redis):
    store = open_store(redis.url)
    yield store
    store.close()


@pytest.fixture
def raw(redis):
    with redis_client(redis) as client:
        client.flushall()
        yield client


@pytest.fixture
def own():
    """Return a separate server that a test may break."""
    with redis_server("redis-server") as server:
        yield server


def key(digest, prefix="offload"):
    return f"{prefix}:blob:{{{digest}}}"


def calls(client, work):
    """Return how often *work* made the server run each command."""
    client.config_resetstat()
    work()
    return {
        name.removeprefix("cmdstat_"): stat["calls"]
        for name, stat in client.info("commandstats").items()
        if not name.startswith(("cmdstat_config", "cmdstat_client", "cmdstat_info"))
    }


# ------------------------------------------------------------------ stored keys


def test_a_blob_is_one_string_with_an_expiry(store, raw):
    """A blob is the concatenation of its parts under a key with its digest as hash tag."""
    digest, content = blob(10_000)
    store.blobs.put({digest: [b"\0", memoryview(content)]}, 100)
    assert raw.keys() == [key(digest).encode()]
    assert raw.get(key(digest)) == b"\0" + content
    assert 99_000 < raw.pttl(key(digest)) <= 100_000


def test_a_prefix_keeps_stores_apart(redis, raw):
    """Stores with different prefixes in one database don't see each other."""
    one, other = open_store(redis.url), open_store(redis.url, prefix="team:b")
    digest, content = blob()
    other.blobs.put({digest: [content]}, HOUR)
    other.pointers.swap("p", None, b"1")
    other.leases.acquire("l", "me", HOUR)
    assert sorted(map(bytes.decode, raw.keys())) == sorted(
        [key(digest, "team:b"), "team:b:pointer:p", "team:b:lease:l"]
    )
    assert one.blobs.hold([digest], HOUR) == {digest}
    assert list(one.blobs.scan()) == []
    assert list(one.pointers.names()) == []
    assert one.leases.acquire("l", "you", HOUR)
    assert other.url.endswith("?prefix=team:b")


def test_a_permanent_blob_stays_permanent(store, raw):
    """A hold doesn't add an expiry to a blob that an operator made permanent."""
    digest, content = blob()
    raw.set(key(digest), content)
    assert store.blobs.hold([digest], 5) == set()
    store.blobs.put({digest: [content]}, 5)
    assert raw.pttl(key(digest)) == -1
    assert [info.ttl for info in store.blobs.scan()] == [math.inf]


def test_a_released_lease_expires(store, raw):
    """A lease's key has an expiry, also after the lease was released."""
    store.leases.acquire("l", "me", 10)
    assert 0 < raw.pttl("offload:lease:l") <= 86_410_000
    store.leases.release("l", "me")
    assert 0 < raw.pttl("offload:lease:l") <= 86_400_000


def test_fencing_numbers_rise_after_a_lease_expired(store, raw):
    """After a lease's record has expired, its fencing numbers still rise."""
    first = store.leases.acquire("l", "me", 10)
    raw.delete("offload:lease:l")
    assert store.leases.acquire("l", "you", 10) > first


def test_fencing_numbers_rise_when_the_clock_stands_still(store, raw):
    """A fencing number ahead of the server's clock is followed by the next number."""
    ahead = int((time.time() + 5000) * 1e6)
    raw.hset("offload:lease:l", mapping={"owner": "me", "fence": ahead, "until": 0})
    assert store.leases.acquire("l", "you", 10) == ahead + 1


def test_a_key_that_scan_repeats_is_yielded_once(store, raw, monkeypatch):
    """SCAN may return a key twice while the server's table grows; the blob is yielded once."""
    many = blobs(3)
    store.blobs.put(many, HOUR)
    client = store.client.driver()
    scan = client.scan_iter
    monkeypatch.setattr(client, "scan_iter", lambda **options: [*scan(**options)] * 2)
    assert sorted(info.digest for info in store.blobs.scan()) == sorted(many)


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize("number", (1, 25, 3000))
def test_hold_is_one_round_trip(store, raw, monkeypatch, number):
    """`hold` takes one round trip for any number of digests."""
    many = blobs(number, 1)
    many.update(blobs(number - len(many), 8))
    store.blobs.put(many, HOUR)
    store.blobs.hold(list(many), HOUR)
    wire = Wire(monkeypatch)
    assert store.blobs.hold(list(many), HOUR) == set()
    assert wire.trips == 1


def test_hold_runs_one_script_for_many(store, raw):
    """On one server, holding a thousand digests runs the script once."""
    many = blobs(1000, 8)
    store.blobs.hold(list(many), HOUR)
    counted = calls(raw, lambda: store.blobs.hold(list(many), HOUR))
    assert counted["evalsha"] == 1
    assert counted["pttl"] == 2 * counted["zadd"] == 2000


@pytest.mark.parametrize("lives", (1, 3))
def test_holding_and_storing_is_one_round_trip(store, raw, monkeypatch, lives):
    """`hold_and_put` takes one round trip, whatever is missing and for how long each is held."""
    many = blobs(12, 1000)
    store.blobs.hold([*many][:1], HOUR)  # the server knows the script
    store.blobs.put(dict([*many.items()][:4]), HOUR)
    wanted = {
        digest: Wanted(HOUR * (1 + at % lives), parts)
        for at, (digest, parts) in enumerate(many.items())
    }
    wire = Wire(monkeypatch)
    assert store.blobs.hold_and_put(wanted, "task:1") == {*[*many][4:]}
    assert wire.trips == 1
    assert contents(store, many) == [parts[0] for parts in many.values()]


def test_a_blob_that_expires_while_it_is_held_is_stored(store, monkeypatch):
    """A blob that existed when its content arrived, and not any more when it is held, is stored."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    run = store.client._run

    def expiring(commands):
        monkeypatch.undo()
        first = run(commands[:1])
        store.blobs.delete([digest])
        return [*first, *run(commands[1:])]

    monkeypatch.setattr(store.client, "_run", expiring)
    assert store.blobs.hold_and_put({digest: Wanted(HOUR, [content])}, "task:1") == {digest}
    assert contents(store, [digest]) == [content]


def test_a_blob_that_is_stored_but_not_held_expires_soon(store, raw, monkeypatch):
    """If a process dies between storing a blob and holding it, the blob expires within seconds;
    the next hold makes it live as long as wanted.
    """
    digest, content = blob()
    wanted = {digest: Wanted(HOUR, [content])}
    run = store.client._run

    def dying(commands):
        run([command for command in commands if command[0] == "SET"])
        raise InterruptedError

    monkeypatch.setattr(store.client, "_run", dying)
    with pytest.raises(InterruptedError):
        store.blobs.hold_and_put(wanted, "task:1")
    monkeypatch.undo()
    key = store.blobs._key(digest)
    assert 0 < raw.pttl(key) <= redis_blobs.UNHELD * 1000
    assert store.blobs.hold_and_put(wanted, "task:1") == set()
    assert raw.pttl(key) > (HOUR - 60) * 1000


def test_small_blobs_share_round_trips(store, raw, monkeypatch):
    """Putting and getting many small blobs shares round trips."""
    many = blobs(500, 100)
    store.blobs.put(blobs(1), HOUR)
    wire = Wire(monkeypatch)
    store.blobs.put(many, HOUR)
    assert wire.trips == 2
    wire.trips = 0
    assert len(contents(store, many, 200)) == 500
    assert wire.trips == 2


def test_concurrent_transfers_are_bounded(store, raw, monkeypatch):
    """Large blobs are transferred a few at a time, and reading stays as close behind."""
    monkeypatch.setattr(redis_blobs, "WINDOW", 4 << 20)
    many = blobs(10, 1 << 20)
    wire = Wire(monkeypatch)
    store.blobs.put(many, HOUR)
    assert max(wire.sizes) <= (4 << 20) + 4000
    reading = store.blobs.get(list(many), 1 << 20)
    counted = calls(raw, lambda: next(reading))
    assert counted["getrange"] == 4


def test_no_more_than_the_limit_is_read(store, raw):
    """Of a blob over the limit, the server sends at most one byte more than the limit."""
    digest, content = blob(8 << 20)
    store.blobs.put({digest: [content]}, HOUR)
    before = raw.info("stats")["total_net_output_bytes"]
    with pytest.raises(IntegrityError):
        contents(store, [digest], 1000)
    assert raw.info("stats")["total_net_output_bytes"] - before < 100_000


def test_a_blob_is_sent_without_a_copy(store, raw, monkeypatch):
    """The socket gets views of the caller's own memory."""
    content = bytearray(os.urandom(3 << 20))
    wire = Wire(monkeypatch)
    store.blobs.put({digest_of([content]): [b"\0", memoryview(content)]}, HOUR)
    views = [piece for piece in wire.sent if isinstance(piece, memoryview)]
    assert sum(map(len, views)) == len(content)
    assert all(view.obj is content for view in views)


@pytest.mark.parametrize("sizes", ((), (0,), (1, 5), (6000,), (6001,), (1 << 20, 3, (1 << 20) + 1)))
def test_the_packer_writes_the_protocol(sizes):
    """A command with buffers is packed according to the protocol."""
    parts = [os.urandom(size) for size in sizes]
    content = b"".join(parts)
    packed = b"".join(PACKER.pack("SET", "k\u00e9y", Bulk(parts), "PX", 10))
    assert packed == (
        b"*5\r\n$3\r\nSET\r\n$4\r\nk\xc3\xa9y\r\n$%d\r\n%b\r\n$2\r\nPX\r\n$2\r\n10\r\n"
        % (len(content), content)
    )


def test_the_packer_splits_commands_of_several_words():
    """A command of several words is sent as redis-py sends it: each word for itself."""
    assert PACKER.pack("CONFIG GET", "a") == [b"*3\r\n$6\r\nCONFIG\r\n$3\r\nGET\r\n$1\r\na\r\n"]


def test_a_connection_at_hand_that_the_server_closed_is_replaced(store, raw):
    """A call after the server has closed the idle connection succeeds, without a retry."""
    store.pointers.swap("a", None, b"1")
    for each in raw.client_list():
        if each["id"] != str(raw.client_id()):
            raw.client_kill_filter(_id=each["id"])
    assert store.pointers.read("a") == b"1"
    store.close()
    assert store.pointers.read("a") == b"1"


def test_a_connection_at_hand_is_lent_to_others(redis):
    """The idle connection that is kept at hand serves redis-py's own calls, too: a pool that is
    limited to one needs no other.
    """
    store = open_store(f"{redis.url}?max_connections=1")
    pool = store.client.driver().connection_pool
    for _ in range(2):
        assert store.pointers.read("none") is None
        assert len(pool._spare) == 1
        assert list(store.pointers.names("none")) == []  # by redis-py's own client
        assert pool._spare == []
    store.close()


# ------------------------------------------------------------------ races


def test_a_blob_that_expires_while_it_is_put_is_stored(store, raw, monkeypatch):
    """If the old copy expires during a put that found it, the new one is stored."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    extend = store.blobs._extend

    def expired_meanwhile(digests, life):
        raw.delete(key(digest))
        monkeypatch.undo()
        return extend(digests, life)

    monkeypatch.setattr(store.blobs, "_extend", expired_meanwhile)
    store.blobs.put({digest: [content]}, HOUR)
    assert raw.get(key(digest)) == content


def test_the_longest_of_racing_lifetimes_wins(redis, raw):
    """Of racing puts and holds with different lifetimes, the longest wins."""
    digest, content = blob()
    stores = [open_store(redis.url) for _ in range(4)]
    for _ in range(20):
        raw.delete(key(digest))
        start = threading.Barrier(4)

        def race(number, start=start):
            start.wait()
            stores[number].blobs.put({digest: [content]}, (10, 1000, 20, 500)[number])
            stores[number].blobs.hold([digest], 5)

        threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert raw.pttl(key(digest)) > 900_000


def test_a_partial_command_stores_nothing(redis, raw, store):
    """A writer that dies while sending stores nothing."""
    digest, content = blob(1 << 20)
    with socket.create_connection((redis.host, redis.port)) as connection:
        packed = PACKER.pack("SET", key(digest), Bulk([content]), "NX", "PX", 100_000)
        connection.sendall(b"".join(packed)[:-50_000])
        wait_until(lambda: raw.info("clients")["connected_clients"] >= 2, "it is connected")
    assert store.blobs.hold([digest], HOUR) == {digest}
    assert raw.exists(key(digest)) == 0


# ------------------------------------------------------------------ server failures


@pytest.mark.parametrize("name", ("redis", "valkey", "cluster"))
def test_flushed_scripts_are_sent_again(request, name):
    """Scripts that the server has lost are sent again within the same call."""
    server = request.getfixturevalue(name)
    store = open_store(server.url)
    many = blobs(50, 10)
    store.blobs.put(many, HOUR)
    for node in getattr(server, "nodes", [server]):
        with redis_client(node) as client:
            client.script_flush()
    assert store.blobs.hold(list(many), HOUR) == set()
    for node in getattr(server, "nodes", [server]):
        with redis_client(node) as client:
            assert client.script_exists(script("hold").sha) == [True]
            client.script_flush()
    assert store.leases.acquire("flushed", "me", 1)
    store.leases.release("flushed", "me")


def test_a_restarted_server_is_connected_to_again(own):
    """Pooled connections to a restarted server are replaced without an error."""
    store = open_store(own.url)
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    own.stop()
    own.start()
    assert store.blobs.hold([digest], HOUR) == {digest}
    store.blobs.put({digest: [content]}, HOUR)
    assert contents(store, [digest]) == [content]


def every_call(store):
    digest, content = blob()
    return {
        "missing": lambda: store.blobs.hold([digest], 1),
        "put": lambda: store.blobs.put({digest: [content]}, 1),
        "get": lambda: contents(store, [digest]),
        "delete": lambda: store.blobs.delete([digest]),
        "scan": lambda: list(store.blobs.scan()),
        "read": lambda: store.pointers.read("p"),
        "swap": lambda: store.pointers.swap("p", None, b""),
        "names": lambda: list(store.pointers.names()),
        "acquire": lambda: store.leases.acquire("l", "me", 1),
        "renew": lambda: store.leases.renew("l", "me", 1),
        "release": lambda: store.leases.release("l", "me"),
    }


@pytest.mark.parametrize(
    "form",
    (
        "redis://:secret@127.0.0.1:{port}/0",
        "rediss://:secret@127.0.0.1:{port}/0",
        "redis+sentinel://:secret@127.0.0.1:{port}/0",
        "redis+cluster://:secret@127.0.0.1:{port}",
        "redis+socket:///nowhere/{port}?password=secret",
    ),
)
def test_no_server_is_unavailable(form):
    """Without a server, every call raises StoreUnavailable, without the password."""
    store = open_store(form.format(port=free_port()))
    for name, call in every_call(store).items():
        with pytest.raises(StoreUnavailable, match="check that it runs") as caught:
            call()
        assert "secret" not in str(caught.value), name
        assert caught.value.store == store.url


def test_a_server_that_hangs_is_unavailable(own):
    """A server that doesn't answer in time raises StoreUnavailable, and works again afterwards."""
    store = open_store(own.url, socket_timeout=0.2)
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    with redis_client(own) as client:
        client.execute_command("CLIENT", "PAUSE", 600_000, "ALL")
        with pytest.raises(StoreUnavailable, match="imeout"):
            store.blobs.hold([digest], HOUR)
        own.stop()
        own.start()
    assert store.blobs.hold([digest], HOUR) == {digest}


def test_a_wrong_password_is_a_final_error():
    """A wrong or missing password raises a final StoreError that says what to check."""
    with redis_server("redis-server", ["--requirepass", "right"]) as server:
        address = f"{server.host}:{server.port}"
        for login in (":wrong@", "", "nobody:right@"):
            store = open_store(f"redis://{login}{address}")
            for call in every_call(store).values():
                with pytest.raises(StoreError, match="check user name, password") as caught:
                    call()
                assert not isinstance(caught.value, StoreUnavailable)
                assert "wrong" not in str(caught.value).lower().replace("wrongpass", "")
        store = open_store(f"redis://:right@{address}")
        assert store.pointers.swap("p", None, b"")
        assert "right" not in store.url


def test_missing_rights_are_a_final_error(own):
    """A user without the needed rights gets a final StoreError about them."""
    with redis_client(own) as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+hello")
    store = open_store(f"redis://reader:pw@{own.host}:{own.port}")
    for name in ("put", "missing", "swap", "acquire"):
        with pytest.raises(StoreError, match="permissions") as caught:
            every_call(store)[name]()
        assert not isinstance(caught.value, StoreUnavailable)
    assert store.pointers.read("p") is None


def test_a_foreign_key_is_a_final_error(store, raw):
    """A key of another type in place of a blob is a final StoreError, and doesn't stop a scan."""
    digest, content = blob()
    raw.lpush(key(digest), "x")
    with pytest.raises(StoreError, match=r"WRONGTYPE|wrong kind") as caught:
        contents(store, [digest])
    assert not isinstance(caught.value, StoreUnavailable)
    other, content = blob()
    store.blobs.put({other: [content]}, HOUR)
    assert [info.digest for info in store.blobs.scan()] == [other]


def test_full_memory_is_unavailable(own):
    """A server over maxmemory refuses writes, and the error says what to do."""
    store = open_store(own.url)
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    with redis_client(own) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        failing = every_call(store)
        for name in ("put", "swap", "acquire"):
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                failing[name]()
        assert contents(store, [digest]) == [content]
        assert store.blobs.hold([digest], HOUR * 2) == set()
        assert client.ttl(key(digest)) > HOUR
        store.blobs.delete([digest])


def test_a_replica_is_unavailable(own):
    """A read-only replica, as after a failover, raises StoreUnavailable."""
    with redis_client(own) as client:
        client.replicaof("127.0.0.1", free_port())
        store = open_store(own.url)
        for name in ("put", "missing", "swap", "acquire"):
            if name == "missing":
                continue  # writes nothing for no digests
            with pytest.raises(StoreUnavailable, match="replica"):
                every_call(store)[name]()


def test_too_few_connections_is_unavailable(own):
    """A server with no connection left raises StoreUnavailable."""
    store = open_store(own.url)
    with redis_client(own) as client:
        client.config_set("maxclients", 1)
        with pytest.raises(StoreUnavailable, match="maxclients"):
            store.pointers.read("p")


def test_an_untrusted_certificate_is_a_final_error(redis_tls):
    """An untrusted certificate is a final StoreError; an option disables verification."""
    store = open_store(f"rediss://localhost:{redis_tls.port}")
    with pytest.raises(StoreError, match="ssl_ca_certs") as caught:
        store.pointers.read("p")
    assert not isinstance(caught.value, StoreUnavailable)
    for requirement in ("none", "CERT_NONE"):
        store = open_store(f"rediss://localhost:{redis_tls.port}?ssl_cert_reqs={requirement}")
        assert store.pointers.read("p") is None


def test_connections_have_a_limit(own):
    """With max_connections, one concurrent call too many raises StoreUnavailable."""
    store = open_store(own.url, max_connections=1)
    digest, _ = blob()
    os.kill(own.pid, signal.SIGSTOP)
    busy = threading.Thread(target=lambda: store.blobs.hold([digest], 1))
    busy.start()
    try:
        pool = store.client.driver().connection_pool
        wait_until(lambda: pool._in_use_connections, "a connection is in use")
        with pytest.raises(StoreUnavailable, match="max_connections"):
            store.pointers.read("p")
    finally:
        os.kill(own.pid, signal.SIGCONT)
        busy.join()
    assert store.pointers.read("p") is None


@pytest.mark.parametrize("server", ("redis", "cluster"))
def test_waiting_for_a_release_leaves_connections(request, server, monkeypatch):
    """However many threads wait for a lease, half of a limited number of connections are free for
    other calls, such as those of its owner; a release wakes those that wait with a connection.
    """
    store = open_store(request.getfixturevalue(server).url, max_connections=4)
    name, ended, woken = unique("lease"), threading.Event(), []
    clock = SimpleNamespace(
        monotonic=lambda: time.monotonic() + ended.is_set() * JOIN,
        sleep=lambda _seconds: ended.wait(JOIN),
    )
    monkeypatch.setattr("offload.stores.redis.store.time", clock)
    assert store.leases.acquire(name, "owner", HOUR)

    def wait():
        store.leases.wait_for_release(name, JOIN)
        woken.append(ended.is_set())

    threads = [threading.Thread(target=wait) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            assert store.leases.renew(name, "owner", HOUR)
        assert store.leases.release(name, "owner")
        wait_until(lambda: woken == [False], "the release wakes one")
        store.leases.notify(name)
        wait_until(lambda: woken == [False] * 2, "the next is woken")
    finally:
        ended.set()
        for thread in threads:
            thread.join(JOIN)
    assert woken == [False] * 2 + [True] * 4
    store.close()


@pytest.mark.parametrize("name", ("redis", "sentinel", "cluster"))
def test_an_interrupted_call_leaves_no_answers_behind(request, name, monkeypatch):
    """A call interrupted midway, by a soft time limit, doesn't affect the next one."""
    from redis import __version__
    from redis.connection import Connection

    store = open_store(request.getfixturevalue(name).url)
    many = blobs(5)
    store.blobs.put(many, HOUR)
    read = Connection.read_response
    reading = []

    def interrupted(connection, *args, **options):
        reading.append(connection)
        if len(reading) == 2:
            raise KeyboardInterrupt
        return read(connection, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "read_response", interrupted)
        with pytest.raises(KeyboardInterrupt):
            contents(store, many, 1000)
    # Before redis-py 7.4, a pipeline to a Cluster abandons the connection: it never lends it again.
    if name != "cluster" or Version(__version__) >= Version("7.4"):
        assert reading[-1]._sock is None
    assert contents(store, many) == [content for (content,) in many.values()]


@pytest.mark.parametrize("name", ("redis", "cluster"))
def test_an_interrupted_wait_leaves_no_answer_behind(request, name, monkeypatch):
    """A wait for a release that is interrupted before its answer doesn't affect the next call."""
    from redis.connection import Connection

    store = open_store(request.getfixturevalue(name).url)
    store.pointers.swap("p", None, b"1")
    send = Connection.send_packed_command

    def interrupted(connection, *args, **options):
        send(connection, *args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "send_packed_command", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.leases.wait_for_release("lock", 0.5)
    assert store.pointers.read("p") == b"1"


def test_a_wait_is_as_long_as_asked(redis, monkeypatch):
    """A wait for a release ends in time, also if the connection's timeout is shorter."""
    store = open_store(redis.url)
    now, asked = [0.0], []

    def time_out(key, seconds):
        asked.append(seconds)
        now[0] += 1
        raise StoreUnavailable("timeout")

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(store.client, "wait_for", time_out)
    monkeypatch.setattr("offload.stores.redis.store.time.monotonic", lambda: now[0])
    monkeypatch.setattr("offload.stores.redis.store.time.sleep", sleep)
    store.leases.wait_for_release("lock", 10)
    assert now == [10]
    store.leases.wait_for_release("lock", 0.0001)
    assert asked[-1] >= 0.01  # Redis before 7 takes less than 0.001 for no limit


def test_greenlets_share_a_store(redis):
    """With gevent, greenlets share one store, wait for each other, and get their own answers."""
    pytest.importorskip("gevent")
    code = """
        from gevent import monkey; monkey.patch_all()
        import gevent, sys
        from offload.stores import open_store
        from offload.testing.store import blobs, contents
        store = open_store(sys.argv[1])
        def work():
            own = blobs(20, 5000)
            store.blobs.put(own, 100)
            assert store.blobs.hold(list(own), 100) == set()
            return contents(store, own) == [content for (content,) in own.values()]
        jobs = [gevent.spawn(work) for _ in range(10)]
        gevent.joinall(jobs, timeout=30)
        sys.exit(not all(job.value for job in jobs))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), redis.url]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0


# ------------------------------------------------------------------ Sentinel and Cluster


def test_a_failover_is_followed():
    """After a failover, the store uses the new primary, with everything that was in sync."""
    with redis_sentinel() as setup:
        store = open_store(setup.url, socket_timeout=2)
        many = blobs(20, 1000)
        store.blobs.put(many, HOUR)
        number = store.leases.acquire("l", "me", HOUR)
        setup.wait_for_sync()
        setup.fail_over()

        def settled():
            try:
                return store.blobs.hold(list(many), HOUR) == set()
            except StoreUnavailable:
                return False

        wait_until(settled, "the store has found the new primary")
        assert contents(store, many) == [content for (content,) in many.values()]
        assert store.leases.acquire("l", "you", 1) is None
        assert store.leases.acquire("l", "me", 1) == number
        with redis_client(setup.primary) as client:
            assert client.exists(*map(key, many)) == 20


def test_blobs_are_spread_over_a_cluster(cluster):
    """Blobs are distributed over nodes by digest, and every call finds them."""
    store = open_store(cluster.url)
    many = blobs(300, 100)
    store.blobs.put(many, HOUR)
    held = []
    for node in cluster.nodes:
        with redis_client(node) as client:
            held.append(sum(1 for _ in client.scan_iter("offload:blob:*", count=1000)))
    assert all(count > 50 for count in held)
    assert {info.digest for info in store.blobs.scan()} >= set(many)
    store.blobs.delete(many)
    assert store.blobs.hold(list(many), 1) == set(many)


def test_a_cluster_node_comes_back():
    """While a node is down, its blobs are unavailable; when it is back, they work again."""
    with redis_cluster() as setup:
        store = open_store(setup.url, socket_timeout=1, socket_connect_timeout=1)
        many = blobs(60, 100)
        store.blobs.put(many, HOUR)
        setup.nodes[1].stop()
        for call in (
            lambda: store.blobs.hold(list(many), HOUR),
            lambda: store.blobs.put(many, HOUR),
            lambda: contents(store, many),
            lambda: list(store.blobs.scan()),
        ):
            with pytest.raises(StoreUnavailable):
                call()
        setup.nodes[1].start()

        def works():
            try:
                store.blobs.put(many, HOUR)
            except StoreUnavailable:
                return False
            return contents(store, many) == [content for (content,) in many.values()]

        wait_until(works, "the node is used again")


def test_moved_slots_are_followed(cluster):
    """A client with an outdated slot table finds slots that moved to another node."""
    store = open_store(cluster.url)
    clients = [redis_client(node) for node in cluster.nodes]
    for client in clients:
        client.flushall()  # a slot with other tests' keys can't be moved
    digest, content = blob()
    store.blobs.put({digest: [content]}, HOUR)
    slot = clients[0].execute_command("CLUSTER", "KEYSLOT", key(digest))
    ids = [client.execute_command("CLUSTER", "MYID") for client in clients]
    owner = next(
        at for at, client in enumerate(clients) if client.dbsize() and _has(client, digest)
    )
    target = (owner + 1) % len(clients)
    clients[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[owner])
    clients[owner].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    clients[owner].execute_command(
        "MIGRATE", cluster.nodes[target].host, cluster.nodes[target].port, key(digest), 0, 5000
    )
    # Halfway, the old node answers ASK; commands with several keys must wait.
    assert contents(store, [digest]) == [content]
    with pytest.raises(StoreUnavailable):
        store.blobs.hold([digest], HOUR)
    for client in (clients[target], clients[owner]):
        client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
    # At the end it answers MOVED.
    assert store.blobs.hold([digest], HOUR) == set()
    assert contents(store, [digest]) == [content]
    store.blobs.put({digest: [content]}, HOUR * 2)
    with clients[target] as client:
        assert client.ttl(key(digest)) > HOUR
    for client in clients:
        client.close()


def _has(client, digest):
    from redis.exceptions import ResponseError

    try:
        return client.exists(key(digest))
    except ResponseError:
        return False
