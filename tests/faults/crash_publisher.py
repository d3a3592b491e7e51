"""Publish tasks for the crash test until the file ``stop`` exists.

python -m crash_publisher NUMBER SEED

The publisher notes every task before publishing it (``want``: with its kind, whether it is
acknowledged late, and the ids of the tasks that must finish first) and after (``sent``).
Without arguments, read all results instead.
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from pathlib import Path

from celery import chain, chord, group, uuid
from crash_app import CONFIG, app
from crash_broker import QUEUE
from crash_journal import Journal, lines
from crash_values import is_right, make, size_of

from offload.errors import OffloadError

BACKLOG = 30  # waiting messages at most, so that none waits for longer than the grace period
SHARED = 8  # values that many tasks share at a time
TURN, TURNS = 2.0, 6  # seconds for which each set of them is in use, and the number of sets
WAIT = 14.0  # seconds; longer than released values live
MOST = [CONFIG["most"]] if "most" in CONFIG else []  # usual maximum size in bytes

KINDS = {
    "plain": 30, "many": 6, "again": 12, "chain": 10, "chord": 5, "link": 5, "later": 8,
    "waits": 4, "expires": 8, "revoke": 5, "produce": 10, "fail": 4,
}  # fmt: skip


class Publisher:
    def __init__(self, number, seed):
        self.random = random.Random(f"{seed} {number}")
        self.seed = f"{seed} {number}"
        self.count = itertools.count()
        self.journal = Journal(Path(CONFIG["folder"], f"published-{number}"))
        self.results = []
        self.broker = app.backend.client
        self.late = False

    def run(self):
        stop = Path(CONFIG["folder"], "stop")
        while not stop.exists():
            if self.broker.llen(QUEUE) > BACKLOG:
                time.sleep(0.01)
                continue
            (kind,) = self.random.choices(list(KINDS), KINDS.values())
            self.late = self.random.random() < 0.5
            try:
                getattr(self, kind)()
                self.read_oldest_result()
            except OffloadError as exc:
                self.journal.note("error", kind=type(exc).__name__, said=str(exc)[:500])

    # -- parts

    def value(self, pool="long"):
        """Return a value and its checksum.

        Every other value is shared with other tasks, and may have expired since its last use or be
        about to.
        """
        if self.random.random() < 0.5:
            turn = int(time.time() / TURN) % TURNS
            seed = f"{pool} {turn} {self.random.randrange(SHARED)}"
            value = make(seed, size_of(random.Random(seed), *MOST))
        else:
            value = make(self.own_seed(), size_of(self.random, *MOST))
        wanted = value[:32]
        return (value.encode() if self.random.random() < 0.2 else value), wanted

    def own_seed(self):
        return f"{self.seed} {next(self.count)}"

    def task(self, name):
        return app.tasks[f"{name}_late" if self.late else name]

    def want(self, kind, needs=()):
        """Return the id of a task to publish."""
        task_id = uuid()
        self.journal.note("want", id=task_id, kind=kind, late=self.late, needs=list(needs))
        return task_id

    def sent(self, *ids):
        for task_id in ids:
            self.journal.note("sent", id=task_id)

    def produced(self, task_id):
        """Return a signature of a task with a large result, and the result's checksum."""
        made = self.own_seed(), size_of(self.random, *MOST)
        sig = self.task("produce").s(*made, *self.value()).set(task_id=task_id)
        wanted = make(*made)[:32]
        self.journal.note("result", id=task_id, wanted=wanted)
        return sig, wanted

    def one(self, kind, name, *args, **options):
        task_id = self.want(kind)
        self.task(name).apply_async(args, task_id=task_id, **options)
        self.sent(task_id)
        return task_id

    # -- kinds

    def plain(self):
        self.one("plain", "take", *self.value())

    def many(self):
        """Publish a group in which some tasks share a value."""
        shared = self.value()
        ids = [self.want("many") for _ in range(self.random.randint(2, 5))]
        take = self.task("take")
        calls = [take.s(*(shared if n % 2 else self.value())) for n in range(len(ids))]
        group([sig.set(task_id=task_id) for sig, task_id in zip(calls, ids, strict=True)])()
        self.sent(*ids)

    def again(self):
        self.one("again", "again", *self.value(), self.random.choice((2, 2, 3)))

    def chain(self):
        first = self.want("produce")
        second = self.want("chain", [first])
        sig, wanted = self.produced(first)
        meet = self.task("meet").s(wanted, *self.value()).set(task_id=second)
        assert chain(sig, meet).apply_async().id == second
        self.sent(first, second)

    def chord(self):
        parts = [self.want("produce") for _ in range(self.random.randint(2, 4))]
        body = self.want("chord", parts)
        made = [self.produced(part) for part in parts]
        gather = self.task("gather").s([wanted for _, wanted in made], *self.value())
        result = chord([sig for sig, _ in made])(gather.set(task_id=body))
        assert result.id == body
        self.sent(*parts, body)

    def link(self):
        first = self.want("plain")
        second = self.want("link", [first])
        linked = self.task("take").si(*self.value()).set(task_id=second)
        self.task("take").apply_async(self.value(), task_id=first, link=linked)
        self.sent(first, second)

    def later(self):
        self.one("later", "take", *self.value(), countdown=self.random.uniform(0.5, 2))

    def waits(self):
        """Publish a task that waits longer than released values live, and is redelivered."""
        if time.time() < CONFIG["last"]:
            self.one("waits", "take", *self.value(), countdown=WAIT)

    def expires(self):
        self.one("expires", "take", *self.value("short"), expires=self.random.choice((0.05, 1)))

    def revoke(self):
        app.control.revoke(self.one("revoke", "take", *self.value(), countdown=1))

    def produce(self):
        task_id = self.want("produce")
        sig, wanted = self.produced(task_id)
        sig.apply_async()
        self.results.append((task_id, wanted))
        self.sent(task_id)

    def fail(self):
        self.one("fail", "fail", *self.value())

    # -- results

    def read_oldest_result(self):
        """Read the oldest result, if it exists, and usually forget it."""
        if len(self.results) < 5:
            return
        task_id, wanted = self.results.pop(0)
        result = app.AsyncResult(task_id)
        if result.state != "SUCCESS":
            return
        self.journal.note("read", id=result.id, right=is_right(result.get(), wanted))
        if self.random.random() < 0.8:
            self.journal.note("forgetting", id=result.id)  # it may be killed right after that
            result.forget()
            self.journal.note("forgot", id=result.id)


def read_results():
    """Note whether each result is correct, except those that were forgotten or about to be."""
    journal = Journal(Path(CONFIG["folder"], "published-read"))
    noted = [line for path in Path(CONFIG["folder"]).glob("published-*") for line in lines(path)]
    forgot = {line["id"] for line in noted if line["what"] == "forgetting"}
    for line in noted:
        task_id = line.get("id")
        if line["what"] != "result" or task_id in forgot:
            continue
        result = app.AsyncResult(task_id)
        state = result.state
        journal.note("state", id=task_id, state=state)
        if state == "SUCCESS":
            try:
                journal.note("read", id=task_id, right=is_right(result.get(), line["wanted"]))
            except OffloadError as exc:
                journal.note("error", id=task_id, kind=type(exc).__name__, said=str(exc)[:500])


if __name__ == "__main__":
    if sys.argv[1:]:
        Publisher(*sys.argv[1:]).run()
    else:
        read_results()
