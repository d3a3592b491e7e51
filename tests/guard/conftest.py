"""A server, workers as processes, and the arguments that task functions received."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guard import guard_app
from tests.support import apps
from tests.support.processes import environment, start_worker, wait_until
from tests.support.servers import redis_client, redis_server

HERE = Path(__file__).parent
PATIENCE = 60.0


class Bench:
    """An app's publisher in this process, and its workers."""

    def __init__(self, server, folder):
        self.url = server.url.removesuffix("/0")
        self.folder = folder
        retry = {"max_retries": 1, "interval_start": 0.05, "interval_max": 0.1}
        self.offload = {"store": f"{self.url}/3", "threshold": 10_000, "retry": retry}
        self.client = redis_client(server)
        self.client.flushall()
        self._apps = []
        self.app = self.publisher()

    def publisher(self, **config):
        config = {"offload": self.offload, **config}
        app = guard_app.make_app(self.url, **config)
        self._apps.append(app)
        return app

    @contextmanager
    def worker(self, *args, env=None, wait=True, name="worker", **config):
        config = {"url": self.url, "offload": self.offload, **config}
        process = start_worker(
            "guard_app", "-n", f"{name}@h", *args, folder=self.folder, name=name,
            env={**environment(config, HERE), **(env or {})}, cwd=self.folder, wait=wait,
            fork=config["offload"] is not None and not config.get("block"),
        )  # fmt: skip
        try:
            yield process
        except BaseException:
            print(process.log()[-10_000:])
            raise
        finally:
            process.kill()

    def run(self, code, **config):
        """Run *code* in another process, with the app configured by *config*; return its output,
        parsed as JSON.
        """
        config = {"url": self.url, "offload": self.offload, **config}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=self.folder, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=120,
            env=environment(config, HERE),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-5000:]
        return json.loads(done.stdout)

    def entered(self, result):
        """Return the arguments of each run of the task's function."""
        return [json.loads(raw) for raw in self.app.raw.lrange(f"entered:{result.id}", 0, -1)]

    def wait(self, result):
        wait_until(result.ready, f"{result} is ready", PATIENCE)
        return result

    def lose(self, value):
        """Delete the blob of *value*, which must be large enough to be stored alone."""
        self.app.hook.store.blobs.delete([self.app.hook.put(value).digest])

    def close(self):
        gc.collect()  # results unsubscribe when they are collected, which needs their server
        for app in self._apps:
            apps.close(app)
        self._apps.clear()
        self.app = None
        self.client.close()


@pytest.fixture(scope="session")
def guard_server():
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def bench(guard_server, tmp_path_factory):
    made = Bench(guard_server, tmp_path_factory.mktemp("guard"))
    yield made
    made.close()
