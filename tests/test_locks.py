"""`Lock` within one process, on a store in memory whose time the test moves."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from offload import Lock, LockLost, LockNotOwned, StoreUnavailable
from offload.locks import break_lock, list_locks
from offload.stores.memory import MemoryStore
from offload.testing.store import FakeClock
from tests.support.processes import wait_until

NAME = "reports:daily"
DOWN = StoreUnavailable("down")


class Leases:
    """Leases that grant everything and renew as *renewals* say, then always."""

    url = "test://"

    def __init__(self, *renewals):
        self.leases = self
        self.renewals = iter(renewals)
        self.renewed = 0
        self.released = []

    def acquire(self, name, owner, ttl):
        return 7

    def renew(self, name, owner, ttl):
        self.renewed += 1
        answer = next(self.renewals, True)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def release(self, name, owner):
        self.released.append(owner)
        return True


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(clock):
    return MemoryStore("locks", clock=clock)


@pytest.fixture
def make(store, clock):
    """Make locks without a heartbeat that keep the store's time; pauses let it pass."""

    def make(name=NAME, ttl=30.0):
        lock = Lock(store, name, ttl=ttl, heartbeat=False)
        lock._clock = clock
        lock.pauses = []

        def sleep(seconds):
            lock.pauses.append(seconds)
            clock.advance(seconds)

        lock._sleep = sleep
        return lock

    return make


@pytest.fixture
def beating(clock):
    """Make locks whose heartbeat follows real time, and which lose it by the test's clock."""

    def make(leases, ttl):
        lock = Lock(leases, NAME, ttl=ttl)
        lock._clock = clock
        return lock

    return make


@contextmanager
def lost_answers(monkeypatch, leases, method):
    """In this block, *leases* do what is asked, but the answers of *method* are lost."""
    original = getattr(leases, method)

    def lose_answer(*args):
        original(*args)
        raise DOWN

    with monkeypatch.context() as patch:
        patch.setattr(leases, method, lose_answer)
        yield


def heartbeats():
    return [thread for thread in threading.enumerate() if thread.name == f"offload-lock {NAME}"]


# -- acquiring and releasing


def test_one_owner_at_a_time(make):
    """Another owner acquires the lock only after it was released, with a greater fence."""
    one, two = make(), make()
    assert one.acquire()
    assert not two.acquire(blocking=False)
    assert one.locked()
    assert two.locked()
    assert (one.owned(), two.owned()) == (True, False)
    first = one.fence
    one.release()
    assert not one.locked()
    assert two.acquire(blocking=False)
    assert two.fence > first


def test_it_is_not_reentrant(make):
    """The owner itself can't acquire the lock a second time."""
    lock = make()
    assert lock.acquire()
    assert not lock.acquire(blocking=False)
    assert lock.owned()


def test_acquire_waits_as_long_as_asked(make, clock):
    """With a timeout, `acquire` gives up then, and not before."""
    make(ttl=1000).acquire()
    lock, start = make(), clock()
    assert not lock.acquire(timeout=60)
    assert clock() - start == pytest.approx(60)
    assert max(lock.pauses) == 2.0


def test_a_timeout_of_minus_one_is_no_limit(make):
    """A timeout of -1 is none, as in `threading.Lock`, also in a call that doesn't block."""
    make(ttl=30).acquire()
    lock = make()
    assert not lock.acquire(blocking=False, timeout=-1)
    assert lock.pauses == []
    assert not lock.acquire(timeout=-2)
    assert lock.acquire(timeout=-1)
    assert sum(lock.pauses) >= 30


def test_a_lock_is_taken_over_after_its_ttl(make, clock):
    """A lock that nobody renews goes to the next owner after its ttl; the former is refused."""
    former, lock = make(ttl=30), make()
    former.acquire()
    old, start = former.fence, clock()
    assert lock.acquire()
    assert 30 <= clock() - start < 32.1
    assert former.lost
    assert not former.owned()
    with pytest.raises(LockLost, match="lock 'reports:daily' in memory://locks was lost"):
        _ = former.fence
    with pytest.raises(LockLost):
        former.extend()
    with pytest.raises(LockLost):
        former.release()
    former.release()  # the second time
    assert lock.owned()
    assert lock.fence > old


def test_releasing_twice_does_nothing(make):
    """A second release is no error, even if another owner has the lock by then."""
    lock, other = make(), make()
    lock.acquire()
    lock.release()
    other.acquire()
    lock.release()
    assert other.owned()


def test_what_another_owns_is_refused(make):
    """Only the owner can release, extend, or use the fence of a lock."""
    owner, other = make(), make()
    owner.acquire()
    for use in (other.release, other.extend, lambda: other.fence):
        with pytest.raises(LockNotOwned, match="isn't owned by this object"):
            use()
    assert not other.lost
    assert owner.owned()


def test_a_forked_child_owns_nothing(make):
    """A child doesn't own its parent's lock, and can't release it."""
    lock = make()
    lock.acquire()

    def child():
        assert not lock.owned()
        with pytest.raises(LockNotOwned):
            lock.release()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert lock.owned()


def test_extend_sets_the_time_left(make, clock):
    """`extend` keeps the lock for its ttl from now, or for another one from then on."""
    lock, other = make(ttl=30), make()
    lock.acquire()
    clock.advance(20)
    lock.extend()
    clock.advance(20)
    lock.extend(300)
    clock.advance(290)
    lock.extend()
    clock.advance(290)
    assert lock.owned()
    assert not other.acquire(blocking=False)
    clock.advance(20)
    assert lock.lost


def test_a_grant_that_got_lost_is_returned(store, make, monkeypatch):
    """If the answer to `acquire` is lost, the lock isn't blocked for its ttl."""
    with (
        lost_answers(monkeypatch, store.leases, "acquire"),
        pytest.raises(StoreUnavailable),
    ):
        make().acquire()
    assert make().acquire(blocking=False)


@pytest.mark.parametrize("name", ("", "a//b", "../b", "a b", "é", "x" * 196, None, b"a"))
def test_other_names_are_refused(store, name):
    """An invalid name raises ValueError, before anything is stored."""
    with pytest.raises(ValueError, match="not a name") as error:
        Lock(store, name)
    if isinstance(name, str):
        assert f"{name!r}; a lock's name is 1 to 195 characters" in str(error.value)
    with pytest.raises(ValueError, match="not a name"):
        break_lock(store, name)


def test_a_url_is_no_store():
    """A lock needs a store, and an error about a URL says how to open it."""
    with pytest.raises(TypeError, match=r"open_store\(url\)"):
        Lock("redis://user:secret@localhost", NAME)


def test_wrong_arguments_are_refused(store, make):
    """A ttl that isn't positive, and a timeout without blocking, raise ValueError."""
    for ttl in (0, -1, float("nan"), "60", None):
        with pytest.raises(ValueError, match="time to live"):
            Lock(store, NAME, ttl=ttl)
    with pytest.raises(ValueError, match="blocking"):
        make().acquire(blocking=False, timeout=1)


@pytest.mark.parametrize("timeout", (float("nan"), True, "5"))
def test_a_timeout_that_is_no_number_is_refused(make, timeout):
    """A wait for a lock that is taken ends with ValueError, rather than never."""
    make().acquire()
    with pytest.raises(ValueError, match="a timeout is a number"):
        make().acquire(timeout=timeout)
    with pytest.raises(ValueError, match="a timeout is a number"):
        make().wait(timeout)


def test_a_huge_timeout_is_no_limit(make):
    """A lock is acquired, and awaited, with any positive number."""
    for timeout in (float("inf"), 10**400):
        assert make().wait(timeout).released
        lock = make()
        assert lock.acquire(timeout=timeout)
        lock.release()


def test_a_lock_may_live_for_any_positive_time(store, make):
    """A ttl that no float can have is one without end."""
    assert make(ttl=10**400).ttl == make(ttl=1e300).ttl > 99 * 365 * 86400


# -- with


def test_a_block_has_the_lock(make):
    """The lock is held in the block, and released after it, also after an error."""
    lock = make()
    with lock as entered:
        assert entered is lock
        assert lock.owned()
    assert not lock.locked()
    with pytest.raises(ZeroDivisionError), lock:
        _ = 1 / 0
    assert not lock.locked()


def test_a_block_that_lost_the_lock_fails(make, clock):
    """`LockLost` is raised at the end of the block, but never hides the block's own error."""
    lock = make(ttl=30)
    with pytest.raises(LockLost), lock:
        clock.advance(31)
    with pytest.raises(ZeroDivisionError), lock:
        clock.advance(31)
        _ = 1 / 0


# -- the heartbeat


def test_a_heartbeat_keeps_the_lock_until_it_is_released(beating):
    """A thread renews the lock while it is held, and ends with it."""
    leases = Leases()
    with beating(leases, ttl=0.03) as lock:
        wait_until(lambda: leases.renewed > 5, "it is renewed")
        assert not lock.lost
    assert len(leases.released) == 1
    assert heartbeats() == []


def test_a_refused_renewal_loses_the_lock():
    """After the heartbeat was refused, `lost` is true and the next use raises LockLost."""
    lock = Lock(Leases(True, False), NAME, ttl=0.03)
    lock.acquire()
    wait_until(lambda: lock.lost, "the loss is noticed")
    for use in (lock.extend, lambda: lock.fence, lock.release):
        with pytest.raises(LockLost):
            use()
    assert heartbeats() == []


def test_an_outage_is_tolerated_until_the_ttl(beating, clock):
    """A failed renewal is repeated; the lock is lost once all failed for its ttl."""
    leases = Leases(DOWN, True, True, *[DOWN] * 10_000)
    lock = beating(leases, ttl=0.3)
    lock.acquire()
    wait_until(lambda: leases.renewed >= 4, "it is renewed after the failure")
    assert not lock.lost
    clock.advance(0.31)
    wait_until(lambda: lock.lost and not heartbeats(), "the loss is noticed")


@pytest.mark.parametrize("use", ("extend", "release", "__exit__"))
def test_an_outage_past_the_ttl_loses_the_lock(make, clock, store, monkeypatch, use):
    """If the store is still unavailable after the ttl, the next use raises LockLost."""
    lock = make(ttl=30)
    lock.acquire()
    clock.advance(31)
    with lost_answers(monkeypatch, store.leases, "release" if use != "extend" else "renew"):
        with pytest.raises(LockLost) as error:
            getattr(lock, use)(*[None] * 3 if use == "__exit__" else ())
        assert error.value.__cause__ is DOWN
    assert lock.lost == (use == "extend")
    assert not lock.owned()


def test_a_release_that_failed_can_be_repeated(store, monkeypatch):
    """While the store is down, `release` raises; once it is back, another call releases."""
    lock = Lock(store, NAME)
    lock.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(store.leases, "release", lambda *_: (_ for _ in ()).throw(DOWN))
        with pytest.raises(StoreUnavailable):
            lock.release()
    assert heartbeats() == []
    lock.release()
    assert not lock.locked()


def test_a_shorter_ttl_is_renewed_in_time(beating):
    """After `extend` with another ttl, the heartbeat keeps pace with it."""
    leases = Leases()
    with beating(leases, ttl=10_000) as lock:
        lock.extend(0.03)
        wait_until(lambda: leases.renewed > 5, "it is renewed")


def test_any_error_of_a_renewal_is_tolerated(beating):
    """A renewal that fails with an error other than the store's is repeated as well."""
    leases = Leases(RuntimeError("can't start new thread"))
    with beating(leases, ttl=0.3) as lock:
        wait_until(lambda: leases.renewed >= 3, "it is renewed after the failure")
        assert not lock.lost


def test_a_failed_extension_keeps_the_pace(beating):
    """If `extend` with a longer ttl fails, the lock is still renewed in time for its own."""
    leases = Leases(DOWN, DOWN)
    with beating(leases, ttl=0.3) as lock:
        with pytest.raises(StoreUnavailable):
            lock.extend(10_000)
        wait_until(lambda: leases.renewed >= 4, "it is renewed")


def test_a_shorter_ttl_counts_without_an_answer(store, make, clock, monkeypatch):
    """If the answer to `extend` with a shorter ttl is lost, the owner relies on no more."""
    lock = make(ttl=30)
    lock.acquire()
    with (
        lost_answers(monkeypatch, store.leases, "renew"),
        pytest.raises(StoreUnavailable),
    ):
        lock.extend(5)
    clock.advance(6)
    assert not lock.owned()
    assert lock.lost


@pytest.mark.parametrize("runs", (True, False))
def test_an_interrupted_acquire_keeps_nothing(store, monkeypatch, runs):
    """If `acquire` fails while it starts the heartbeat, the lock is free, and nothing renews it."""
    start = threading.Thread.start

    def interrupted(thread):
        if runs:
            start(thread)
        raise KeyboardInterrupt

    lock = Lock(store, NAME, ttl=10_000)  # the heartbeat would renew it later than this test ends
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
    assert not lock.locked()
    wait_until(lambda: not heartbeats(), "the heartbeat ends")


def test_a_release_leaves_the_next_thread_its_lock(store, monkeypatch):
    """A thread that acquires a shared object during another's release owns the lock."""
    lock = Lock(store, NAME)
    lock.acquire()
    release = store.leases.release

    def release_and_acquire(*args):
        answer = release(*args)
        thread = threading.Thread(target=lock.acquire)
        thread.start()
        thread.join()
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(store.leases, "release", release_and_acquire)
        lock.release()
    assert lock.owned()
    lock.release()
    assert not lock.locked()
    assert heartbeats() == []


def test_a_thread_that_lost_a_shared_lock_leaves_it_to_its_successor(store):
    """A thread that lost a shared object's lock can't release what another thread has acquired
    through the object since, however often it tries.
    """
    lock = Lock(store, NAME, heartbeat=False)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(lock.acquire).result()
        break_lock(store, NAME)
        assert lock.acquire(blocking=False)
        assert (other.submit(lock.owned).result(), lock.owned()) == (False, True)
        with pytest.raises(LockLost):
            other.submit(lock.release).result()
        other.submit(lock.release).result()
        assert lock.owned()
        lock.release()
        assert other.submit(lock.acquire).result()
        lock.release()  # by the thread that didn't acquire it
        assert not lock.locked()


# -- waiting


def test_wait_backs_off(make, clock):
    """`wait` asks fewer than 30 times a minute, and says whether the lock was released."""
    make(ttl=1000).acquire()
    lock, start = make(), clock()
    waited = lock.wait(timeout=60)
    assert not waited
    assert clock() - start == pytest.approx(60)
    assert waited.checks < 15  # as documented
    assert lock.pauses[:4] == pytest.approx([0.5, 0.75, 1.125, 1.6875])
    assert max(lock.pauses) == 10.0


def test_wait_takes_its_numbers_in_order(make, clock):
    """`wait` takes what it documents in that order, as well as by name."""
    make(ttl=1000).acquire()
    lock = make()
    assert lock.wait(10, 1, 4, 2).checks == 5
    assert lock.pauses == [1, 2, 4, 3]


@pytest.mark.parametrize(
    "wrong",
    (
        {"factor": 0.5},
        {"factor": float("nan")},
        {"factor": "2"},
        {"initial": 0},
        {"maximum": float("nan")},
    ),
)
def test_wrong_pauses_are_refused(make, wrong):
    """Pauses that would shrink, or that are no times, raise ValueError, also for a free lock,
    rather than asking the store all the time.
    """
    with pytest.raises(ValueError, match=r"factor|time to live"):
        make().wait(**wrong)


def test_wait_ends_with_a_release(make):
    """`wait` returns once nobody has the lock, and doesn't acquire it."""
    owner, lock = make(ttl=5), make()
    assert (lock.wait().released, lock.wait(timeout=0).checks) == (True, 1)
    owner.acquire()
    assert lock.wait()
    assert not lock.locked()


# -- for operators


def test_locks_are_listed_and_broken(store, make):
    """An operator sees who has which locks, and can release them; the owner finds out."""
    lock, other = make(), make("reports:weekly")
    lock.acquire()
    other.acquire()
    listed = dict(list_locks(store))
    assert set(listed) == {NAME, "reports:weekly"}
    assert (listed[NAME].fence, listed[NAME].ttl) == (lock.fence, 30)
    assert set(dict(list_locks(store, "reports:w"))) == {"reports:weekly"}
    assert break_lock(store, NAME).fence == lock.fence
    assert break_lock(store, NAME) is None
    assert not lock.owned()
    assert make().acquire(blocking=False)
    with pytest.raises(LockLost):
        lock.release()
