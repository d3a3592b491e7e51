"""Parts of the tests here: servers, workers as processes of their own, raw looks at both."""

from __future__ import annotations

import base64
import gc
import json
from contextlib import contextmanager
from pathlib import Path

import faulty_app

from tests.support.processes import environment, start_worker, wait_until
from tests.support.proxy import Proxy
from tests.support.servers import redis_client

HERE = Path(__file__).parent
HELD = "held"
PATIENCE = 40.0  # seconds within which a worker has done what it was told

QUICK = {"max_retries": 1, "interval_start": 0.05, "interval_max": 0.1}
BIG = "b" * 60_000


class Setup:
    """One app over a broker and a store apart from it, reached through a proxy."""

    def __init__(self, broker, store, proxy, folder, conf=None, **offload):
        broker_client, store_client = redis_client(broker), redis_client(store)
        broker_client.flushall()
        store_client.flushall()
        self.broker, self.stored = broker_client, store_client
        self.proxy = proxy
        self.folder = folder
        settings = {"store": proxy.url, "threshold": 10_000, "retry": QUICK, **offload}
        self.config = {"broker": broker.url, "conf": conf or {}, "offload": settings}
        self._workers = []
        self._apps = []
        self.app = self.publisher()

    def publisher(self, *, conf=None, backend=None, **offload):
        """An app in this process, its settings changed as given."""
        config = {**self.config, "conf": {**self.config["conf"], **(conf or {})}}
        if config["offload"] is not None:
            config["offload"] = {**config["offload"], **offload}
        app = faulty_app.make_app(**{**config, "backend": backend})
        self._apps.append(app)
        return app

    @property
    def offload(self):
        return self.app.stowaway

    def task(self, name, app=None):
        return (app or self.app).tasks[name]

    def worker(self, *args, conf=None, wait=True, block=False, plain=False, **offload):
        config = {**self.config, "conf": {**self.config["conf"], **(conf or {})}}
        config["offload"] = None if plain or block else {**config["offload"], **offload}
        config["block"] = block
        if "-P" not in args:
            args = ("-P", "solo", *args)
        worker = start_worker(
            "faulty_app", *args, folder=self.folder, env=environment(config, HERE),
            cwd=self.folder, wait=wait, fork=config["offload"] is not None,
        )  # fmt: skip
        self._workers.append(worker)
        return worker

    def close(self):
        for worker in self._workers:
            worker.kill()
        gc.collect()  # results that are dropped unsubscribe, while their server is there
        for app in self._apps:
            app.raw.close()
            app.backend.result_consumer.stop()
            app.backend.result_consumer._pubsub = None  # for results that are dropped later
            app.backend.client.close()
            if app.stowaway is not None and app.stowaway._store is not None:
                app.stowaway.store.close()
            app.close()
        self._apps.clear()
        self.app = None
        self.broker.close()
        self.stored.close()
        gc.collect()

    # -- looks behind everything's back

    def blobs(self):
        return sorted(self.stored.keys("offload:blob:*"))

    def messages(self, queue="celery"):
        """Messages in the queue, as (headers, body) of plain data."""
        found = [json.loads(raw) for raw in self.broker.lrange(queue, 0, -1)]
        return [(m["headers"], base64.b64decode(m["body"])) for m in found]

    def body(self):
        """The body of the only message, which is JSON; it stays in the queue."""
        ((_, body),) = self.messages()
        return json.loads(body)

    def entered(self, result):
        """What the task's function was entered with, each time."""
        return [json.loads(raw) for raw in self.broker.lrange(f"entered:{result.id}", 0, -1)]

    def errbacks(self, result):
        return [raw.decode() for raw in self.broker.lrange(f"errback:{result.id}", 0, -1)]

    def wait(self, result):
        """Return when the task is in a final state."""
        wait_until(result.ready, f"{result.id} is ready", PATIENCE)
        return result

    def failure(self, result):
        """Return the error that the task failed with."""
        self.wait(result)
        assert result.state == "FAILURE", (result.state, result.result)
        return result.result

    def wire(self, value=BIG, app=None):
        """The wire text of a real reference."""
        return (app or self.app).stowaway.put(value).wire

    def hold(self):
        """Publishers' messages wait in a queue that no worker reads, until `let_go`."""
        self.app, self._direct = self.publisher(conf={"task_default_queue": HELD}), self.app

    def let_go(self, change=lambda body: None):
        """Give the messages that were held to the worker, each body changed by *change*."""
        while (found := self.broker.rpop(HELD)) is not None:
            raw = json.loads(found)
            body = json.loads(base64.b64decode(raw["body"]))
            change(body)
            raw["body"] = base64.b64encode(json.dumps(body).encode()).decode()
            self.broker.lpush("celery", json.dumps(raw))
        self.app = self._direct


@contextmanager
def a_setup(broker, store, folder, conf=None, **offload):
    with Proxy(store.port) as proxy:
        setup = Setup(broker, store, proxy, folder, conf, **offload)
        try:
            yield setup
        finally:
            setup.close()
