"""One Offload with an application factory that is called more than once."""

from __future__ import annotations

import gc
import weakref

import pytest
from celery import Celery, signals
from celery.app import trace

from offload import ConfigurationError, Offload
from offload.hooks.extension import Offload as Extension
from offload.ref import wire_text
from tests.integration import factory
from tests.support.processes import worker
from tests.support.servers import redis_client

BIG = "x" * 5000


def make_app(name, **conf):
    app = Celery(name, broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update({"offload_store": f"memory://{name}", **conf})

    @app.task(name="same", shared=False)
    def same(value):
        return value

    return app


def sent(app):
    """Return what a message of *app* contains for a large argument."""
    return app.amqp.create_task_message("id", "same", (BIG,), {}).body[0][0]


def test_each_app_has_settings_and_a_store_of_its_own():
    """Both apps work alternately, whichever was connected last."""
    offload = Offload(threshold=1000)
    one, two = make_app("first"), make_app("second", offload_threshold=1, offload_max_size=10**6)
    for app in (one, two, one):
        offload.init_app(app)
    for _ in range(2):
        for app in (one, two):
            message = sent(app)
            assert wire_text(message) is not None
            assert app._offload.get(app._offload.content.open(wire_text(message))) == BIG
    assert one._offload.store.url == "memory://first"
    assert two._offload.store.url == "memory://second"
    assert [each._offload.settings.threshold for each in (one, two)] == [1000, 1000]
    assert [each._offload.settings.max_size for each in (one, two)] == [2 << 30, 10**6]


def test_offload_outside_of_tasks():
    """Outside of tasks, Offload uses Celery's current app if that is one of its own, else the
    latest.
    """
    offload = Offload(threshold=1000)
    one, two, foreign = make_app("one"), make_app("two"), make_app("foreign")
    offload.init_app(one)
    assert offload.app is one
    offload.init_app(two)
    Offload(foreign)
    foreign.set_current()
    try:
        assert offload.app is two
        one.set_current()
        assert offload.app is one
        ref = offload.put(BIG)
        assert one._offload.get(ref) == offload.get(ref) == BIG
        two.set_current()
        assert offload.store.url == "memory://two"
        assert offload.counters.snapshot()["values_offloaded"] == 0
    finally:
        foreign.set_current()


def test_a_wrong_app_leaves_the_others_alone():
    """A factory that failed for a wrong setting can be called again."""
    offload = Offload()
    for name in ("begin", "meanwhile"):
        with pytest.raises(ConfigurationError, match="offload_mode"):
            wrong = make_app(name, offload_mode="maybe")
            assert wrong.conf.offload_mode  # it has been read
            offload.init_app(wrong)
        good = make_app(f"{name}-good")
        offload.init_app(good)
        assert offload.app is good
        with pytest.raises(ConfigurationError, match="already has an Offload"):
            Offload(good)


def test_registered_classes_are_registered_for_all_apps():
    """Classes can be registered before the first app, between two, and after the last."""
    offload = Offload(code="trusted")

    class First:
        pass

    class Second:
        pass

    class Third:
        pass

    offload.classes.register(First)
    one, two = make_app("one"), make_app("two")
    offload.init_app(one)
    offload.classes.register(Second)
    offload.init_app(two)
    offload.classes.register(Third)
    for app in (one, two):
        assert app._offload.classes.registered == [First, Second, Third]


def celery_collects_used_apps():
    """Return whether apps of plain Celery are collected after use, which older versions leak."""
    app = make_app("plain")
    app.amqp.create_task_message("id", "same", (1,), {})
    used = weakref.ref(app)
    del app
    gc.collect()
    return used() is None


def test_nothing_is_connected_twice_or_leaked():
    """A process has one set of signals, patches, and exit handlers; unused apps are collected."""
    offload = Offload(threshold=1000)
    offload.init_app(make_app("begin"))
    names = ("worker_process_init", "worker_process_shutdown", "task_received", "worker_init")
    before = {name: len(getattr(signals, name).receivers) for name in names}
    tracer = trace.build_tracer
    dropped = []
    is_used = celery_collects_used_apps()
    for number in range(5):
        app = make_app(f"number{number}")
        offload.init_app(app)
        if is_used:
            assert wire_text(sent(app)) is not None
        dropped.append(weakref.ref(app))
    assert {name: len(getattr(signals, name).receivers) for name in names} == before
    assert trace.build_tracer is tracer
    offload.init_app(make_app("end"))
    del app
    gc.collect()
    assert [each() for each in dropped] == [None] * 5


def test_before_an_app_only_registering_works():
    """Whatever needs an app says how to connect one."""
    offload = Offload()
    assert type(offload) is Extension
    for name in ("app", "store", "settings"):
        with pytest.raises(ConfigurationError, match="init_app"):
            getattr(offload, name)


@pytest.mark.server
@pytest.mark.integration
@pytest.mark.timeout(120)
def test_two_apps_with_real_workers(broker_server, store_server, tmp_path):
    """A process publishes to both apps alternately; in each worker, which created both, too, tasks
    belong to their app, and so do calls to the one Offload.
    """
    with redis_client(broker_server) as client:
        client.flushall()
    base = f"redis://{broker_server.host}:{broker_server.port}"
    store = f"redis://{store_server.host}:{store_server.port}"
    config = {
        "broker": f"{base}/0",
        "backend": f"{base}/1",
        "stores": {"one": f"{store}/3", "two": f"{store}/4"},
    }
    apps = [factory.create_app(name, config) for name in ("one", "two")]
    module = "tests.integration.factory"
    with (
        worker(tmp_path, config, app=f"{module}:one", name="one", concurrency=1),
        worker(tmp_path, config, app=f"{module}:two", name="two", pool="solo", concurrency=1),
    ):
        for app in apps * 2:
            found = app.tasks["length"].delay(BIG).get(timeout=30)
            assert found == [5000, app.main, config["stores"][app.main]]
            assert app.tasks["put"].delay(3000).get(timeout=30) == "y" * 3000
    for app in apps:
        assert app._offload.counters.snapshot()["values_offloaded"] == 2
        app.close()
