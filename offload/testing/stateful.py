"""Compare a store with a model, by random sequences of calls.

::

    def make():
        clock = FakeClock()
        return MyStore(clock=clock), clock.advance

    TestMyStore = store_machine(make).TestCase
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from offload.digest import Digest, digest_of
from offload.errors import BlobMissing, IntegrityError
from offload.stores import Store
from offload.stores.capabilities import HoldsAndPuts, Wanted
from offload.testing.store import unique

Advance = Callable[[float], None]

CONTENTS = [bytes([65 + number]) * size for number, size in enumerate((0, 1, 50, 7000, 70_000))]
BLOBS: dict[Digest, bytes] = {digest_of([content]): content for content in CONTENTS}
digests = st.sampled_from(sorted(BLOBS))
groups = st.lists(digests, max_size=6)
ttls = st.integers(1, 20)
names = st.sampled_from(["a", "a/b", "B"])
owners = st.sampled_from(["one", "two"])
HOLDERS = ["put", "task:1", "result:1"]
holders = st.sampled_from(HOLDERS)
values = st.sampled_from([None, b"", b"1", b"2"])


@dataclass
class Lease:
    owner: str
    fence: int
    until: float


class Model:
    """The expected behavior, in plain dicts."""

    def __init__(self) -> None:
        self.now = 0.0
        self.blobs: dict[Digest, float] = {}
        self.holds: dict[Digest, dict[str, float]] = {}
        self.pointers: dict[str, bytes] = {}
        self.leases: dict[str, Lease] = {}
        self.fences: dict[str, int] = {}

    def live(self) -> set[Digest]:
        return {digest for digest, until in self.blobs.items() if until > self.now}

    def extend(self, digest: Digest, ttl: float) -> None:
        old = self.blobs.get(digest, 0.0)
        self.blobs[digest] = max(old if old > self.now else 0.0, self.now + ttl)

    def held(self, digest: Digest) -> dict[str, float]:
        holds = self.holds.get(digest, {})
        return {holder: until for holder, until in holds.items() if until > self.now}

    def hold(self, digest: Digest, holder: str, ttl: float) -> None:
        holds = self.held(digest)
        self.holds[digest] = {**holds, holder: max(holds.get(holder, 0.0), self.now + ttl)}

    def release(self, digest: Digest, holder: str, grace: float) -> None:
        holds = self.held(digest)
        if holds.pop(holder, None) is not None and digest in self.live():
            last = max(self.now + grace, *holds.values(), 0.0)
            self.blobs[digest] = min(self.blobs[digest], last)
        self.holds[digest] = holds

    def holder(self, name: str) -> Lease | None:
        lease = self.leases.get(name)
        return lease if lease is not None and lease.until > self.now else None


def store_machine(
    make: Callable[[], tuple[Store, Advance | None]], *, examples: int = 40
) -> type[RuleBasedStateMachine]:
    """Return a state machine that tests the stores from *make*.

    For each sequence, *make* is called. It returns a store, and a function that advances the
    store's clock by a number of seconds. If it returns None instead of the function, times to live
    are hours, and none expires during the test.
    """

    class StoreMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.store, self.advance = make()
            self.model = Model()
            self.unit = 1.0 if self.advance else 3600.0
            self.base = unique("machine")
            self.store.blobs.delete(BLOBS)
            for holder in HOLDERS:
                self.store.blobs.release(list(BLOBS), holder, 1.0)

        @rule(group=groups, ttl=ttls)
        def put(self, group: list[Digest], ttl: int) -> None:
            blobs = {digest: [BLOBS[digest][:3], BLOBS[digest][3:]] for digest in group}
            self.store.blobs.put(blobs, ttl * self.unit)
            for digest in group:
                self.model.extend(digest, ttl * self.unit)

        @rule(group=groups, ttl=ttls, holder=holders)
        def hold(self, group: list[Digest], ttl: int, holder: str) -> None:
            live = self.model.live()
            assert self.store.blobs.hold(group, ttl * self.unit, holder) == set(group) - live
            for digest in set(group):
                self.model.hold(digest, holder, ttl * self.unit)
            for digest in set(group) & live:
                self.model.extend(digest, ttl * self.unit)

        @rule(group=groups, ttl=ttls, holder=holders, sent=st.booleans())
        def hold_and_put(self, group: list[Digest], ttl: int, holder: str, sent: bool) -> None:
            if not isinstance(self.store.blobs, HoldsAndPuts):
                return
            live = self.model.live()
            wanted = {
                digest: Wanted(ttl * self.unit, [BLOBS[digest]] if sent else None)
                for digest in group
            }
            missing = self.store.blobs.hold_and_put(wanted, holder)
            assert missing == set(group) - live
            for digest in wanted:
                self.model.hold(digest, holder, ttl * self.unit)
                if sent or digest in live:
                    self.model.extend(digest, ttl * self.unit)

        @rule(group=groups, grace=ttls, holder=holders)
        def release(self, group: list[Digest], grace: int, holder: str) -> None:
            self.store.blobs.release(group, holder, grace * self.unit)
            if self.store.blobs.tracks_holds:
                for digest in set(group):
                    self.model.release(digest, holder, grace * self.unit)

        @rule(group=groups, limit=st.sampled_from([0, 60, 100_000]))
        def get(self, group: list[Digest], limit: int) -> None:
            live = self.model.live()
            reading = self.store.blobs.get(group, limit)
            gone = any(digest not in live for digest in group)
            large = any(len(BLOBS[digest]) > limit for digest in set(group) & live)
            if gone or large:
                errors = (BlobMissing,) * gone + (IntegrityError,) * large
                with pytest.raises(errors):
                    list(reading)
            else:
                assert list(map(bytes, reading)) == [BLOBS[digest] for digest in group]

        @rule(group=groups)
        def delete(self, group: list[Digest]) -> None:
            self.store.blobs.delete(group)
            for digest in group:
                self.model.blobs.pop(digest, None)

        @rule(name=names, expected=values, value=values)
        def swap(self, name: str, expected: bytes | None, value: bytes | None) -> None:
            right = self.model.pointers.get(name) == expected
            assert self.store.pointers.swap(f"{self.base}/{name}", expected, value) == right
            if right:
                self.model.pointers.pop(name, None)
                if value is not None:
                    self.model.pointers[name] = value

        @rule(name=names, owner=owners, ttl=ttls)
        def acquire(self, name: str, owner: str, ttl: int) -> None:
            fence = self.store.leases.acquire(f"{self.base}/{name}", owner, ttl * self.unit)
            lease = self.model.holder(name)
            if lease is not None and lease.owner != owner:
                assert fence is None
                return
            assert fence is not None
            if lease is not None:
                assert fence == lease.fence
            else:
                assert fence > self.model.fences.get(name, 0)
            self.model.fences[name] = fence
            self.model.leases[name] = Lease(owner, fence, self.model.now + ttl * self.unit)

        @rule(name=names, owner=owners, ttl=ttls)
        def renew(self, name: str, owner: str, ttl: int) -> None:
            lease = self.model.holder(name)
            has = lease is not None and lease.owner == owner
            assert self.store.leases.renew(f"{self.base}/{name}", owner, ttl * self.unit) == has
            if lease is not None and has:
                lease.until = self.model.now + ttl * self.unit

        @rule(name=names, owner=owners)
        def give_up(self, name: str, owner: str) -> None:
            lease = self.model.holder(name)
            has = lease is not None and lease.owner == owner
            assert self.store.leases.release(f"{self.base}/{name}", owner) == has
            if has:
                del self.model.leases[name]

        @rule(name=names)
        def read_lease(self, name: str) -> None:
            lease, found = self.model.holder(name), self.store.leases.read(f"{self.base}/{name}")
            assert (found is None) == (lease is None)
            if found is not None and lease is not None:
                assert (found.owner, found.fence) == (lease.owner, lease.fence)
                assert f"{self.base}/{name}" in set(self.store.leases.names(self.base))

        @precondition(lambda self: self.advance is not None)
        @rule(seconds=st.integers(1, 10))
        def pass_time(self, seconds: int) -> None:
            assert self.advance is not None
            self.advance(seconds)
            self.model.now += seconds

        @rule(digest=digests)
        def tell_holders(self, digest: Digest) -> None:
            if self.store.blobs.tracks_holds:
                found = self.store.blobs.holders(digest)
                assert set(found) == set(self.model.held(digest))

        @rule()
        def sweep(self) -> None:
            live = self.model.live()
            assert not {swept.name for swept in self.store.sweep()} & live

        @rule()
        def scan(self) -> None:
            found = {info.digest: info for info in self.store.blobs.scan() if info.digest in BLOBS}
            assert set(found) == self.model.live()
            for digest, info in found.items():
                assert info.size == len(BLOBS[digest])
                left = self.model.blobs[digest] - self.model.now
                assert abs(info.ttl - left) < (0.01 if self.advance else 600)

        @invariant()
        def pointers_agree(self) -> None:
            begin = f"{self.base}/"
            found = {
                name: self.store.pointers.read(name) for name in self.store.pointers.names(begin)
            }
            model = {begin + name: value for name, value in self.model.pointers.items()}
            assert found == model

        def teardown(self) -> None:
            self.store.blobs.delete(BLOBS)
            for name, value in self.model.pointers.items():
                self.store.pointers.swap(f"{self.base}/{name}", value, None)

    StoreMachine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return StoreMachine
