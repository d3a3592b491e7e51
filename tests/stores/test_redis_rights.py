"""A Redis user with exactly the rights listed in docs/how-to/redis.md can do everything."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import redis
from packaging.version import Version

from offload import Catalog, Offload, StoreError, StoreUnavailable, memoize
from offload.digest import digest_of
from offload.doctor import examine
from offload.doctor.store import capacity_of
from offload.metrics.latest import Noted, error_log_of
from offload.metrics.storage import sums_of
from offload.stores import open_store
from offload.stores.redis.client import script
from offload.stores.sums import CounterBatch
from offload.testing.store import HOUR, StoreSuite
from tests.hooks.test_default_store import app_of
from tests.support.servers import redis_client, redis_server

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "redis.md"
RULES = re.search(r"ACL SETUSER (shop [^`]*)```", PAGE.read_text())[1].split()
RULES = [">secret" if rule == ">PASSWORD" else rule for rule in RULES]
COMMANDS = [rule[1:] for rule in RULES if rule.startswith("+")]


@pytest.fixture(scope="module", params=("redis-server", "valkey-server"))
def server(request):
    with redis_server(request.param) as started:
        yield started


def as_user(server, *more):
    """Give the documented user its rights, changed by *more*; return the store's URL for it."""
    with redis_client(server) as client:
        client.execute_command("ACL", "DELUSER", "shop")
        client.execute_command("ACL", "SETUSER", *RULES, *more)
    return f"redis://shop:secret@{server.host}:{server.port}/0"


@pytest.mark.server
class TestRights(StoreSuite):
    """The conformance suite, which also lists what is in the store."""

    @pytest.fixture
    def store(self, server):
        store = open_store(f"{as_user(server, '+scan')}?global_keyprefix=shop:")
        yield store
        store.close()


def everything(url):
    """Do what publishers and workers do."""
    app = app_of(backend=url, result_backend_transport_options={"global_keyprefix": "shop:"})
    hook = Offload(app, retry={"max_retries": 0}, cache="off", stats_interval=0)
    store = hook.store
    ref = hook.put(list(range(100_000)))
    assert hook.get(ref)[-1] == 99_999
    hook.pin(ref, "name")
    assert hook.unpin("name")
    sums_of(store).add(CounterBatch("p", 1, Counter(a=1), Counter(a=1)))
    assert sums_of(store).total()
    assert sums_of(store).series("minute")
    assert store.leases.acquire("lease", "me", 10)
    assert store.leases.release("lease", "me")
    assert store.pointers.swap("pointer", None, b"1")
    assert store.pointers.swap("pointer", b"1", None)
    store.blobs.held_by([ref.digest], "name")
    store.blobs.peek([ref.digest], 10)
    store.blobs.delete_unheld([ref.digest])
    use_catalog(hook.catalog)
    use_memo_and_locks(hook)
    log = error_log_of(store)
    assert log.add([Noted("errors_missing", "task", "argument", 1.0, 1, "text")])
    store.close()
    return hook


def use_catalog(catalog):
    """Do with a catalog what needs no list of names."""
    catalog.save(["one", "two"], [list(range(100_000)), 2], metadata={"a": 1}).raise_first()
    catalog.tag("one", "best")
    assert catalog.tags("one") == {"best": "1"}
    assert catalog.load("one", "best")[-1] == 99_999
    assert catalog.info("one")[0].metadata == {"a": 1}
    assert catalog.copy("one", "three").version == "1"
    assert catalog.get_or_compute("four", "1", lambda: 4) == 4
    assert catalog.ref("one").size > 0
    assert catalog.untag("one", "best")
    assert [catalog.remove(name) for name in ("one", "two", "three", "four")] == [1, 1, 1, 1]


def use_memo_and_locks(hook):
    """Remember and forget a result, and wait for a lock."""
    remembered = hook.memoize(ttl=HOUR, version="1")(lambda n: [n] * 1000)
    assert remembered(1) == remembered(1) == [1] * 1000
    assert remembered.forget(1)
    first, second = hook.lock("lock", ttl=10), hook.lock("lock", ttl=10)
    assert first.acquire()
    assert not second.acquire(timeout=0.05)
    first.extend()
    first.release()
    assert second.acquire(timeout=5)
    second.release()
    assert second.wait(1)


def test_the_documented_rights_are_enough(server):
    """Publishers and workers work; doctor only warns about the missing INFO."""
    hook = everything(as_user(server))
    found = [(each.finding.level, each.finding.what) for each in examine(hook._runtime)]
    assert [what for level, what in found if level == "error"] == []
    (warning,) = [what for level, what in found if level == "warning"]
    assert "INFO" in warning
    assert any("clock" in what for _, what in found)
    assert list(capacity_of(hook.store)) == []
    hook.store.close()
    used = {name.lower() for name in script_commands()}
    assert used <= set(COMMANDS)


def rules_of(marker):
    """Return the additional rights that the page lists after *marker*."""
    return re.search(rf"{marker}[^`]*`([^`]*)`", PAGE.read_text())[1].split()


def test_the_documented_rights_are_enough_for_a_cluster(cluster):
    """With the additional rights for a Cluster, a limited user can use one."""
    more = rules_of("In a\nCluster, add")
    if Version(redis.__version__) < Version("5.0.8"):
        more += rules_of(r"cluster\|myid`, and")
    for node in cluster.nodes:
        as_user(node, *more)
    nodes = ",".join(f"{node.host}:{node.port}" for node in cluster.nodes)
    store = open_store(f"redis+cluster://shop:secret@{nodes}?global_keyprefix=shop:")
    try:
        digest = digest_of([b"x"])
        store.blobs.put({digest: [b"x"]}, HOUR)
        assert store.blobs.hold([digest], HOUR, "me") == set()
        assert [bytes(blob) for blob in store.blobs.get([digest], 10)] == [b"x"]
        assert store.pointers.swap(f"p{cluster.nodes[0].port}", None, b"1")
        assert store.leases.acquire("lease", "me", 1)
        assert store.leases.release("lease", "me")
    finally:
        store.close()


def test_the_documented_rights_are_enough_for_sentinels(sentinel):
    """With the rights for Sentinels, their user finds the primary."""
    (watching,) = sentinel.sentinels
    rules = rules_of("on the Sentinels,")
    with redis_client(watching) as client:
        client.execute_command("ACL", "SETUSER", "finder", "on", ">its", "-@all", "&*", *rules)
    url = sentinel.url + "&sentinel_username=finder&sentinel_password=its&global_keyprefix=shop:"
    store = open_store(url)
    assert store.pointers.read("p") is None
    store.close()
    with redis_client(watching) as client:
        client.execute_command("ACL", "DELUSER", "finder")


def script_commands():
    folder = Path(__file__).parents[2] / "offload" / "stores" / "lua"
    return {name for each in folder.glob("*.lua") for name in script(each.stem).commands}


def test_what_lists_names_needs_scan(server):
    """Without the right, what the page lists is refused by an error that names it; with it, the
    same works.
    """
    for more, refused in (((), True), (("+scan",), False)):
        url = f"{as_user(server, *more)}?global_keyprefix=shop:"
        catalog = Catalog(url)
        remembered = memoize(catalog.store, ttl=HOUR, version="1")(len)
        calls = [
            catalog.find,
            catalog.list_objects,
            catalog.info,
            catalog.stats,
            catalog.mend,
            catalog.buckets,
            lambda catalog=catalog: catalog.create_bucket("b").remove_bucket("b"),
            remembered.forget_all,
        ]
        for call in calls:
            with pytest.raises(StoreError, match=r"\+scan") if refused else nullcontext():
                call()
        catalog.store.close()


@pytest.mark.parametrize(
    "command", ("time", "get", "set", "evalsha", "strlen", "zadd", "zscore", "pexpire", "hset")
)
def test_a_missing_right_names_the_command(server, command):
    """An error about a missing right names the command, and isn't StoreUnavailable."""
    url = as_user(server, f"-{command}")
    with pytest.raises(StoreError, match=rf"\+{command}\b") as caught:
        everything(url)
    assert not isinstance(caught.value, StoreUnavailable)


def test_a_forbidden_key_is_reported(server):
    """An error about keys that the user may not use says so, and isn't StoreUnavailable."""
    store = open_store(as_user(server))
    digest = digest_of([b"x"])
    for call in (
        lambda: store.blobs.put({digest: [b"x"]}, HOUR),
        lambda: store.blobs.hold([digest], HOUR),
    ):
        with pytest.raises(StoreError, match="prefix") as caught:
            call()
        assert not isinstance(caught.value, StoreUnavailable)
    store.close()
