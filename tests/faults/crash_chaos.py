"""The processes of the crash test, and who kills them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from crash_journal import Journal
from crash_nursery import Nursery

COUNTS = {"worker": 2, "publisher": 2, "sweeper": 1}
KILLS = {"publisher": 30, "child": 45, "worker": 13, "sweeper": 12}
"""How often each is killed: a worker with its children, or a child of one."""
WORKER = ("-l", "WARNING", "-c", "2", "--without-gossip", "--without-mingle",
          "--without-heartbeat")  # fmt: skip
SOON, MOMENT = 0.5, 0.006  # seconds within which a task ends, and for which its end takes


class Chaos:
    """Starts the processes, kills and restarts them.

    Attributes:
        kills: how many, by kind.
        killed: the process ids.
    """

    def __init__(self, folder, config, random, seed):
        self.folder = folder
        self.random = random
        self.seed = seed
        self.kills = Counter()
        self.killed = set()
        self._journal = Journal(folder / "kills")
        self._nursery = Nursery(folder, config)
        self._started = Counter()
        self._running = {}
        for kind, count in COUNTS.items():
            for number in range(count):
                self.start(kind, number)

    def start(self, kind, number=0):
        self._started[kind] += 1
        life = self._started[kind]
        args = {"worker": [*WORKER, "-n", f"{number}@%h"], "publisher": [life, self.seed]}
        self._running[kind, number] = self._nursery.start(kind, *args.get(kind, ()))

    def kill_one(self):
        """Kill any process, at whatever it is doing, and start it again.

        Of workers every other one when a task's function has just come to its end: what it
        holds is given up then, its result stored, its message acknowledged.
        """
        self._revive_workers()
        (kind,) = self.random.choices(list(KILLS), KILLS.values())
        whose = "worker" if kind == "child" else kind
        at = self.random.choice([at for at in self._running if at[0] == whose])
        child = None
        if whose == "worker" and self.random.random() < 0.5:
            at, child = self._wait_for_an_end() or (at, None)
        if kind != "child":
            self._kill(at)
            self.start(*at)
        elif child or (children := children_of(self._running[at])):
            self._kill_pids([child or self.random.choice(children)])
        else:
            return
        self.kills[kind] += 1

    def _revive_workers(self):
        """Start those again that ended because a child was killed before it was ready."""
        for at in [at for at in self._running if at[0] == "worker"]:
            if self._nursery.has_ended(self._running[at]):
                self.killed.add(self._running[at])
                self.start(*at)

    def _wait_for_an_end(self):
        """Return, a moment after a task's function ended, which worker's which child ran it."""
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
                    for at, main in self._running.items():
                        if pid in children_of(main):
                            return at, pid
        return None

    def kill_workers(self):
        """The last kill: all workers at once; and start them again."""
        for at in [at for at in self._running if at[0] == "worker"]:
            self._kill(at)
            self.start(*at)
            self.kills["worker"] += 1

    def finish(self, kind):
        """Wait until the processes of one kind have ended by themselves."""
        for at in [at for at in self._running if at[0] == kind]:
            code = self._nursery.wait(self._running.pop(at))
            assert code == 0, f"{kind} ended with {code}\n{self.log(kind)[-4000:]}"

    def stop_workers(self):
        """Let workers finish what they have, and end them."""
        for at, pid in self._running.items():
            if at[0] == "worker":
                os.kill(pid, signal.SIGTERM)
        self.finish("worker")

    def close(self):
        for at in list(self._running):
            self._kill(at)
        self._nursery.close()

    def log(self, kind):
        path = self.folder / f"{kind}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _kill(self, at):
        pid = self._running.pop(at)
        self._kill_pids([pid, *children_of(pid)])
        self._nursery.wait(pid)

    def _kill_pids(self, pids):
        self.killed.update(pids)
        self._journal.note("killed", pids=pids)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def children_of(pid):
    with suppress(OSError):
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
