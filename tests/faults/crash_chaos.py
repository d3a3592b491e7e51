"""Start, kill, and restart the processes of the crash test."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from crash_journal import Journal

from tests.support.processes import READY, Process, environment

HERE = Path(__file__).parent
PATIENCE = 60.0  # seconds for a process to exit
COUNTS = {"worker": 2, "publisher": 2, "sweeper": 1}
KILLS = {"publisher": 30, "child": 45, "worker": 13, "sweeper": 12}
"""Relative frequencies of kills; a worker is killed with its children, or one child alone."""
POOL = 2  # children of a worker
WORKER = ("celery", "-A", "crash_app", "worker", "-l", "WARNING", "-c", str(POOL),
          "--without-gossip", "--without-mingle", "--without-heartbeat")  # fmt: skip
SOON, MOMENT = 0.5, 0.006  # seconds to wait for a task to finish, and that finishing one takes


class Chaos:
    """The processes of the crash test.

    Attributes:
        kills: number of kills by kind.
        killed: ids of killed processes.
    """

    def __init__(self, folder, config, random, seed):
        self.folder = folder
        self.random = random
        self.seed = seed
        self.kills = Counter()
        self.killed = set()
        self._journal = Journal(folder / "kills")
        self._env = environment(config, HERE)
        self._started = Counter()
        self._running = {}
        for kind, count in COUNTS.items():
            for number in range(count):
                self.start(kind, number)

    def start(self, kind, number=0):
        self._started[kind] += 1
        command = {
            "worker": [*WORKER, "-n", f"{number}@%h"],
            "publisher": ["crash_publisher", str(self._started[kind]), self.seed],
            "sweeper": ["crash_sweeper"],
            "reader": ["crash_publisher"],
        }[kind]
        self._running[kind, number] = Process(
            [sys.executable, "-m", *command],
            self.folder / f"{kind}.log",
            self._env,
            self.folder,
            fork=True,
        )

    def kill_one(self):
        """Kill a random process and restart it.

        Every other kill of a worker happens just after a task's function has returned, while
        the worker stores the result, releases holds, and acknowledges the message.
        """
        self._restart_workers()
        (kind,) = self.random.choices(list(KILLS), KILLS.values())
        whose = "worker" if kind == "child" else kind
        at = self.random.choice([at for at in self._running if at[0] == whose])
        child = None
        if whose == "worker" and self.random.random() < 0.5:
            at, child = self._wait_for_task() or (at, None)
        if kind != "child":
            self._kill(at)
            self.start(*at)
        elif child or (children := self._running[at].children()):
            self._kill_pids([child or self.random.choice(children)])
        else:
            return
        self.kills[kind] += 1

    def _restart_workers(self):
        """Restart workers that exited because a child was killed before it was ready."""
        for at in [at for at in self._running if at[0] == "worker"]:
            if self._running[at].ended:
                self.killed.add(self._running[at].pid)
                self.start(*at)

    def _wait_for_task(self):
        """Wait until a task's function has returned; return its worker's key and child's id."""
        journal = self.folder / "tasks"
        known = len(journal.read_bytes()) if journal.exists() else 0
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            new = journal.read_bytes()[known:] if journal.exists() else b""
            for line in new.splitlines():
                if b'"end"' in line and line.endswith(b"}"):
                    pid = json.loads(line)["pid"]
                    until = time.perf_counter() + self.random.uniform(0, MOMENT)
                    while time.perf_counter() < until:
                        pass
                    for at, process in self._running.items():
                        if pid in process.children():
                            return at, pid
        return None

    def kill_workers(self):
        """Kill all workers at once, as the last kill, and restart them."""
        for at in [at for at in self._running if at[0] == "worker"]:
            self._kill(at)
            self.start(*at)
            self.kills["worker"] += 1

    def finish(self, kind):
        """Wait for the processes of one kind to exit on their own."""
        for at in [at for at in self._running if at[0] == kind]:
            self._running.pop(at).finish(PATIENCE)

    def stop_workers(self):
        """Shut workers down warmly, once they have started.

        SIGTERM kills a worker that doesn't handle it yet. One that has started its pool does;
        before, it may have one child, a command that prints the machine's type.
        """
        workers = [process for at, process in self._running.items() if at[0] == "worker"]
        for process in workers:
            process.wait_for(
                lambda process=process: len(process.children()) == POOL,
                "the worker has started its pool",
                READY,
            )
            process.popen.terminate()
        self.finish("worker")

    def close(self):
        for at in list(self._running):
            self._kill(at)

    def log(self, kind):
        path = self.folder / f"{kind}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _kill(self, at):
        process = self._running.pop(at)
        self._kill_pids([process.pid, *process.children()])
        process.popen.wait(PATIENCE)

    def _kill_pids(self, pids):
        self.killed.update(pids)
        self._journal.note("killed", pids=pids)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
