"""Open stores from URLs."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import pytest

from offload.digest import digest_of
from offload.errors import ConfigurationError
from offload.metrics.storage import sums_of
from offload.stores import open_store, register_scheme
from offload.stores.memory import MemoryStore


def options_of(url, **options):
    """Return the options for redis-py's connections, without connecting."""
    pool = open_store(url, **options).client.driver().connection_pool
    return pool.connection_kwargs


@pytest.mark.parametrize(
    ("url", "shown"),
    (
        ("redis://host", "redis://host"),
        ("redis://user:secret@host:1234/5", "redis://host:1234/5"),
        ("redis://host?password=secret&db=3", "redis://host/3"),
        ("redis://:secret@host/0?db=6", "redis://host/6"),
        ("redis+socket:///run/redis.sock?db=6", "redis+socket:///run/redis.sock?db=6"),
        ("redis+sentinel://a:1/2?db=6", "redis+sentinel://a:1/6?master=mymaster"),
        ("rediss://:s%23cret@host/0?prefix=other", "rediss://host/0?prefix=other"),
        ("valkey://:secret@host", "valkey://host"),
        ("redis+socket:///run/redis.sock?password=secret", "redis+socket:///run/redis.sock"),
        (
            "redis+sentinel://u:secret@a:1,b:2/4?master=main&sentinel_password=secret",
            "redis+sentinel://a:1,b:2/4?master=main",
        ),
        ("redis+cluster://u:secret@a:1,b:2", "redis+cluster://a:1,b:2"),
        ("redis+cluster://u:secret@a,b?prefix=p", "redis+cluster://a,b?prefix=p"),
        ("memory://name", "memory://name"),
        ("file:///a%20b/c", "file:///a%20b/c"),
    ),
)
def test_a_url_is_shown_without_credentials(url, shown):
    """A store's URL is shown without secrets."""
    assert open_store(url).url == shown
    assert open_store([url]).url == shown


def test_a_url_sets_address_and_credentials():
    """Host, port, database, and percent-encoded credentials reach the driver."""
    found = options_of("redis://us%40er:p%3Aa%2Fss@host:1234/5?socket_timeout=1.5")
    assert found["host"] == "host"
    assert found["port"] == 1234
    assert found["db"] == 5
    assert found["username"] == "us@er"
    assert found["password"] == "p:a/ss"
    assert found["socket_timeout"] == 1.5
    assert found["socket_connect_timeout"] == 5.0
    found = options_of("redis://[::1]:7000", password="p", db=2)
    assert (found["host"], found["port"]) == ("::1", 7000)
    assert (found["password"], found["db"]) == ("p", 2)
    assert options_of("redis://")["host"] == "localhost"
    assert options_of("redis+socket:///run/r.sock?db=4")["path"] == "/run/r.sock"


def test_certificates_are_checked_by_default():
    """TLS verifies certificates unless an option disables it."""
    found = options_of("rediss://host?ssl_ca_certs=/ca.pem")
    assert found["ssl_cert_reqs"] == "required"
    assert found["ssl_check_hostname"] is True
    assert found["ssl_ca_certs"] == "/ca.pem"
    found = options_of("rediss://host?ssl_cert_reqs=CERT_NONE")
    assert (found["ssl_cert_reqs"], found["ssl_check_hostname"]) == ("none", False)


@pytest.mark.parametrize(
    ("url", "options", "message"),
    (
        ("", {}, "has no scheme"),
        ("host:6379", {}, "no scheme: write it as redis://localhost:6379/2"),
        ("/a/path", {}, "no scheme"),
        ("ftp://host", {}, r"ftp://; known: file://, fsspec\+…://, memory://, redis://"),
        ([], {}, "one URL or several, not an empty list"),
        (["memory://", "memory://"], {}, "memory:// is listed twice"),
        ("redis://h?nonsense=1", {}, "unknown option 'nonsense'; known: .*socket_timeout"),
        ("redis://h", {"prefx": "a", "z": 1}, "unknown option 'prefx', 'z'"),
        ("redis://h?ssl_ca_certs=/x", {}, "unknown option 'ssl_ca_certs'"),
        ("redis://h?db=1", {"db": 1}, "'db' is given twice"),
        (
            "redis://h?socket_timeout=soon",
            {},
            "socket_timeout='soon' is not a number of seconds above 0",
        ),
        ("redis://h?socket_timeout=0", {}, "number of seconds above 0, or a duration such as"),
        ("redis://h?max_connections=-1", {}, "max_connections='-1' is not a whole number"),
        ("redis://h", {"prefix": "a{b}"}, "prefix='a{b}' is not a prefix of"),
        ("redis://h", {"prefix": ""}, "is not a prefix of"),
        ("redis://h", {"prefix": "a*"}, "is not a prefix of"),
        ("redis://h", {"password": 5}, "password=… is not a string"),
        ("redis://h:port", {}, "isn't a port"),
        ("redis://h:99999", {}, "isn't a port"),
        ("redis://[::1", {}, "not a store's URL"),
        ("redis://a,b", {}, "several hosts are for"),
        ("redis://h/one", {}, "'one' isn't a database number"),
        ("redis://:p#ss@h", {}, "%23"),
        ("rediss://h?ssl_cert_reqs=maybe", {}, "one of required, optional, none"),
        ("redis+sentinel://", {}, "names no host"),
        ("redis+cluster://h/1", {}, "only database 0"),
        ("file://relative/path", {}, "three slashes"),
        ("file:///", {}, "three slashes"),
        ("file:///x?skew=-1", {}, "skew='-1' is not a number of seconds"),
        ("memory://x?a=b", {}, "unknown option 'a'; known: none"),
    ),
)
def test_wrong_urls_and_options_are_named(url, options, message):
    """A wrong URL or option is refused by name, with the valid ones."""
    with pytest.raises(ConfigurationError, match=message):
        open_store(url, **options)


def test_secrets_are_in_no_error():
    """An error about a URL doesn't show its credentials."""
    for url in (
        "redis://user:secret@h?x=1",
        "redis://:secret#word@h",
        "redis://:secret/word@h",
        "redis://:secret?word@h",
        "redis://user:word#secret@h",
        "redis://user:secret@h:port",
        "nothing://user:secret@h",
        "redis://h?password=secret&password=secret",
    ):
        with pytest.raises(ConfigurationError) as caught:
            open_store(url)
        assert "secret" not in str(caught.value)


def test_a_scheme_can_be_added(monkeypatch):
    """`register_scheme` lets open_store open other URLs with their own options."""
    from offload.stores import open as module

    monkeypatch.setattr(module, "_FACTORIES", dict(module._FACTORIES))
    register_scheme("mine", lambda url: MemoryStore(url.take("name", str, "x")))
    assert open_store("mine://?name=a").url == "memory://a"
    with pytest.raises(ConfigurationError, match="known: name"):
        open_store("mine://?nam=a")


def test_drivers_are_imported_when_needed():
    """Importing offload.stores imports no driver."""
    code = (
        "import sys, offload.stores as stores; stores.open_store('memory://'); "
        "stores.open_store('file:///x'); "
        "sys.exit('offload.stores.redis' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_connections_to_redis_are_unlimited_by_default():
    """A process opens as many connections as its threads need, also with redis-py 8, which by
    default opens 100.
    """
    pool = open_store("redis://localhost/1").client.driver().connection_pool
    assert pool.max_connections == 1 << 31


@pytest.mark.parametrize("url", ("file://{}", "sqlite://{}/store", "fsspec+memory://{}"))
def test_a_dropped_store_leaves_nothing_behind(url, tmp_path):
    """A store that is dropped without being closed frees its files, and its threads end."""
    before = set(threading.enumerate())
    store = open_store(url.format(tmp_path))
    contents = [bytes([number]) for number in range(8)]
    store.blobs.put({digest_of([content]): [content] for content in contents}, 60)
    assert sums_of(store) is sums_of(store)
    assert sums_of(store).total() == {}
    files = weakref.ref(store.files)
    threads = set(threading.enumerate()) - before
    assert bool(threads) == url.startswith("fsspec")
    del store
    gc.collect()
    assert files() is None
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
