"""Model of single flight: random calls, deaths, and changes against what may be remembered."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from offload.classes.scope import Scope
from offload.memo.flight import Busy, Computation, Flights
from offload.memo.keys import Function
from offload.memo.records import (
    forget_record,
    forget_records,
    list_records,
    record_name,
    sweep_records,
)
from offload.memo.results import Answer, Results
from offload.metrics.counters import Counters
from offload.stores.processes import PerProcess
from offload.stores.protocols import Store
from tests.support.content import make_content, set_clock

TTL, LEASE = 100.0, 30.0
SPANS = (1.0137, 7.3019, 16.1233, 29.6541, 31.7177, 31.7177, 59.9071, 101.3311)
"""Seconds, whose sums are none of the limits."""
LARGE = "x" * 100_000
TASK, SCOPE = "shop.task", Scope()
PROCESSES = 3


class Running:
    """The computations of a process, without the thread that renews them."""

    def __init__(self) -> None:
        self.all: list[Computation] = []
        self.add = self.all.append

    def remove(self, computation: Computation) -> None:
        if computation in self.all:
            self.all.remove(computation)


class Process:
    """A process that computes; its heartbeat beats when the model says so."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self.content = make_content(store)
        set_clock(self.content, clock)
        self.counters = Counters()
        self.results = Results(lambda: self.content, self.counters)
        self.running = Running()
        flights = Flights(store, self.results._is_valid, clock)
        self.results._made["flights"] = flights
        flights._running = PerProcess(lambda: self.running)  # type: ignore[assignment,return-value]

    def key(self, version: int, argument: int) -> str:
        function = Function("task", TASK, code(version))
        return function.key_of((argument,), {}, serializers=self.content.serializers, scope=SCOPE)


def code(version: int) -> Any:
    """Return the function of a module, each *version* of which has other code."""
    module = types.ModuleType("shop")
    exec(f"def task(x):\n    return x + {version}", vars(module))
    return module.task  # type: ignore[attr-defined]


@dataclass
class Held:
    """What the model knows of a computation that has not ended."""

    process: Process
    computation: Computation
    until: float
    due: float
    owns: bool = True


def machine(make: Callable[[Callable[[], float]], Store], clock_of: Callable[[], Any]) -> Any:
    """Return a state machine on the store that *make* makes with a clock of *clock_of*."""

    class Machine(RuleBasedStateMachine):
        @initialize()
        def start(self) -> None:
            self.clock = clock_of()
            self.store = make(self.clock)
            self.processes = [Process(self.store, self.clock) for _ in range(PROCESSES)]
            self.version = 0
            self.number = 0
            self.records: dict[str, tuple[str, float]] = {}
            self.held: dict[str, list[Held]] = {}
            self.fences: dict[str, int] = {}

        # -- what may happen

        @rule(
            process=st.integers(0, PROCESSES - 1),
            argument=st.sampled_from((0, 0, 0, 1)),
            then=st.sampled_from(("finish", "later", "later", "later", "fail")),
        )
        def call(self, process: int, argument: int, then: str) -> None:
            """Call the function in a process, which may still compute afterwards."""
            here, now = self.processes[process], self.clock()
            name = record_name(TASK, "app", here.key(self.version, argument))
            found = here.results.find(name, LEASE, block=False, read=True)
            value, until = self.records.get(name, ("", 0.0))
            owners = [each for each in self._held(name) if each.owns and each.until > now]
            if until > now:
                assert isinstance(found, Answer)
                assert found.value == value
                return
            if owners:
                assert isinstance(found, Busy)
                assert 0 < found.left <= owners[0].until - now + 0.01
                return
            assert isinstance(found, Computation)
            assert found.fence > self.fences.get(name, 0)
            self.fences[name] = found.fence
            for each in self._held(name):
                each.owns = False
            held = Held(here, found, now + LEASE, now + LEASE / 3)
            self._held(name).append(held)
            if then == "finish":
                self._finish(name, held, large=False)
            elif then == "fail":
                self._fail(name, held)

        def _held(self, name: str) -> list[Held]:
            return self.held.setdefault(name, [])

        def _pick(self, data: Any) -> tuple[str, Held]:
            every = [(name, each) for name, some in self.held.items() for each in some]
            return data.draw(st.sampled_from(every))  # type: ignore[no-any-return]

        @precondition(lambda self: any(self.held.values()))
        @rule(data=st.data(), large=st.booleans())
        def finish(self, data: Any, large: bool) -> None:
            """A computation ends, however late."""
            self._finish(*self._pick(data), large=large)

        def _finish(self, name: str, held: Held, *, large: bool) -> None:
            self.number += 1
            result, now = f"{self.number}{LARGE if large else ''}", self.clock()
            before = held.process.counters.snapshot()["memo_fenced"]
            held.process.results.remember(
                held.computation, result, task=TASK, scope="app", ttl=TTL, seconds=1.0
            )()
            fenced = held.process.counters.snapshot()["memo_fenced"] - before
            wins = held.owns and held.until > now
            assert fenced == (not wins)
            if wins:
                self.records[name] = result, now + TTL
            self._held(name).remove(held)

        @precondition(lambda self: any(self.held.values()))
        @rule(data=st.data())
        def fail(self, data: Any) -> None:
            """A computation raises."""
            self._fail(*self._pick(data))

        def _fail(self, name: str, held: Held) -> None:
            held.process.results.flights.abandon(held.computation)
            self._held(name).remove(held)

        @precondition(lambda self: any(self.held.values()))
        @rule(data=st.data())
        def kill(self, data: Any) -> None:
            """A process dies; its computations have leases until these expire."""
            _, held = self._pick(data)
            held.process.running.remove(held.computation)

        @rule(span=st.sampled_from(SPANS), beats=st.sampled_from((True, True, False)))
        def wait(self, span: float, beats: bool) -> None:
            """Time passes, with heartbeats or, in a process that is stopped, without."""
            left = span
            while left > 0:
                step = min(left, LEASE / 4) if beats else left
                self.clock.advance(step)
                left -= step
                if beats:
                    self._beat()

        def _beat(self) -> None:
            now = self.clock()
            for process in self.processes:
                process.results.flights.renew_due(list(process.running.all))
            for held in (each for some in self.held.values() for each in some):
                if held.computation in held.process.running.all and held.due <= now:
                    held.due = now + LEASE / 3
                    if held.owns and held.until > now:
                        held.until = now + LEASE

        @rule(argument=st.integers(0, 1), every=st.booleans())
        def forget(self, argument: int, every: bool) -> None:
            """An operator forgets a result, or all; computations under way don't count."""
            here = self.processes[0]
            names = [record_name(TASK, "app", here.key(self.version, argument))]
            if every:
                names = [*self.held, *self.records]
                forget_records(here.content, TASK, 1.0)
            else:
                forget_record(here.content, names[0], 1.0)
            for name in names:
                self.records.pop(name, None)
                for held in self._held(name):
                    held.owns = False

        @rule(version=st.sampled_from((0, 0, 1)))
        def change_code(self, version: int) -> None:
            """Another version of the function is deployed, or the same again."""
            self.version = version

        @rule()
        def sweep(self) -> None:
            """The store is swept."""
            list(sweep_records(self.store, self.clock))
            list(self.store.sweep())

        # -- what always holds

        @invariant()
        def records_are_as_computed(self) -> None:
            """What the store remembers is the last result that was accepted."""
            if not hasattr(self, "store"):
                return
            now = self.clock()
            found = {each.name: each for each in list_records(self.store) if each.until > now}
            expected = {name for name, (_, until) in self.records.items() if until > now}
            assert set(found) == expected

    return Machine
