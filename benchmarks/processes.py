"""Servers, workers, and publishers of a measurement, stopped when it ends."""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import redis
from celery import Celery

from benchmarks.app import ENCRYPTED, OFFLOAD, PLAIN_JSON, PLAIN_PICKLE, PROXYSTORE, WAYS, make_app
from benchmarks.delay import delay_line
from benchmarks.measure import children, peak, reset_peak, resident
from tests.support import forkserver
from tests.support.servers import Server, redis_client, redis_server

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0
_RELEASED = 0.5  # seconds in which a worker releases what no other request has released
FRESH = True  # start new processes; False forks them, for runs without targets
_REDIS = ("--client-output-buffer-limit", "pubsub 0 0 0")
"""By default, Redis drops a subscriber who is 32 MB behind: plain Celery then waits forever for the
large results of a group.
"""
_STORED = {  # which database, which keys
    PROXYSTORE: ("broker", "????????-????-????-????-????????????"),
    PLAIN_JSON: ("store", "*"),
    PLAIN_PICKLE: ("store", "*"),
    OFFLOAD: ("store", "offload:blob:*"),
    ENCRYPTED: ("store", "offload:blob:*"),
}


@dataclass
class Worker:
    """A prefork worker."""

    process: subprocess.Popen[bytes]
    log: Path
    _before: dict[int, int] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def pids(self) -> list[int]:
        """Pids of the main process and its pool's children."""
        return [self.pid, *children(self.pid)]

    def watch(self) -> None:
        """Start to measure the memory of all its processes."""
        for pid in self.pids:
            reset_peak(pid)
            self._before[pid] = resident(pid)

    @property
    def growth(self) -> tuple[int, int]:
        """Peak increase in bytes since `watch`.

        For the main process, and for the child that grew most.
        """
        main, *pool = (peak(pid) - self._before.get(pid, 0) for pid in self.pids)
        return main, max(pool, default=0)


class Setting:
    """Servers, and the workers on them.

    Attributes:
        servers: by ``broker``, ``backend``, and ``store``; one server for all unless they are
            *separate*.
        store_after: URL of a second tier of the store.
        line: the delay line in front of the server; None: there is none.
    """

    def __init__(self, stack: ExitStack, *, separate: bool, slow: bool) -> None:
        self._stack = stack
        self.folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="offload-bench-"))
        )
        roles = ("broker", "backend", "store")
        if separate:
            self.servers = {role: stack.enter_context(redis_server(args=_REDIS)) for role in roles}
        else:
            self.servers = dict.fromkeys(roles, stack.enter_context(redis_server(args=_REDIS)))
        self.line = stack.enter_context(delay_line(self.server().port)) if slow else None
        self.store_after = ""
        self.workers: dict[str, Worker] = {}
        self._thresholds: dict[str, int] = {}

    def urls(self, way: str) -> dict[str, str]:
        """Return the URLs for a way, which has its own databases."""
        port = None if self.line is None else self.line.port
        urls = {
            role: f"redis://{server.host}:{port or server.port}/{3 * WAYS.index(way) + i}"
            for i, (role, server) in enumerate(self.servers.items())
        }
        return {**urls, "store": f"{urls['store']} {self.store_after}".strip()}

    def app(self, way: str, **settings: Any) -> Celery:
        """Return an app for this process."""
        app = make_app(way, self.urls(way), **settings)
        self._stack.callback(_close, app)
        return app

    def client(self, role: str = "store") -> redis.Redis:
        return self._stack.enter_context(redis_client(self.servers[role]))

    def server(self, role: str = "store") -> Server:
        return self.servers[role]

    def environment(self, way: str, threshold: int | None = None) -> dict[str, str]:
        env = {f"BENCH_{role.upper()}": url for role, url in self.urls(way).items()}
        if threshold is not None:
            env["BENCH_THRESHOLD"] = str(threshold)
        # Plain Celery rightly refuses pickle as root; here, the broker is private.
        return {**os.environ, **env, "BENCH_WAY": way, "C_FORCE_ROOT": "1"}

    def worker(self, way: str, *, concurrency: int = 1, threshold: int | None = None) -> Worker:
        """Start a worker and wait until it has run a task."""
        log = self.folder / f"worker-{way.replace(' ', '-')}.log"
        words = [str(concurrency), f"{way.replace(' ', '-')}@bench"]
        env = self.environment(way, threshold)
        with log.open("wb") as out:
            process = start_module("benchmarks.worker", *words, env=env, output=out)
        self._stack.callback(_end, process)
        app = self.app(way)
        results = [app.tasks["add"].delay(1, 1) for _ in range(4 * concurrency)]
        try:
            for result in results:
                result.get(timeout=PATIENCE)
        except Exception:
            print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
            raise
        worker = self.workers[way] = Worker(process, log)
        return worker

    def publisher(self, way: str, job: dict[str, Any]) -> dict[str, Any]:
        """Run *job* in a fresh process; see `benchmarks.publisher`."""
        done = run_module("benchmarks.publisher", json.dumps(job), env=self.environment(way))
        if done.returncode:
            log = self.workers[way].log.read_text(errors="replace") if way in self.workers else ""
            raise RuntimeError(f"the publisher failed:\n{done.stderr[-3000:]}\n{log[-3000:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def settle(self) -> None:
        """Wait until the workers have finished earlier tasks, including work after a task's result
        is stored. (Each worker has one process.)
        """
        for way in self.workers:
            self.app(way).tasks["add"].delay(1, 1).get(timeout=PATIENCE)
        if OFFLOAD in self.workers:
            time.sleep(_RELEASED)

    def empty_store(self, way: str) -> None:
        """Delete the values that *way* stored, but no messages and results."""
        database, pattern = _STORED[way]
        with redis.Redis.from_url(self.urls(way)[database]) as client:
            for key in client.scan_iter(match=pattern, count=1000):
                client.delete(key)

    def forget(self, way: str) -> None:
        """Delete all results and stored values of *way*, but no queues."""
        for role in ("backend", "store"):
            with redis.Redis.from_url(self.urls(way)[role].split()[0]) as client:
                client.flushdb()


@contextmanager
def setting(
    ways: Sequence[str] = (), *, separate: bool = False, concurrency: int = 1, slow: bool = False
) -> Iterator[Setting]:
    """Start servers, and a worker for each of *ways*. If *slow*, all use one delay line."""
    with ExitStack() as stack:
        made = Setting(stack, separate=separate, slow=slow)
        for way in ways:
            made.worker(way, concurrency=concurrency)
        yield made


def start_module(
    module: str, *words: str, env: dict[str, str], output: IO[bytes], cwd: Path = ROOT
) -> subprocess.Popen[bytes]:
    """Start ``python -m`` *module*, which prints to *output*."""
    if not FRESH:
        started: subprocess.Popen[bytes] = forkserver.start(
            words, module=module, cwd=cwd, env=env, stdout=output, stderr=output
        )
        return started
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def run_module(
    module: str, *words: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m`` *module* until it exits."""
    if not FRESH:
        done: subprocess.CompletedProcess[str] = forkserver.run(words, module=module, env=env)
        return done
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _close(app: Celery) -> None:
    """Close connections before the servers stop; results do so when garbage-collected."""
    gc.collect()
    app.backend.result_consumer.stop()
    app.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    if FRESH:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # including its children
    process.wait()
