"""Classes that workers can't import are sent, run, passed on, and returned by real workers."""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager

import pytest

from tests.support.processes import ROOT, Process, environment, wait_until, worker
from tests.support.proxy import Proxy
from tests.support.servers import redis_client

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(180)]

APP = "tests.integration.shipping_app"
KEY = "hmac:a-key-of-the-producers"
TIMEOUT = 90.0
SHOP = """
class Item:
    def __init__(self, number): self.number = number
class Order:
    def __init__(self, number): self.item = Item(number)
    def run(self): return total(self)
def total(order): return order.item.number
class Closed(Exception): pass
"""


class Setup:
    """A broker, a store, and the configuration of both sides."""

    def __init__(self, broker, store, folder, serializer="json", **offload):
        with redis_client(broker) as client:
            client.flushall()
        with redis_client(store) as client:
            client.flushall()
        self.folder = folder
        base = f"redis://{broker.host}:{broker.port}"
        self.config = {
            "broker": f"{base}/0",
            "backend": f"{base}/1",
            "serializer": serializer,
            "offload": {"store": store.url, "cache": "off", **offload},
        }

    def side(self, **offload):
        return {**self.config, "offload": {**self.config["offload"], **offload}}

    def worker(self, *args, code="signed", offload=None, **options):
        keys = {"verify_keys": [KEY]} if code == "signed" else {}
        config = self.side(code=code, **keys, **(offload or {}))
        return worker(self.folder, config, app=APP, args=args, **options)

    @contextmanager
    def producer(self, *what, **more):
        """Run a script that does *what*; it must exit with 0."""
        log = self.folder / f"producer-{'-'.join(what)}.log"
        script = ROOT / "tests" / "integration" / "shipping_producer.py"
        env = environment(self.side(code="signed", signing_key=KEY))
        env["PYTHONPATH"] += f":{self.folder}"
        env |= {key: str(value) for key, value in more.items()}
        process = Process([sys.executable, str(script), *what], log, env, fork=True)
        try:
            yield process
            process.finish(TIMEOUT)
        finally:
            process.stop()

    def produce(self, *what, **more):
        with self.producer(*what, **more):
            pass


@pytest.fixture(params=("json", "pickle"))
def setup(request, broker_server, store_server, tmp_path):
    return Setup(broker_server, store_server, tmp_path, request.param)


@pytest.mark.parametrize("pool", ("prefork", "threads"))
def test_classes_of_a_script(setup, pool):
    """A worker that verifies signatures runs classes of a script's __main__, like a notebook's, and
    of modules that only the producer has; everything returns as the producer's own classes.
    """
    for name in ("shop_of_the_producer", "manual_of_the_producer"):
        (setup.folder / f"{name}.py").write_text(SHOP)
    with setup.worker(pool=pool) as running:
        setup.produce("own")
        setup.produce("same_class", "values", "callables", "canvases", "versions")
        setup.produce("registered", "refers")
        log = running.log()
    assert re.search(r"loaded class __main__\.Point@\w+ from .* for task run\[.*, signed by", log)
    assert not re.search(r"MainProcess\] loaded", log) or pool == "threads"


def test_exceptions_of_a_script(setup):
    """An exception of shipped code is caught by its own class; the worker's main process loads
    none.
    """
    (setup.folder / "shop_of_the_producer.py").write_text(SHOP)
    with setup.worker() as running:
        setup.produce("exceptions")
        log = running.log()
    assert "raised unexpected: Mismatched('3 at home')" in log
    assert not re.search(r"MainProcess\] loaded", log)


def test_values_that_are_stored(broker_server, store_server, tmp_path):
    """With a threshold of 0, every instance is stored, and returns home."""
    setup = Setup(broker_server, store_server, tmp_path, threshold=0)
    with setup.worker():
        setup.produce("values", "canvases", "versions")


def test_a_new_child_for_each_task(setup):
    """Each child loads classes itself, and all tasks succeed."""
    with setup.worker("--max-tasks-per-child=1") as running:
        setup.produce("many")
        assert running.log().count("loaded class __main__.Child@") == 8


def test_prefetch_loads_no_code(broker_server, store_server, tmp_path):
    """Prefetch and the node cache work, and the main process never loads code."""
    cache = tmp_path / "cache"
    setup = Setup(broker_server, store_server, tmp_path, cache=str(cache))
    with setup.worker("--prefetch-multiplier=4", concurrency=1) as running:
        setup.produce("ahead", SHIPPING_CACHE=cache)
        log = running.log()
    assert re.search(r"ForkPoolWorker-\d+\] loaded class __main__\.Network", log)
    assert not re.search(r"MainProcess\] loaded", log)


def test_a_worker_that_accepts_no_code(setup):
    """By default a worker fails such a task at once with CodeRefused, its error callback runs, and
    nothing of the class does.
    """
    path = setup.folder / "executed"
    with setup.worker(code="off") as running:
        setup.produce("refused", SHIPPING_WRITES=path)
        assert "Task echo" not in running.log().partition("Retry")[2]
        assert not path.exists()


def test_a_missing_version(setup):
    """A task whose class isn't in the store fails at once."""
    with setup.worker() as running:
        setup.produce("missing")
        assert " retry: " not in running.log()


def test_the_store_is_unavailable_when_a_class_is_needed(setup, store_server):
    """The task is resent, as for its values, and runs when the store is back."""
    with Proxy(store_server.port) as proxy:
        retry = {"max_retries": 40, "interval_start": 0.1, "interval_step": 0, "interval_max": 0.1}
        offload = {"store": proxy.url, "retry": {**retry, "max_retries": 2}}
        offload["secret"] = setup.config["offload"]["secret"] = "the references' own secret"
        with setup.worker(offload=offload) as running:
            proxy.refuse()
            with setup.producer("send") as producer:
                wait_until(lambda: "sent" in producer.log(), "the instance is sent", TIMEOUT)
                wait_until(lambda: "Retry in" in running.log(), "the task is resent", TIMEOUT)
                proxy.restore()
            assert "StoreUnavailable" in running.log()
