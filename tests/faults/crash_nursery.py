"""Forks the processes of the crash test from one that has imported everything already.

So a worker is there in a tenth of the time, and more of the test is tasks and kills. The one
reads lines from its input, ``[KIND, ARGUMENTS…]`` as JSON, and says ``started PID`` of each,
and ``ended PID CODE`` when one has.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATIENCE = 30.0  # seconds within which a process does what it is told
IMPORTED_LATE = (
    "boto3", "celery.app.control", "celery.app.events", "celery.app.log", "celery.apps.worker",
    "celery.backends.redis", "celery.bin.celery", "celery.concurrency.prefork",
    "celery.worker.consumer", "celery.worker.strategy", "kombu.transport.redis",
)  # fmt: skip


class Nursery:
    """The one process, as the test sees it."""

    def __init__(self, folder, config):
        env = {**os.environ, "CRASH_APP": json.dumps(config), "C_FORCE_ROOT": "1",
               "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}"}  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=env, cwd=folder, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._said = queue.Queue()
        self._ended = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, kind, *args):
        """Return the id of a new process, which is in a group of its own."""
        self._process.stdin.write(json.dumps([kind, *args]) + "\n")
        self._process.stdin.flush()
        while (pid := self._next("started")) is None:
            pass
        return pid

    def has_ended(self, pid):
        while not self._said.empty():
            self._next("ended")
        return pid in self._ended

    def wait(self, pid):
        """Return the code with which a process ended."""
        while pid not in self._ended:
            self._next("ended")
        return self._ended.pop(pid)

    def close(self):
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._reader.join()
        self._process.stdout.close()

    def _next(self, wanted):
        what, pid, *code = self._said.get(timeout=PATIENCE).split()
        if code:
            self._ended[int(pid)] = int(code[0])
        return int(pid) if what == wanted else None

    def _read(self):
        for line in self._process.stdout:
            self._said.put(line)


def main():
    for name in IMPORTED_LATE:
        import_module(name)
    import crash_app
    import crash_publisher
    import crash_sweeper

    _ = crash_app.offload.store  # opened, which imports it; nothing is connected to
    run = {
        "worker": lambda *args: crash_app.app.worker_main(["worker", *args]),
        "publisher": lambda *args: crash_publisher.Publisher(*args).run(),
        "sweeper": crash_sweeper.run,
        "reader": crash_publisher.read_results,
    }
    signal.signal(signal.SIGCHLD, note_ends)
    for line in iter(sys.stdin.readline, ""):
        kind, *args = json.loads(line)
        # Not before it was said that it started may it be said that it ended.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if pid == 0:
            be(kind, run[kind], args)
        say(f"started {pid}")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def be(kind, function, args):
    """Go on as a process of its own, and end with it."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    log = os.open(f"{kind}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, what in ((0, nothing), (1, log), (2, log)):
        os.dup2(what, fd)
    random.seed()
    code = 1
    try:
        function(*args)
        code = 0
    except SystemExit as exc:
        code = exc.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def note_ends(*_signal):
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        say(f"ended {pid} {os.waitstatus_to_exitcode(status)}")


def say(what):
    os.write(1, f"{what}\n".encode())


if __name__ == "__main__":
    main()
