"""The outcome of every task that the crash test published."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

from crash_journal import lines

OWN_FAULTS = {"fail": "IntendedError"}  # by kind
NOT_RUN = {"expires": "expired", "revoke": "revoked"}
LOST = "WorkerLostError"
RELEASED = 5.0  # seconds within which a process releases what a task held that has ended


class Account:
    """Reads the journals once all processes have exited.

    Args:
        folder: folder of the journals.
        killed: ids of killed processes.
        broker: what the broker reports, a `crash_broker.Watch`.
    """

    def __init__(self, folder, killed, broker):
        self._broker = broker
        self._wanted = {}
        self.sent = set()
        self.forgot = set()
        self._states = {}
        self.read = 0
        self.faults = []
        for path in sorted(folder.glob("published-*")):
            for line in lines(path):
                self._published(line)
        self._begun, self._ended = Counter(), Counter()
        self._history = defaultdict(list)
        self._became = defaultdict(set)
        self.retries = 0
        self._read_tasks(folder / "tasks", killed)
        self.swept = Counter(line["what"] for line in lines(folder / "swept"))

    def _published(self, line):
        what, task_id = line["what"], line.get("id")
        if what == "want":
            self._wanted[task_id] = line
        elif what == "sent":
            self.sent.add(task_id)
        elif what == "forgot":
            self.forgot.add(task_id)
        elif what == "state":
            self._states[task_id] = line["state"]
        elif what == "error" or (what == "read" and not line["right"]):
            self.faults.append(line)
        self.read += what == "read"

    def _read_tasks(self, path, killed):
        """Read workers' notes and find the victims: tasks that a killed process was running."""
        has, at = {}, {}  # which worker has a task, and which task a child started last
        mains = {}  # of children: a worker that exits stops them
        died = {pid: line["at"] for line in lines(path.with_name("kills")) for pid in line["pids"]}
        unreleased = set()  # by main processes killed right after they revoked the task
        self._unreleased = set()  # by children killed right after the task ended

        def died_at(pid):
            return min(died.get(each, math.inf) for each in (pid, mains.get(pid)))

        for line in lines(path):
            what, task_id, pid = line["what"], line.get("id"), line.get("pid")
            self._history[task_id].append(line)
            if what == "received":
                has[task_id] = pid
            elif what == "begin":
                self._begun[task_id] += 1
                at[pid] = task_id
                mains[pid] = line["main"]
            elif what in ("end", "again"):
                has.pop(task_id, None)
                self._ended[task_id] += what == "end"
                self.retries += what == "again"
                if died_at(pid) - line["at"] < RELEASED:
                    self._unreleased.add(task_id)
                if not line["right"]:
                    self.faults.append(line)
            elif what == "failed":
                self._became[task_id].add(line["kind"])
                own = OWN_FAULTS.get(self._kind(task_id))
                if line["kind"] not in (own, LOST):
                    self.faults.append(line)
            else:
                self._became[task_id].add(what)
                if died.get(pid, math.inf) - line["at"] < RELEASED:
                    unreleased.add(task_id)
        found = [*((pid, task_id) for task_id, pid in has.items()), *at.items()]
        self._victims = {
            task_id for pid, task_id in found if not killed.isdisjoint([pid, mains.get(pid)])
        } | unreleased

    def _kind(self, task_id):
        return self._wanted.get(task_id, {}).get("kind")

    # -- what became of a task

    def is_done(self, task_id):
        return bool(self._ended[task_id]) or NOT_RUN.get(self._kind(task_id)) in (
            self._became[task_id] or ()
        )

    def why_lost(self, task_id):
        """Return how plain Celery lost a task; None if it is no such loss.

        The transport takes a message out of the queue and notes it in two steps. A task that is
        acknowledged early is lost with its process. Tasks that follow others are lost with them, or
        with the process that was about to publish them; for a chord this is so even if its parts
        are acknowledged late, because they have succeeded by then and don't run again.
        """
        wanted = self._wanted[task_id]
        needs, late = wanted["needs"], wanted["late"]
        if self._broker.is_waiting(task_id):
            return "by the transport"
        if not self._broker.was_published(task_id):
            if not all(map(self.is_done, needs)) or (
                not (late and wanted["kind"] != "chord") and not self._victims.isdisjoint(needs)
            ):
                return "with what comes before"
        elif not late and (task_id in self._victims or LOST in self._became[task_id]):
            return "with their process"
        return None

    def lost(self):
        """Return lost tasks by reason; None is the key of those without an explanation."""
        found = defaultdict(list)
        for task_id in self.sent:
            if not self.is_done(task_id):
                found[self.why_lost(task_id)].append(task_id)
        return found

    def lost_results(self):
        """Return tasks that finished undisturbed but have no result."""
        return [
            task_id
            for task_id, state in self._states.items()
            if state != "SUCCESS" and self._ended[task_id] and task_id not in self._victims
        ]

    def may_hold(self, holder):
        """Whether *holder* may still hold something because it had no chance to release it."""
        kind, _, name = holder.partition(":")
        task_id = name.partition("+")[0]
        if kind == "@put":
            return True  # it was killed before it stored the value
        if kind == "result":
            return task_id not in self.forgot or self._begun[task_id] > 1
        if task_id not in self.sent or not self.is_done(task_id) or task_id in self._unreleased:
            return True  # its publisher was killed; or it was lost; or nobody could release it
        publishers = self._wanted[task_id]["needs"]  # each may be about to publish it
        return self._broker.is_waiting(task_id) or not self._victims.isdisjoint(
            [task_id, *publishers]
        )

    def shown(self, task_id):
        """Return everything known about a task as text."""
        wanted = self._wanted.get(task_id, {})
        lines = [wanted, *self._history[task_id], self._broker.shown(task_id)]
        for other in wanted.get("needs", ()):
            lines += ["after", *self._history[other], self._broker.shown(other)]
        return "\n".join(map(str, lines))

    def counts(self):
        became = [self._became[task_id] for task_id in self.sent]
        ended = [self._ended[task_id] for task_id in self.sent]
        return {
            "published": len(self.sent),
            "executed": sum(map(bool, ended)),
            "retried": self.retries,
            "executed again": sum(count > 1 for count in ended),
            "results read": self.read,
            "failed as intended": sum("IntendedError" in each for each in became),
            "revoked or expired": sum(bool(each & set(NOT_RUN.values())) for each in became),
            **{f"lost as by plain Celery {why}": len(ids) for why, ids in self.lost().items()},
        }
