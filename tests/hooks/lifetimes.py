"""Random histories of messages, results and puts, and what must be stored at each moment.

The model knows holders and times, nothing of how they are kept. After each step it is
compared with the store: what somebody may still need is there, and what is there somebody
needs, or did until a grace ago.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import celery.worker.request
import hypothesis.strategies as st
import numpy as np
from celery import chain
from celery.exceptions import Ignore, Reject
from celery.worker.state import revoked
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from offload.content.manifest import pack
from offload.errors import OffloadError
from offload.hooks.release import release
from offload.ref import Ref
from offload.stores import Store
from tests.hooks.wire import Wire, make_wire

HOUR = 3600.0
RETENTION, GRACE, EXPIRES = 20 * HOUR, HOUR, 30 * HOUR
SLACK = 70.0
"""Seconds for what the library adds for clocks that differ."""
MARGIN = 1.25
"""By this what cannot be given up lives longer, so that it can be passed on soon for free."""


def _values() -> dict[str, Any]:
    shared = np.arange(30_000, dtype=np.uint8)
    changed = shared.copy()
    changed[-1] += 1
    return {"small": list(range(900)), "large": shared, "alike": changed, "other": shared[::-1]}


VALUES = _values()
keys = st.sampled_from(sorted(VALUES))
hours = st.sampled_from([0.2, 0.9, 1.1, 5.0, 19.0, 21.0, 40.0])


@dataclass
class Setup:
    """One store to try.

    Attributes:
        store: without any content.
        advance: moves its clock by seconds; None where that cannot be.
        remains: what is left in it, apart from pointers and leases.
        skew: seconds by which what is in it lives longer.
    """

    store: Store
    advance: Callable[[float], None] | None
    remains: Callable[[], list[str]]
    skew: float = 0.0


@dataclass
class Sent:
    """A message that a broker may deliver, also a second time."""

    message: Any
    holder: str
    key: str
    until: float
    embedded: list[tuple[str, str]]
    expires: bool
    runs: int = 0
    done_at: float | None = None


@dataclass
class Model:
    """Who needs which blobs until when, and until when at the latest anything may be there."""

    now: float = 0.0
    needs: dict[tuple[str, str], float] = field(default_factory=dict)
    graces: dict[str, float] = field(default_factory=dict)
    ages: dict[str, float] = field(default_factory=dict)

    def hold(self, holder: str, digests: list[str], seconds: float) -> None:
        for digest in digests:
            until = max(self.needs.get((holder, digest), 0.0), self.now + seconds)
            self.needs[holder, digest] = until
            age = max(self.ages.get(digest, 0.0), self.now + seconds * MARGIN)
            self.ages[digest] = age

    def release(self, holder: str, digests: list[str]) -> None:
        for digest in digests:
            until = self.needs.pop((holder, digest), 0.0)
            if until > self.now:
                end = min(until, self.now + GRACE)
                self.graces[digest] = max(self.graces.get(digest, 0.0), end)

    def until(self, digest: str) -> float:
        """Return when a blob ends."""
        ends = (end for (_, held), end in self.needs.items() if held == digest)
        return max([self.graces.get(digest, 0.0), *ends])


def lifetimes_machine(
    make: Callable[[], Setup], counts: Counter[str]
) -> type[RuleBasedStateMachine]:
    """Return a state machine over what *make* gives, which adds to *counts* what it did."""

    class Lifetimes(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.setup = make()
            self.wire = make_wire(
                watch=False,
                store=None,
                secret="of a proof, and long enough",
                threshold=1000,
                retention=RETENTION,
                grace=GRACE,
                cache="off",
                conf={"accept_content": ["json"], "result_expires": EXPIRES},
            )
            self.wire.hook._store = self.setup.store
            self.wire.hook.content._clock = lambda: 1e9 + self.model.now
            self.wire.hook.releaser.submit = self._release_now  # type: ignore[method-assign]
            self.model = Model()
            self.messages: list[Sent] = []
            self.results: dict[str, tuple[str, float]] = {}
            self.refs: list[tuple[Ref[Any], str, float]] = []
            self.outcome = ""
            self.failures: list[str] = []
            self.work = _task(self)
            encode = self.wire.hook.content.serializers.encode
            self.digests = {
                key: [str(d) for d in pack(encode(value, "json")).digests]
                for key, value in VALUES.items()
            }
            counts["histories"] += 1

        # -- what happens

        @rule(key=keys, countdown=st.sampled_from([None, None, 30 * HOUR]))
        def publish(self, key: str, countdown: float | None) -> None:
            self._send(lambda: self.work.apply_async((key, VALUES[key]), countdown=countdown))

        @rule(key=keys, expires=st.sampled_from([2 * HOUR, 40 * HOUR]))
        def publish_what_expires(self, key: str, expires: float) -> None:
            self._send(lambda: self.work.apply_async((key, VALUES[key]), expires=expires))

        @rule(first=keys, second=keys)
        def publish_chain(self, first: str, second: str) -> None:
            work = self.work
            self._send(chain(work.si(first, VALUES[first]), work.si(second, VALUES[second])).delay)

        @rule(key=keys, retention=st.sampled_from([RETENTION, 2 * HOUR]))
        def put(self, key: str, retention: float) -> None:
            ref = self.wire.hook.put(VALUES[key], retention=retention)
            self.model.hold("put", self.digests[key], retention * MARGIN)
            self.refs.append((ref, key, self.model.now + retention))
            counts["put"] += 1

        @precondition(lambda self: self._live_refs())
        @rule(data=st.data())
        def publish_a_ref(self, data: st.DataObject) -> None:
            ref, key, _ = data.draw(st.sampled_from(self._live_refs()), label="ref")
            self._send(lambda: self.work.apply_async((key, ref)))

        @precondition(lambda self: self._deliverable())
        @rule(
            data=st.data(),
            outcome=st.sampled_from(["result", "small", "fail", "retry", "ignore", "reject"]),
        )
        def run(self, data: st.DataObject, outcome: str) -> None:
            sent = data.draw(st.sampled_from(self._deliverable()), label="message")
            self._run(sent, outcome)

        @precondition(lambda self: self._deliverable())
        @rule(data=st.data())
        def revoke_or_expire(self, data: st.DataObject) -> None:
            sent = data.draw(st.sampled_from(self._deliverable()), label="message")
            self._revoke(sent)

        @precondition(lambda self: self.results)
        @rule(data=st.data())
        def read_a_result(self, data: st.DataObject) -> None:
            task_id = data.draw(st.sampled_from(sorted(self.results)), label="result")
            key, until = self.results[task_id]
            if until > self.model.now:
                assert _same(self.wire.app.AsyncResult(task_id).get(timeout=1), key)
                counts["read"] += 1

        @precondition(lambda self: self.results)
        @rule(data=st.data())
        def forget(self, data: st.DataObject) -> None:
            task_id = data.draw(st.sampled_from(sorted(self.results)), label="result")
            key, _ = self.results.pop(task_id)
            self.wire.app.AsyncResult(task_id).forget()
            self.model.release(f"result:{task_id}", self.digests[key])
            counts["forgotten"] += 1

        @rule(dry_run=st.booleans())
        def sweep(self, dry_run: bool) -> None:
            swept = {each.name for each in self.setup.store.sweep(dry_run=dry_run)}
            assert not swept & self._needed()
            counts["sweeps"] += 1

        @precondition(lambda self: self.setup.advance is not None)
        @rule(span=hours)
        def pass_time(self, span: float) -> None:
            assert self.setup.advance is not None
            self.setup.advance(span * HOUR)
            self.model.now += span * HOUR
            counts["clock steps"] += 1

        # -- what must hold

        @invariant()
        def what_is_needed_is_there(self) -> None:
            counts["steps"] += 1
            missing = self._needed() - set(self._lives())
            assert not missing, f"needed, and not there: {missing}"

        @invariant()
        def what_is_there_is_needed(self) -> None:
            by_age = not self.setup.store.blobs.keeps_holds
            for digest, left in self._lives().items():
                end = self.model.ages[digest] if by_age else self.model.until(digest)
                assert left <= end - self.model.now + SLACK + self.setup.skew, digest

        def teardown(self) -> None:
            """When all is over, nothing remains."""
            if self.setup.advance is None:
                return
            last = max([self.model.now, *self.model.ages.values(), *self.model.graces.values()])
            self.setup.advance(last - self.model.now + SLACK + 2 * self.setup.skew + 1)
            list(self.setup.store.sweep())
            remains = self.setup.remains()
            assert not remains, f"left behind: {remains}"
            counts["found empty in the end"] += 1

        # -- how

        def _send(self, publish: Callable[[], Any]) -> None:
            publish()
            self._collect()
            counts["published"] += 1

        def _collect(self) -> None:
            """Take new messages from the broker, and note what they need."""
            app = self.wire.app
            with app.connection_for_read() as connection:
                queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
                while message := queue.get():
                    message.ack()
                    self._note(message)

        def _note(self, message: Any) -> None:
            headers = message.headers
            args, _, embed = message.payload
            retries = headers["retries"]
            holder = f"task:{headers['id']}" + (f"+{retries}" if retries else "")
            span = RETENTION + _seconds(headers["eta"])
            if headers["expires"]:
                span = _seconds(headers["expires"]) + GRACE
            sent = Sent(
                message, holder, args[0], self.model.now + span, [], bool(headers["expires"])
            )
            self._hold(holder, args[0], span)
            for signature in embed["chain"] or ():
                embedded = f"task:{signature['options']['task_id']}"
                sent.embedded.append((embedded, signature["args"][0]))
                self._hold(embedded, signature["args"][0], RETENTION)
            self.messages.append(sent)

        def _hold(self, holder: str, key: str, span: float) -> None:
            digests = self.digests[key]
            if self.setup.store.blobs.keeps_holds:
                promised = min(self.model.needs.get(("put", d), 0.0) for d in digests)
                if promised >= self.model.now + span:
                    return  # a put keeps it for that long: whether it is held does not matter
            self.model.hold(holder, digests, span)

        def _run(self, sent: Sent, outcome: str) -> None:
            counts["redelivered" if sent.runs else "run"] += 1
            self.outcome, again = outcome, bool(sent.runs)
            sent.runs += 1
            before = len(self.messages)
            task_id = sent.message.headers["id"]
            self.wire.execute(sent.message)
            assert not self.failures, self.failures
            if outcome == "result":
                self._hold_result(task_id, sent.key)
            self._collect()
            counts["retried"] += outcome == "retry" and len(self.messages) > before
            if outcome != "reject":
                self.model.release(sent.holder, self.digests[sent.key])
                sent.done_at = sent.done_at if again and sent.done_at else self.model.now

        def _hold_result(self, task_id: str, key: str) -> None:
            self.model.hold(f"result:{task_id}", self.digests[key], EXPIRES)
            self.results[task_id] = (key, self.model.now + EXPIRES)
            counts["results"] += 1

        def _revoke(self, sent: Sent) -> None:
            app, message = self.wire.app, sent.message
            if sent.expires:
                past = datetime.now(timezone.utc) - timedelta(days=1)
                message.headers["expires"] = past.isoformat()
                counts["expired"] += 1
            else:
                revoked.add(message.headers["id"])
                counts["revoked"] += 1
            request = celery.worker.request.Request(
                message,
                app=app,
                task=app.tasks[self.work.name],
                on_ack=lambda *_: None,
                on_reject=lambda *_: None,
            )
            request.delivery_info["exchange"] = ""
            assert request.revoked()
            revoked.discard(message.headers["id"])
            self.messages.remove(sent)
            self.model.release(sent.holder, self.digests[sent.key])

        def _release_now(self, wires: Any, name: str) -> None:
            release(self.wire.hook, map(Ref.unbound, wires), name)

        def _deliverable(self) -> list[Sent]:
            """Messages whose values must be there: not run yet, or run less than a grace ago."""
            now = self.model.now
            return [
                sent
                for sent in self.messages
                if sent.until > now and (sent.done_at is None or sent.done_at + GRACE > now)
            ]

        def _live_refs(self) -> list[tuple[Ref[Any], str, float]]:
            return [found for found in self.refs if found[2] > self.model.now]

        def _lives(self) -> dict[str, float]:
            return {str(info.digest): info.ttl for info in self.setup.store.blobs.scan()}

        def _needed(self) -> set[str]:
            now = self.model.now
            held = {digest for (_, digest), until in self.model.needs.items() if until > now}
            return held | {digest for digest, until in self.model.graces.items() if until > now}

    return Lifetimes


def _task(machine: Any) -> Any:
    wire: Wire = machine.wire

    @wire.app.task(name=f"work{next(_number)}", bind=True, shared=False, max_retries=None)
    def work(self: Any, key: str, value: Any) -> Any:
        if not _same(value, key):
            machine.failures.append(f"{key} arrived as something else")
        outcome = machine.outcome
        if outcome == "fail":
            raise RuntimeError("as it is meant to")
        if outcome == "retry":
            raise self.retry(countdown=0)
        if outcome in ("ignore", "reject"):
            raise {"ignore": Ignore(), "reject": Reject("no")}[outcome]
        return value if outcome == "result" else 1

    def on_failure(exc: Exception, *_: Any) -> None:
        if isinstance(exc, OffloadError):
            machine.failures.append(repr(exc))

    work.on_failure = on_failure
    return work


_number = itertools.count()


def _same(value: Any, key: str) -> bool:
    return type(value) is type(VALUES[key]) and bool(np.array_equal(value, VALUES[key]))


def _seconds(when: str | None) -> float:
    if not when:
        return 0.0
    return (datetime.fromisoformat(when) - datetime.now(timezone.utc)).total_seconds()
