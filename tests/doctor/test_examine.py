"""Findings about healthy and faulty apps and stores."""

from __future__ import annotations

import time
from importlib.metadata import version
from types import SimpleNamespace

import pytest
from celery import Celery

from offload import Offload, StoreUnavailable
from offload.doctor import app as of_app
from offload.doctor import examine
from offload.doctor import servers as of_redis
from offload.gc import NAME, sweep
from offload.stores.memory import MemoryStore
from offload.stores.protocols import BlobStore
from offload.testing.store import unique
from tests.support.careless_s3 import careless_s3
from tests.support.s3_server import BUCKET, s3_client
from tests.support.servers import redis_server


def value(value=None):
    return value


def make_app(*, broker="memory://", conf=None, **settings):
    app = Celery("doctor", broker=broker, set_as_current=False)
    app.conf.update(conf or {})
    return app, Offload(app, **{"store": "memory://", "cache": "off", **settings})


def found(hook, *levels):
    """Return the texts of findings with these levels (default: all but ``ok``)."""
    levels = levels or ("info", "warning", "error")
    return [
        f"{each.subject}: {each.finding.what}"
        for each in examine(hook._runtime)
        if each.finding.level in levels
    ]


def of_store(store, *levels):
    """Return the findings about a store object."""
    _, hook = make_app()
    hook._runtime._store = store
    return found(hook, *levels)


class Watched(MemoryStore):
    """A MemoryStore under another class, because doctor warns about MemoryStore itself."""


@pytest.fixture(autouse=True)
def tested(monkeypatch):
    """Empty the list of tested versions, so that any installed version is accepted."""
    versions = {}
    monkeypatch.setattr(of_app, "TESTED", versions)
    return versions


# -- the app


def test_a_healthy_app():
    """An app with usual settings and a good store has only findings of level ok."""
    assert of_store(Watched()) == []
    assert len(of_store(Watched(), "ok")) >= 6


def test_unreadable_settings_are_the_only_error():
    """An unreadable setting is the only error, because others would repeat it."""
    app, hook = make_app()
    app.conf.offload_retension = 5
    (error,) = found(hook)
    assert "did you mean 'offload_retention'?" in error


def test_dependencies_newer_than_tested_are_named(tested):
    """Dependencies newer than the tested version are listed with both versions; older and missing
    ones aren't.
    """
    tested |= {"celery": "5.0", "kombu": "9999", "not-installed-anywhere": "1"}
    (finding,) = of_store(Watched())
    assert finding.startswith("dependencies: newer than the versions tested with offload")
    assert finding.endswith(f": celery {version('celery')} (tested: 5.0)")


@pytest.mark.parametrize("mode", ("observe", "off"))
def test_a_mode_that_stores_nothing_is_reported(mode):
    """A mode that stores nothing is reported."""
    _, hook = make_app(mode=mode)
    assert any(f"offload_mode is {mode}" in each for each in found(hook, "info"))


def test_a_tasks_wrong_option_is_an_error():
    """Each task's options are read as when a worker starts, and one error doesn't hide others."""
    app, hook = make_app()
    app.task(name="bad", shared=False, offload={"inlined": ["x"]})(value)
    app.task(name="worse", shared=False, offload={"retention": -1})(value)
    errors = found(hook, "error")
    assert len(errors) == 2
    assert "task 'bad'" in errors[0]
    assert "task 'worse'" in errors[1]


def test_the_limit_on_messages_is_shown():
    """With a broker that limits messages, the limit in force is shown."""
    _, hook = make_app(broker="sqs://", retention=3600)
    assert "settings: messages are limited to 983.0 kB" in found(hook, "ok")
    _, hook = make_app()
    assert not any("messages have" in each for each in found(hook, "ok"))


def test_no_store_is_an_error():
    """No store in the settings or in Celery's is an error."""
    _, hook = make_app(store=None)
    (error,) = found(hook, "error")
    assert "no store" in error


@pytest.mark.parametrize(
    ("broker", "options", "retention", "warned"),
    (
        ("redis://localhost:1", {}, 3600, True),
        ("redis://localhost:1", {}, 3601, False),
        ("redis://localhost:1", {"visibility_timeout": 7200}, 3601, True),
        ("sqs://", {}, 1000, True),
        ("amqp://localhost:1", {}, 10, False),
    ),
)
def test_retention_shorter_than_redelivery(broker, options, retention, warned):
    """The retention, also of single tasks, must exceed the broker's visibility timeout."""
    conf = {"broker_transport_options": options}
    app, hook = make_app(broker=broker, conf=conf, retention=retention)
    assert any("offload_retention is" in each for each in found(hook, "warning")) is warned
    app.task(name="own", shared=False, offload={"retention": 5})(value)
    report = any("retention of task own is 5 s" in each for each in found(hook, "warning"))
    assert report is (not broker.startswith("amqp"))


def test_results_that_never_expire():
    """Results that never expire are reported, because their values would be kept for years; without
    results they aren't.
    """
    conf = {"result_expires": None, "result_backend": "cache+memory://"}
    _, hook = make_app(conf=conf)
    assert any("results never expire" in each for each in found(hook, "warning"))
    _, hook = make_app(conf=conf, results=False)
    assert not any("results never expire" in each for each in found(hook))


@pytest.mark.parametrize(
    "how",
    (
        {"conf": {"accept_content": ["json", "pickle"]}},
        {"conf": {"accept_content": ["application/x-python-serialize"]}},
        {"accept": ("pickle",)},
    ),
)
def test_pickle_is_reported(how):
    """Accepting pickle is reported, because publishers can then run code."""
    _, hook = make_app(**how)
    assert any("pickle is accepted" in each for each in found(hook, "info"))


def test_a_node_cache_that_is_refused(tmp_path):
    """A refused node cache is a warning with the reason, because everything works without it."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    _, hook = make_app(store="redis://localhost:1/0", cache=str(folder))
    assert any("others may use it" in each for each in found(hook, "warning"))
    folder.chmod(0o700)
    assert not any(each.startswith("node cache") for each in found(hook))


def test_a_small_node_cache(tmp_path):
    """A small node cache, such as Docker's 64 MB of shared memory, is reported."""
    _, hook = make_app(store="redis://localhost:1/0", cache=str(tmp_path / "c"), cache_size=1 << 20)
    assert any("has room for only 1.0 MB" in each for each in found(hook, "info"))


# -- any store


def test_unsigned_code_is_reported():
    """Loading unsigned code is reported: anybody with access to the store could run code."""
    _, hook = make_app(code="trusted")
    hook._runtime._store = Watched()
    assert [text.partition(":")[0] for text in found(hook, "warning", "error")] == ["classes"]


def test_keys_that_cannot_be_read_are_an_error():
    """A malformed verify key is an error about classes."""
    _, hook = make_app(code="signed", verify_keys=["ed25519:short"])
    assert [text for text in found(hook, "error") if text.startswith("classes: ")]


@pytest.mark.parametrize(("days", "message"), ((-1, "has expired"), (3, "expires in 3 days")))
def test_an_expiring_key_is_reported(days, message):
    """A key that is about to expire is reported in time to replace it."""
    key = {"key": "hmac:0123456789abcdef", "name": "ci", "until": time.time() + days * 86400}
    _, hook = make_app(code="signed", verify_keys=[key])
    assert [text for text in found(hook, "warning") if f"key ci {message}" in text]


def test_a_registered_class_that_is_not_in_the_store_is_reported():
    """A registered class is reported as untracked until it is pushed."""
    _, hook = make_app(code="trusted")
    hook._runtime._store = Watched()

    @hook.classes.register
    class Registered:
        pass

    assert "Registered is untracked" in " ".join(found(hook, "info"))
    hook.classes.push(Registered)
    assert "1 registered class is in sync with the store" in " ".join(found(hook, "ok"))


def test_a_failing_check_does_not_stop_others():
    """An unexpected error in a check is a finding, and other checks run."""
    store = Watched()
    store.blobs.put = None
    (error,) = of_store(store, "error")
    assert "check failed: TypeError" in error
    assert any("a lease has only one owner" in each for each in of_store(store, "ok"))


def test_an_unavailable_store_is_asked_once():
    """An unavailable store is asked once, not until each check's timeout."""
    store = Watched()
    asked = []

    def unavailable(*args, **options):
        asked.append(args)
        raise StoreUnavailable("away")

    store.blobs.put = unavailable
    store.pointers.swap = store.leases.acquire = unavailable
    assert of_store(store) == ["memory://: away"]
    assert len(asked) == 1


class Broken:
    """A part of a store with one faulty method."""

    def __init__(self, part, **instead):
        self._part = part
        vars(self).update(instead)

    def __getattr__(self, name):
        return getattr(self._part, name)


@pytest.mark.parametrize(
    ("part", "instead", "error"),
    (
        (
            "blobs",
            {"get": lambda *_: iter([b"other"])},
            "was read back with different bytes",
        ),
        ("blobs", {"delete": lambda *_: None}, "a deleted blob can still be read"),
        ("pointers", {"swap": lambda *_: True}, "overwrote a pointer that had changed"),
        ("leases", {"acquire": lambda *_: 1}, "two owners got the same lease"),
    ),
)
def test_a_store_that_breaks_a_promise(part, instead, error):
    """Each broken property that is checked is noticed."""
    store = Watched()
    setattr(store, part, Broken(getattr(store, part), **instead))
    (only,) = of_store(store, "error")
    assert error in only


def test_nothing_is_left_behind():
    """Checks leave no blob, pointer, or lease."""
    store = Watched()
    of_store(store)
    assert list(store.blobs.scan()) == []
    assert list(store.pointers.names()) == []


def test_a_store_in_memory_is_for_tests():
    """A memory store is reported, because workers wouldn't see a publisher's values."""
    assert any("workers can't read" in each for each in of_store(MemoryStore(), "warning"))


class Tiered(Watched):
    def __init__(self, *tiers):
        super().__init__()
        self.tiers = tiers

    def count_by_tier(self, counters):
        pass


def test_each_tier_is_checked(tmp_path):
    """Each tier is checked; a lower tier without pointers and leases is no error."""
    _, hook = make_app(store=f"fsspec+file://{tmp_path}/remote")
    lower = hook.store
    assert len(found(hook, "error")) == 2  # alone it can't be used
    hook._runtime._store = Tiered(Watched(), lower)
    assert found(hook, "error") == []
    written = [each for each in found(hook, "ok") if "a blob was written" in each]
    assert [each.partition(": ")[0] for each in written] == ["memory://", lower.url]


def test_missing_sweeps_are_reported(tmp_path):
    """A store that nobody ever swept, or no longer sweeps, is reported if the server doesn't expire
    blobs.
    """
    _, hook = make_app(store=f"file://{tmp_path}/store")
    (never,) = found(hook, "warning")
    assert ": file://" in never
    assert never.endswith("was never swept")
    sweep(hook.store)
    assert found(hook, "warning") == []
    assert any("was last swept 0.0 hours ago by" in each for each in found(hook, "ok"))
    note = hook.store.pointers.read(NAME)
    old = f'{{"by": "host:1", "began": 1, "ended": {time.time() - 3 * 86400}}}'.encode()
    assert hook.store.pointers.swap(NAME, note, old)
    (seldom,) = found(hook, "warning")
    assert "was last swept 72.0 hours ago by host:1" in seldom


@pytest.mark.parametrize("kind", ("file", "sqlite"))
def test_a_disk_that_is_nearly_full(tmp_path, monkeypatch, kind):
    """A disk that is nearly full is reported before publishing fails."""
    _, hook = make_app(store=f"{kind}://{tmp_path}/store")
    room = SimpleNamespace(f_bavail=4, f_blocks=100, f_frsize=10**9)
    monkeypatch.setattr("os.statvfs", lambda path: room)
    assert any("4.0 GB of 100.0 GB free" in each for each in found(hook, "warning"))


# -- Redis


@pytest.mark.server
def test_a_well_configured_redis():
    """A server with a memory limit, no eviction, persistence, and a correct clock is fine."""
    args = ("--maxmemory", "200mb", "--appendonly", "yes")
    with redis_server(args=args) as server:
        _, hook = make_app(store=server.url)
        assert found(hook) == []


@pytest.mark.server
def test_a_redis_that_evicts_and_forgets():
    """Each finding about a Redis or Valkey server has a remedy."""
    args = ("--maxmemory", "2mb", "--maxmemory-policy", "allkeys-lru")
    with redis_server(args=args) as server:
        _, hook = make_app(store=server.url)
        warnings, infos = found(hook, "warning"), found(hook, "info")
    assert any("maxmemory-policy is allkeys-lru" in each for each in warnings)
    assert any("appendonly is off" in each for each in infos)
    assert found(hook, "error") != []  # it has been removed


@pytest.mark.server
def test_valkey_is_known_by_its_own_version(valkey):
    """Valkey is recognized although it reports Redis 7.2 for old clients."""
    _, hook = make_app(store=valkey.url)
    assert any(": Valkey 9" in each for each in found(hook, "ok"))


@pytest.mark.server
def test_each_primary_of_a_cluster_is_checked(cluster):
    """Each primary is checked, because one with eviction is enough to lose values."""
    _, hook = make_app(store=cluster.url)
    assert found(hook, "error") == []
    named = [each for each in found(hook, "ok") if "maxmemory-policy is noeviction" in each]
    assert len(named) == len(cluster.nodes)
    assert all(any(f":{node.port}: " in each for each in named) for node in cluster.nodes)


@pytest.mark.server
def test_the_primary_behind_sentinel_is_checked(sentinel):
    """The primary behind Sentinel is checked through the store's connection."""
    _, hook = make_app(store=sentinel.url)
    assert found(hook, "error") == []
    assert any("noeviction" in each for each in found(hook, "ok"))


@pytest.mark.server
@pytest.mark.parametrize(("off", "message"), ((100, "100 s behind"), (-100, "100 s ahead of")))
def test_a_clock_that_differs(redis, monkeypatch, off, message):
    """The difference of clocks is reported in seconds with its direction."""
    clock = SimpleNamespace(time=lambda: time.time() + off)
    monkeypatch.setattr(of_redis, "time", clock)
    _, hook = make_app(store=redis.url)
    assert any(f"its clock is {message} this machine's" in each for each in found(hook, "warning"))


@pytest.mark.parametrize(
    ("version", "level"),
    (("6.0.16", "error"), ("5.0", "error"), ("6.2.0", "ok"), ("7.4.1", "ok"), ("", "info")),
)
def test_versions(version, level):
    """A server too old for the scripts is an error."""
    assert of_redis._version({"redis_version": version}).level == level


def test_a_redis_that_is_nearly_full():
    """A Redis that is nearly full is reported before publishing fails."""
    finding = of_redis._memory({"used_memory": 95 << 20, "maxmemory": 100 << 20})
    assert finding.level == "warning"


# -- S3


@pytest.mark.server
def test_s3_with_conditional_requests(s3):
    """For S3 with conditional requests, the only finding is that it was never swept."""
    _, hook = make_app(store=s3.url(unique("doctor")))
    (only,) = found(hook)
    assert ": s3://" in only
    assert only.endswith("was never swept")
    assert any("it supports conditional deletes" in each for each in found(hook, "ok"))


@pytest.mark.server
@pytest.mark.parametrize(
    ("rule", "pins", "errors"),
    (
        ({"Filter": {"Prefix": "{begin}/blobs/"}, "Expiration": {"Days": 3}}, False, ["6 days"]),
        ({"Filter": {"Prefix": "{begin}/blobs/"}, "Expiration": {"Days": 5}}, False, []),
        ({"Filter": {"Prefix": "{begin}/blobs/"}, "Expiration": {"Days": 9}}, False, []),
        ({"Filter": {"Prefix": "{begin}/blobs/"}, "Expiration": {"Days": 9}}, True, ["forever"]),
        ({"Filter": {"Prefix": "{begin}"}, "Expiration": {"Days": 9}}, False, ["signs references"]),
        ({"Filter": {"Prefix": "elsewhere/"}, "Expiration": {"Days": 1}}, False, []),
    ),
)
def test_lifecycle_rules_of_the_bucket(s3, monkeypatch, rule, pins, errors):
    """A lifecycle rule that would delete needed blobs, or pointers, is reported."""
    begin = unique("rules")
    _, hook = make_app(store=s3.url(begin), retention=1.7 * 86400, conf={"result_expires": 60})
    monkeypatch.setattr("offload.doctor.examination.has_pins", lambda hook: pins)
    rule = {**rule, "ID": "theirs", "Status": "Enabled"}
    rule["Filter"] = {"Prefix": rule["Filter"]["Prefix"].format(begin=begin)}
    client = s3_client(s3)
    try:
        client.put_bucket_lifecycle_configuration(
            Bucket=BUCKET, LifecycleConfiguration={"Rules": [rule]}
        )
        report = found(hook, "error")
    finally:
        client.delete_bucket_lifecycle(Bucket=BUCKET)
        client.close()
    assert len(report) == len(errors)
    for text, error in zip(report, errors, strict=True):
        assert "the lifecycle rule 'theirs' deletes" in text
        assert error in text


def test_s3_without_conditional_requests():
    """S3 without conditional requests can't be the only store and can't be swept, but it can hold
    blobs as a lower tier.
    """
    with careless_s3() as url:
        _, hook = make_app(store=url)
        errors, warnings = found(hook, "error"), found(hook, "warning")
        assert len(errors) == 2  # pointers and leases
        assert all("ignores conditions (If-None-Match, If-Match)" in each for each in errors)
        assert any("ignores If-Match on deletions" in each for each in warnings)
        hook._runtime._store = Tiered(Watched(), hook.store)
        assert found(hook, "error") == []
        assert any("ignores If-Match on deletions" in each for each in found(hook, "warning"))


@pytest.mark.parametrize(("ahead", "message"), ((120, "ahead of"), (-120, "behind")))
def test_s3_with_a_wrong_clock(ahead, message):
    """A wrong clock is found by the dates of responses, in whole seconds."""
    with careless_s3(ahead) as url:
        _, hook = make_app(store=url)
        (report,) = [each for each in found(hook, "warning") if "its clock" in each]
    seconds = int(report.partition("its clock is ")[2].partition(" s ")[0])
    assert message in report
    assert 115 <= seconds <= 121


def test_fake_stores_implement_the_protocol():
    """The stores in this file implement the protocol that checks use."""
    assert isinstance(Watched().blobs, BlobStore)
