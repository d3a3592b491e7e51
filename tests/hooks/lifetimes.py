"""Generate random histories of messages, results, puts, and pins, and check what must be stored.

The model knows who needs which value until when, but not how holds work: a message needs everything
that it carries until its task is done, and for a grace period after that. After each step the model
is compared with the store: what somebody may still need must be there, and whatever is there must
be needed now or have been needed within the last grace period. Two processes take turns, each of
which knows only its own actions.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import celery
import celery.worker.request
import hypothesis.strategies as st
from celery import _state, chain, chord, group
from celery.app import trace
from celery.exceptions import Ignore, Reject
from celery.worker.state import revoked
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from offload.content.manifest import pack
from offload.errors import OffloadError, StoreUnavailable
from offload.hooks.message import own_name
from offload.hooks.release import Releaser, release
from offload.hooks.renewal import Renewer
from offload.ref import Ref
from tests.hooks.lifetimes_model import (
    EXPIRES,
    FOREVER,
    GRACE,
    HOUR,
    MARGIN,
    RETENTION,
    SLACK,
    VALUES,
    Model,
    Sent,
    Setup,
    carried_by,
    same,
    seconds_until,
)
from tests.support.content import set_clock
from tests.support.wire import Wire, make_wire

EMBEDDED = ("callbacks", "errbacks", "chain", "chord")
REPLACED_BY: dict[str, Callable[[Any], Any]] = {
    "a task": lambda again: again,
    "a chain": lambda again: again.clone() | again,
}
SOUND = celery.VERSION[:2] >= (5, 7)
"""Whether Celery handles failed or revoked parts of nested chords; 5.3 does not."""
if SOUND:
    REPLACED_BY["a group"] = lambda again: group(again.clone(), again)
GOES_ON_BY = ["retry", "outage", "by hand", *REPLACED_BY]
ENDS_BY = ["result", "small", "long", "fail", "ignore", "reject", "revoked"]
OUTCOMES = [*GOES_ON_BY, *ENDS_BY]
keys = st.sampled_from(sorted(VALUES))
given_ids = st.sampled_from(["one", "other"])
hours = st.sampled_from([0.2, 0.9, 1.1, 5.0, 19.0, 21.0, 40.0])


def lifetimes_machine(
    make: Callable[[], Setup], counts: Counter[str]
) -> type[RuleBasedStateMachine]:
    """Return a state machine for the setup of *make*, which adds the number of its actions to
    *counts*.
    """

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
                conf={
                    "accept_content": ["json"],
                    "result_expires": EXPIRES,
                    "task_allow_error_cb_on_chord_header": True,
                    "result_chord_join_timeout": 0.01,  # results may be forgotten before
                },
            )
            self.wire.hook._runtime._store = self.setup.store
            self.wire.hook._runtime.part(Releaser).submit = self._release_now  # type: ignore[method-assign]
            self.wire.hook._runtime.part(Releaser).flush_soon = lambda: None  # type: ignore[method-assign]
            self.wire.hook._runtime.is_worker = True  # so releases wait for other requests
            self.wire.hook._runtime.part(
                Renewer
            )._running.get()._thread = threading.current_thread()  # no others
            self.model = Model()
            self.processes = itertools.cycle([self._process(), self._process()])
            self.messages: list[Sent] = []
            self.done: dict[str, float] = {}
            self.results: dict[str, tuple[str, float]] = {}
            self.succeeded: set[str] = set()
            self.refs: list[tuple[Ref[Any], str, float]] = []
            self.pins: dict[str, tuple[str, str]] = {}
            self.outcome = ""
            self.running: Sent | None = None
            self.failures: list[str] = []
            self.work = _task(self)
            app = self.wire.app
            self.current_app = _state._tls.current_app
            app.set_current()  # Celery finds the app of signatures nested in a canvas by it
            trace.build_tracer(self.work.name, app.tasks[self.work.name], app=app)  # as in a worker
            encode = self.wire.hook._runtime.content.serializers.encode
            self.digests = {
                key: [str(d) for d in pack(encode(value, "json")).digests]
                for key, value in VALUES.items()
            }
            self.failures_end = 0.0
            counts["histories"] += 1

        def _process(self) -> Any:
            """Return the state of another process of the app."""
            hook = self.wire.hook
            hook._runtime._contents = None
            set_clock(hook._runtime.content, lambda: 1e9 + self.model.now)
            hook._runtime.content.reader._retrying._sleep = lambda _: None
            return hook._runtime._contents

        # -- rules

        @rule(key=keys, countdown=st.sampled_from([None, None, 30 * HOUR]))
        def publish(self, key: str, countdown: float | None) -> None:
            self._send(lambda: self.work.apply_async((key, VALUES[key]), countdown=countdown))

        @rule(key=keys, expires=st.sampled_from([2 * HOUR, 40 * HOUR]))
        def publish_what_expires(self, key: str, expires: float) -> None:
            self._send(lambda: self.work.apply_async((key, VALUES[key]), expires=expires))

        @rule(key=keys, callback=keys, errback=keys, expires=st.sampled_from([None, 40 * HOUR]))
        def publish_with_callbacks(
            self, key: str, callback: str, errback: str, expires: float | None
        ) -> None:
            signature = self._signature(key)
            links = {"link": self._signature(callback), "link_error": self._signature(errback)}
            self._send(lambda: signature.apply_async(**links, expires=expires))

        @rule(first=keys, second=keys, third=keys)
        def publish_chain(self, first: str, second: str, third: str) -> None:
            signatures = map(self._signature, (first, second, third))
            self._send(chain(*signatures).delay)

        @precondition(lambda _: SOUND)
        @rule(parts=st.lists(keys, min_size=2, max_size=3), body=keys, then=keys)
        def publish_chord(self, parts: list[str], body: str, then: str) -> None:
            header = group(map(self._signature, parts))
            whole = chord(header, self._signature(body)) | self._signature(then)
            self._send(whole.delay)

        @rule(key=keys, given=given_ids, countdown=st.sampled_from([None, 30 * HOUR]))
        def publish_by_a_given_id(self, key: str, given: str, countdown: float | None) -> None:
            signature = self._signature(key)
            task_id = f"{given} of {self.work.name}"
            self._send(lambda: signature.apply_async(task_id=task_id, countdown=countdown))

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
        @rule(data=st.data(), outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=2, max_size=6))
        def work_off(self, data: st.DataObject, outcomes: list[str]) -> None:
            for outcome in outcomes:
                if deliverable := self._deliverable():
                    sent = data.draw(st.sampled_from(deliverable), label="message")
                    if outcome == "revoked":
                        self._revoke(sent)
                    else:
                        self._run(sent, outcome)

        @precondition(lambda self: self.results)
        @rule(data=st.data())
        def read_a_result(self, data: st.DataObject) -> None:
            task_id = data.draw(st.sampled_from(sorted(self.results)), label="result")
            key, until = self.results[task_id]
            if until > self.model.now:
                assert same(self.wire.app.AsyncResult(task_id).get(timeout=10), key)
                counts["read"] += 1

        @precondition(lambda self: self.results)
        @rule(data=st.data())
        def forget(self, data: st.DataObject) -> None:
            task_id = data.draw(st.sampled_from(sorted(self.results)), label="result")
            key, _ = self.results.pop(task_id)
            self.wire.app.AsyncResult(task_id).forget()
            self.succeeded.discard(task_id)
            self.model.release(f"result:{task_id}", self.digests[key])
            counts["forgotten"] += 1

        @precondition(lambda self: self.setup.store.blobs.tracks_holds and self._live_refs())
        @rule(data=st.data(), name=st.sampled_from(["latest", "best"]))
        def pin(self, data: st.DataObject, name: str) -> None:
            ref, key, _ = data.draw(st.sampled_from(self._live_refs()), label="ref")
            self.wire.hook.pin(ref, name)
            before = self.pins.pop(name, None)
            self.pins[name] = f"pin {next(_number)}", key
            for digest in self.digests[key]:
                self.model.needs[self.pins[name][0], digest] = self.model.now + FOREVER
            if before is not None:
                self.model.release(before[0], self.digests[before[1]])
            counts["pinned"] += 1

        @precondition(lambda self: self.pins)
        @rule(data=st.data())
        def pass_on_what_is_pinned(self, data: st.DataObject) -> None:
            name = data.draw(st.sampled_from(sorted(self.pins)), label="pin")
            key = self.pins[name][1]
            self._send(lambda: self.work.apply_async((key, self.wire.hook.pinned(name))))

        @precondition(lambda self: self.pins)
        @rule(data=st.data())
        def unpin(self, data: st.DataObject) -> None:
            self._unpin(data.draw(st.sampled_from(sorted(self.pins)), label="pin"))

        @rule(dry_run=st.booleans())
        def sweep(self, dry_run: bool) -> None:
            swept = {each.name for each in self.setup.store.sweep(dry_run=dry_run)}
            assert not swept & self.model.needed()
            counts["sweeps"] += 1

        @precondition(lambda self: self.setup.advance is not None)
        @rule(span=hours)
        def pass_time(self, span: float) -> None:
            assert self.setup.advance is not None
            self.setup.advance(span * HOUR)
            self.model.now += span * HOUR
            counts["clock steps"] += 1

        # -- invariants

        @invariant()
        def exactly_needed_blobs_are_stored(self) -> None:
            counts["steps"] += 1
            self.wire.hook._runtime.content.holds.release_deferred()  # what no request has carried
            self.wire.hook._runtime._contents = next(self.processes)
            model, lives = self.model, self._lives()
            by_age = not self.setup.store.blobs.tracks_holds
            missing = model.needed() - set(lives)
            assert not missing, f"needed, and not there: {missing}"
            for digest in model.needed():
                assert lives[digest] > model.left(digest) - SLACK, f"{digest} ends too early"
            values = {digest for digests in self.digests.values() for digest in digests}
            for digest, left in lives.items():
                if digest not in values:  # the exception and traceback of a failure
                    longest = self.failures_end - model.now
                else:
                    longest = model.ages[digest] - model.now if by_age else model.left(digest)
                assert left <= longest + SLACK + self.setup.skew, f"{digest} ends too late"

        def teardown(self) -> None:
            """Check that nothing remains at the end.

            A rule that was interrupted, by pytest's timeout for example, may have stored something
            that the model doesn't know of yet; its own error is the one to look at.
            """
            _state._tls.current_app = self.current_app
            if sys.exc_info()[0] is not None:
                return
            if self.setup.advance is None:
                return
            for name in list(self.pins):
                self._unpin(name)
            ends = (*self.model.ages.values(), *self.model.graces.values(), self.failures_end)
            last = max(self.model.now, *ends)
            self.setup.advance(last - self.model.now + SLACK + 2 * self.setup.skew + 1)
            list(self.setup.store.sweep())
            remains = self.setup.remains()
            assert not remains, f"left behind: {remains}"
            counts["found empty in the end"] += 1

        # -- helpers

        def _signature(self, key: str) -> Any:
            return self.work.si(key, VALUES[key])

        def _send(self, publish: Callable[[], Any]) -> None:
            publish()
            self._collect()
            counts["published"] += 1

        def _unpin(self, name: str) -> None:
            assert self.wire.hook.unpin(name)
            holder, key = self.pins.pop(name)
            self.model.release(holder, self.digests[key])

        def _collect(self) -> None:
            """Take new messages from the broker and record what they need."""
            app = self.wire.app
            with app.connection_for_read() as connection:
                queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
                while message := queue.get():
                    message.ack()
                    self._note(message)

        def _note(self, message: Any) -> None:
            headers = message.headers
            args, _, embed = message.payload
            expires = bool(headers["expires"])
            span = RETENTION + seconds_until(headers["eta"])
            if expires:
                span = seconds_until(headers["expires"]) + GRACE
            holder, until = f"message {next(_number)}", self.model.now + span
            embedded = [embed[field] for field in EMBEDDED]
            embedded.append(embed.get("offload", {}).get("errbacks"))
            name = own_name(headers) or headers["task"]
            if not name.startswith("work"):  # Celery's own task that joins a group's results
                for key in self._referred([args, embedded]):
                    self._hold(holder, key, span)
                return
            carried = list(carried_by(embedded))
            again = False
            if self.running is not None and embed["offload"].get("attempt"):
                holder, until = self.running.holder, self.running.until
                again = self.running.may_be_released
            else:
                self._hold(holder, args[0], span)
                for key in carried:
                    self._hold(holder, key, span + RETENTION if expires else span)
            keys = [args[0], *carried]
            is_part = bool(embed["chord"])
            self.messages.append(
                Sent(message, holder, args[0], keys, until, expires, is_part, again)
            )

        def _referred(self, args: Any) -> list[str]:
            """Return the keys of the values that *args* refers to."""
            text = str(args)
            return [key for key, digests in self.digests.items() if digests[0] in text]

        def _hold(self, holder: str, key: str, span: float) -> None:
            digests = self.digests[key]
            if self.setup.store.blobs.tracks_holds:
                promised = min(self.model.needs.get(("put", d), 0.0) for d in digests)
                if promised >= self.model.now + span:
                    return  # a put value lives that long, held or not
            self.model.hold(holder, digests, span)

        def _run(self, sent: Sent, outcome: str) -> None:
            counts["redelivered" if sent.runs else "run"] += 1
            self.outcome, self.running = outcome, sent
            sent.runs += 1
            before = len(self.messages)
            task_id = sent.message.headers["id"]
            with self._outage(outcome == "outage"):
                again = {"exchange": "", "redelivered": sent.runs > 1}
                self.wire.execute(sent.message, again)
            assert not self.failures, self.failures
            self._failed()
            if outcome in ("result", "small", "long", "by hand"):
                self._succeeded(task_id, sent.key, stored=outcome == "result")
            self._collect()
            self.running = None
            new = self.messages[before:]
            if new:
                counts[f"went on by {outcome}"] += 1
            if outcome != "reject" and all(each.holder != sent.holder for each in new):
                self._done(sent)

        def run_long(self) -> None:
            """Let hours pass while a task runs: everything its message carries must stay readable,
            also for one more delivery.
            """
            sent = self.running
            if sent is None or self.setup.advance is None:
                return
            for span in (0.0, *[0.37 * HOUR] * 12):
                self.setup.advance(span)
                self.model.now += span
                self.wire.hook._runtime.part(Renewer).renew_due()
                if sent.until - GRACE <= self.model.now or (sent.may_be_released and not span):
                    for key in sent.carried:
                        self._hold(sent.holder, key, 1.5 * GRACE)
                    sent.until = self.model.now + 1.5 * GRACE
                lives = self._lives()
                for digest in {d for key in sent.carried for d in self.digests[key]}:
                    if not lives.get(digest, 0.0) >= GRACE - SLACK:
                        self.failures.append(f"{digest} ends {lives.get(digest)} into a long task")
            counts["ran long"] += 1

        def _done(self, sent: Sent) -> None:
            for key in sent.carried:
                self.model.release(sent.holder, self.digests[key])
            self.done.setdefault(sent.holder, self.model.now)

        @contextmanager
        def _outage(self, unavailable: bool) -> Iterator[None]:
            """Make the store unavailable in this block if *away*."""
            blobs = self.setup.store.blobs
            if unavailable:
                object.__setattr__(blobs, "get", _away)
            yield
            if unavailable:
                object.__delattr__(blobs, "get")

        def _failed(self) -> None:
            """Note that a failure may have been stored now: it lives as long as a result."""
            self.failures_end = self.model.now + EXPIRES * MARGIN

        def _succeeded(self, task_id: str, key: str, *, stored: bool) -> None:
            if stored:
                self.model.hold(f"result:{task_id}", self.digests[key], EXPIRES)
            if task_id not in self.succeeded:  # Celery keeps the first success
                self.succeeded.add(task_id)
                if stored:
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
            self._failed()
            revoked.discard(message.headers["id"])
            self.messages.remove(sent)
            self._done(sent)
            self._collect()  # error callbacks of a chord with a revoked part

        def _release_now(self, wires: Any, name: str, _delivery_info: Any) -> None:
            release(self.wire.hook._runtime, map(Ref.unbound, wires), name)

        def _deliverable(self) -> list[Sent]:
            """Return messages whose values must be stored: not run yet, or run within the last
            grace period.
            """
            now = self.model.now
            return [
                sent
                for sent in self.messages
                if sent.until > now
                and self.done.get(sent.holder, now) + GRACE > now
                and not (sent.runs and sent.is_part)  # Celery counts a chord's part each time
            ]

        def _live_refs(self) -> list[tuple[Ref[Any], str, float]]:
            return [found for found in self.refs if found[2] > self.model.now]

        def _lives(self) -> dict[str, float]:
            return {str(info.digest): info.ttl for info in self.setup.store.blobs.scan()}

    return Lifetimes


def _task(machine: Any) -> Any:
    wire: Wire = machine.wire

    @wire.app.task(name=f"work{next(_number)}", bind=True, shared=False, max_retries=None)
    def work(self: Any, key: str, value: Any) -> Any:
        if not same(value, key):
            machine.failures.append(f"{key} arrived as something else")
        outcome = machine.outcome
        if outcome == "long":
            machine.run_long()
        if outcome == "fail":
            raise RuntimeError("as it is meant to")
        if outcome == "retry":
            raise self.retry(countdown=0)
        if outcome in REPLACED_BY:
            again = work.si(key, value)
            raise self.replace(REPLACED_BY[outcome](again))
        if outcome == "by hand":
            self.apply_async((key, value), task_id=self.request.id)
        if outcome in ("ignore", "reject"):
            raise {"ignore": Ignore(), "reject": Reject("no")}[outcome]
        return value if outcome == "result" else 1

    def on_failure(exc: Exception, *_: Any) -> None:
        if isinstance(exc, OffloadError):
            machine.failures.append(repr(exc))

    work.on_failure = on_failure
    return work


_number = itertools.count()


def _away(*_args: Any) -> None:
    raise StoreUnavailable("away")
