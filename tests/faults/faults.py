"""Setup of these tests: servers, workers as processes, and direct access to both."""

from __future__ import annotations

import base64
import gc
import json
from contextlib import contextmanager
from pathlib import Path

import faulty_app

from tests.support import apps
from tests.support.processes import environment, start_worker, wait_until
from tests.support.proxy import Proxy
from tests.support.servers import redis_client

HERE = Path(__file__).parent
HELD = "held"
PATIENCE = 40.0  # seconds for a worker to finish a task

QUICK = {"max_retries": 1, "interval_start": 0.05, "interval_max": 0.1}
BIG = "b" * 60_000


class Setup:
    """An app with a broker and a separate store, which it reaches through a proxy."""

    def __init__(self, broker, store, proxy, folder, conf=None, **offload):
        gc.freeze()  # `close` collects only what the test has left
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
        """Return an app in this process, with the given settings changed."""
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
        gc.collect()  # results unsubscribe when they are collected, which needs their server
        for app in self._apps:
            if app.stowaway is not None and app.stowaway._runtime._store is not None:
                app.stowaway.store.close()
            apps.close(app)
        self._apps.clear()
        self.app = None
        self.broker.close()
        self.stored.close()
        gc.collect()

    # -- direct access to servers

    def blobs(self):
        return sorted(self.stored.keys("offload:blob:*"))

    def messages(self, queue="celery"):
        """Return the messages in the queue as (headers, body)."""
        found = [json.loads(raw) for raw in self.broker.lrange(queue, 0, -1)]
        return [(m["headers"], base64.b64decode(m["body"])) for m in found]

    def body(self):
        """Return the body of the only message, which is JSON, and leave it in the queue."""
        ((_, body),) = self.messages()
        return json.loads(body)

    def entered(self, result):
        """Return the arguments of each run of the task's function."""
        return [json.loads(raw) for raw in self.broker.lrange(f"entered:{result.id}", 0, -1)]

    def errbacks(self, result):
        return [raw.decode() for raw in self.broker.lrange(f"errback:{result.id}", 0, -1)]

    def wait(self, result):
        """Wait until the task is in a final state, and return its result object."""
        wait_until(result.ready, f"{result.id} is ready", PATIENCE)
        return result

    def failure(self, result):
        """Return the error that the task failed with."""
        self.wait(result)
        assert result.state == "FAILURE", (result.state, result.result)
        return result.result

    def wire(self, value=BIG, app=None):
        """Return the wire text of a real reference."""
        return (app or self.app).stowaway.put(value).wire

    def hold(self):
        """Publish messages to a queue that no worker reads, until `resume`."""
        self.app, self._direct = self.publisher(conf={"task_default_queue": HELD}), self.app

    def resume(self, change=lambda body: None):
        """Send the messages that were held to the worker, each body changed by *change*."""
        while (found := self.broker.rpop(HELD)) is not None:
            raw = json.loads(found)
            body = json.loads(base64.b64decode(raw["body"]))
            change(body)
            raw["body"] = base64.b64encode(json.dumps(body).encode()).decode()
            self.broker.lpush("celery", json.dumps(raw))
        self.app = self._direct


@contextmanager
def make_setup(broker, store, folder, conf=None, **offload):
    with Proxy(store.port) as proxy:
        setup = Setup(broker, store, proxy, folder, conf, **offload)
        try:
            yield setup
        finally:
            setup.close()
