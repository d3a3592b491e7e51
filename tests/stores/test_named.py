"""Blobs that something names, in stores without holds: they live until a sweep finds no name."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import greenlet
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from offload.digest import digest_of
from offload.errors import StoreUnavailable
from offload.stores import open_store
from offload.stores.capabilities import KeepsNamed
from offload.stores.file import FileStore
from offload.stores.protocols import FOREVER
from offload.testing.store import FakeClock, blob, blobs, contents
from tests.support.moto_s3 import moto_s3

UNNAMED = 100.0  # seconds


@contextmanager
def file_store(clock, path):
    yield FileStore(path, clock=clock, skew=1, unnamed=UNNAMED, fsync=False)


@contextmanager
def s3_store(clock, _path):
    with moto_s3(clock, skew=1, unnamed=UNNAMED) as store:
        yield store


@pytest.fixture(params=[file_store, s3_store])
def store(request, clock, tmp_path):
    with request.param(clock, tmp_path) as store:
        yield store


@pytest.fixture
def clock():
    return FakeClock()


def swept(store, *names, dry_run=False):
    """Sweep, with these blobs named, and return the blobs that were deleted."""
    report = list(store.sweep_unnamed(lambda asked: {*names} & {*asked}, dry_run=dry_run))
    return {item.name for item in report if item.kind == "blob"}


def test_a_named_blob_outlives_any_time(store, clock):
    """A blob held FOREVER stays readable while it is named, whatever is swept and when."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, FOREVER)
    for _ in range(3):
        clock.advance(400 * 86400)
        assert list(store.sweep()) == []
        assert swept(store, digest) == set()
        assert contents(store, [digest]) == [content]
    assert [info.digest for info in store.blobs.scan()] == [digest]


def test_an_unnamed_blob_goes_after_a_while(store, clock):
    """A blob that nothing names is deleted once it could have got a name, and not before; a dry
    run says so and deletes nothing, and a sweep that knows no names leaves it.
    """
    first, later = blobs(2), blobs(1)
    store.blobs.put(first, FOREVER)
    clock.advance(UNNAMED - 10)
    store.blobs.put(later, FOREVER)
    assert swept(store) == set()
    clock.advance(15)
    assert list(store.sweep()) == []
    assert swept(store, dry_run=True) == set(first)
    assert swept(store) == set(first)
    assert store.blobs.hold([*first, *later], FOREVER) == set(first)
    clock.advance(UNNAMED * 3)
    assert swept(store) == set(later)
    assert list(store.blobs.scan()) == []


@pytest.mark.parametrize("before", (True, False))
def test_other_needs_of_a_named_blob_count(store, clock, before):
    """A blob that loses its name stays for as long as anybody asked for, before it got its name
    or after.
    """
    digest, content = blob()
    if before:
        store.blobs.put({digest: [content]}, UNNAMED * 10)
        assert store.blobs.hold([digest], FOREVER) == set()
    else:
        store.blobs.put({digest: [content]}, FOREVER)
        assert store.blobs.hold([digest], UNNAMED * 10) == set()
    clock.advance(UNNAMED * 9)
    assert swept(store) == set()
    assert contents(store, [digest]) == [content]
    clock.advance(UNNAMED * 2)
    assert swept(store) == {digest}


def test_a_blob_gets_a_name_while_it_is_swept(store, clock):
    """A sweep that has found a blob unnamed doesn't delete it if a saver holds it before the
    sweep gets that far.
    """
    digest, content = blob()
    store.blobs.put({digest: [content]}, FOREVER)
    clock.advance(UNNAMED * 2)

    def named(_asked):
        if store.blobs.hold([digest], FOREVER):
            store.blobs.put({digest: [content]}, FOREVER)
        return ()

    assert list(store.sweep_unnamed(named)) == []
    assert contents(store, [digest]) == [content]
    clock.advance(UNNAMED * 9)
    assert swept(store, digest) == set()
    assert contents(store, [digest]) == [content]


@pytest.mark.parametrize("ttl", (FOREVER, 500.0))
def test_a_blob_is_held_again_while_it_is_swept(store, clock, ttl):
    """A blob that lost its name long ago still exists for who holds it, and then stays, though a
    sweep has found it unnamed.
    """
    digest, content = blob()
    store.blobs.put({digest: [content]}, FOREVER)
    clock.advance(UNNAMED * 20)

    def named(_asked):
        assert store.blobs.hold([digest], ttl) == set()
        return ()

    assert list(store.sweep_unnamed(named)) == []
    assert contents(store, [digest]) == [content]
    assert store.blobs.hold([digest], 1) == set()
    clock.advance(UNNAMED * 20)
    assert swept(store, digest) == set()
    assert contents(store, [digest]) == [content]


def test_names_that_cannot_be_read_end_the_sweep(store, clock):
    """If the names can't be read, nothing is deleted that they might name."""
    digest, content = blob()
    store.blobs.put({digest: [content]}, FOREVER)
    clock.advance(UNNAMED * 2)

    def named(_asked):
        raise StoreUnavailable("no answer")

    with pytest.raises(StoreUnavailable):
        list(store.sweep_unnamed(named))
    assert contents(store, [digest]) == [content]


def test_who_can_keep_named_blobs(store, tmp_path):
    """Stores without holds say that they need names, by a protocol; others don't."""
    assert isinstance(store, KeepsNamed)
    for url in ("memory://", f"sqlite://{tmp_path}/x.db"):
        assert not isinstance(open_store(url), KeepsNamed)
    assert open_store(f"file://{tmp_path}/a?unnamed=5").blobs._unnamed == 5


# -- all interleavings: savers, removers, and sweepers take turns before each access to the store

CONTENTS = [bytes([65 + number]) * 40 for number in range(4)]
BLOBS = {digest_of([content]): content for content in CONTENTS}

groups = st.sets(st.sampled_from(sorted(BLOBS)), min_size=1)


@dataclass
class Actor:
    """A saver, remover, or sweeper that stops before each access to the store."""

    run: greenlet.greenlet
    held: float | None = None  # when a saver last held what it is about to name
    log: list[str] = field(default_factory=list)


class Interleaved:
    """Let actors take turns in one store."""

    def __init__(self, make):
        self.hub = greenlet.getcurrent()
        self.clock = FakeClock()
        self.stack = ExitStack()
        self.store = self.stack.enter_context(make(self.clock))
        self.records = {}
        self.actors = []

    def pause(self):
        """Let others run, if this is an actor."""
        current = greenlet.getcurrent()
        if current is not self.hub:
            current.parent.switch()

    def start(self, function, *args):
        actor = Actor(greenlet.greenlet(lambda: function(actor, *args)))
        self.actors.append(actor)

    def step(self, actor):
        actor.run.switch()
        if actor.run.dead:
            self.actors.remove(actor)

    # -- what actors do

    def save(self, actor, name, digests):
        rest = set(digests)
        while rest:
            actor.held = self.clock()
            rest = self.store.blobs.hold(digests, FOREVER)
            self.store.blobs.put({digest: [BLOBS[digest]] for digest in rest}, FOREVER)
        self.pause()
        self.records[name] = frozenset(digests)
        actor.held = None

    def remove(self, _actor, name):
        self.pause()
        self.records.pop(name, None)

    def use(self, _actor, digests):
        """Hold blobs for a while, as a task does that gets them."""
        self.store.blobs.hold(digests, 5.0)

    def sweep(self, _actor):
        def named(asked):
            found = set()
            for name in list(self.records):  # read one by one, as from a store
                self.pause()
                found |= self.records.get(name, frozenset())
            return found & set(asked)

        list(self.store.sweep_unnamed(named))


@contextmanager
def interleaved_file(clock):
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder, file_store(clock, folder) as store:
        yield store


@contextmanager
def interleaved_s3(clock):
    with s3_store(clock, None) as store:
        store.client.sleep = lambda seconds: clock.advance(int(seconds) + 1)
        yield store


def pause_before(world):
    """Make each access of *world*'s store a turn: requests to S3; locks and listings of files."""
    store = world.store
    owner, names = (store.client, ["ask"]) if hasattr(store, "client") else (store.disk, [])
    names = names or ["lock", "files", "write_aside"]
    for name in names:
        original = getattr(owner, name)

        def access(*args, original=original, **options):
            if not locked:
                world.pause()
            return original(*args, **options)

        setattr(owner, name, access)
    locked = []
    if "lock" in names:
        lock = owner.lock

        @contextmanager
        def locking(stripe):
            with lock(stripe):
                locked.append(stripe)
                try:
                    yield
                finally:
                    locked.pop()

        owner.lock = locking


def machine(make, examples):
    class NamedMachine(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.world = Interleaved(make)
            pause_before(self.world)

        @rule(name=st.sampled_from("ab"), digests=groups)
        def save(self, name, digests):
            self.world.start(self.world.save, name, sorted(digests))

        @rule(name=st.sampled_from("ab"))
        def remove(self, name):
            self.world.start(self.world.remove, name)

        @rule(digests=groups)
        def use(self, digests):
            self.world.start(self.world.use, sorted(digests))

        @rule()
        def sweep(self):
            self.world.start(self.world.sweep)

        @precondition(lambda self: self.world.actors)
        @rule(data=st.data(), steps=st.integers(1, 8))
        def step(self, data, steps):
            actor = data.draw(st.sampled_from(range(len(self.world.actors))))
            for _ in range(steps):
                if actor < len(self.world.actors):
                    self.world.step(self.world.actors[actor])

        @precondition(lambda self: self.world.actors)
        @rule(data=st.data())
        def kill(self, data):
            """Nothing of an actor runs any more, not even its cleanup."""
            actor = data.draw(st.sampled_from(range(len(self.world.actors))))
            killed.append(self.world.actors.pop(actor))

        @rule(seconds=st.sampled_from([1, 30, 60, 150, 400]))
        def pass_time(self, seconds):
            """A saver names what it holds in time."""
            held = [actor.held for actor in self.world.actors if actor.held is not None]
            if all(self.world.clock() + seconds < since + UNNAMED - 10 for since in held):
                self.world.clock.advance(seconds)

        @invariant()
        def nothing_named_is_missing(self):
            for digests in self.world.records.values():
                wanted = [BLOBS[digest] for digest in sorted(digests)]
                assert contents(self.world.store, sorted(digests)) == wanted

        def teardown(self):
            while self.world.actors:
                self.world.step(self.world.actors[0])
                self.nothing_named_is_missing()
            self.world.clock.advance(UNNAMED * 2)
            self.world.start(self.world.sweep)
            while self.world.actors:
                self.world.step(self.world.actors[0])
            self.nothing_named_is_missing()
            named = {d for digests in self.world.records.values() for d in digests}
            assert {info.digest for info in self.world.store.blobs.scan()} == named
            self.world.stack.close()

    killed = []  # greenlets that lose their last reference run their cleanup
    NamedMachine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return NamedMachine.TestCase


TestInterleavedFile = machine(interleaved_file, 25)
TestInterleavedS3 = machine(interleaved_s3, 6)
