"""A conformance suite: tests that every store must pass.

::

    class TestMyStore(StoreSuite):
        @pytest.fixture
        def store(self):
            return MyStore(...)

Tests use unique names and contents, so they can share a store. For a store with an injected
clock, override the ``tick`` fixture to advance it; otherwise time passes by itself.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from offload.digest import Digest, digest_of
from offload.errors import BlobMissing, IntegrityError
from offload.stores import BlobInfo, Parts, Store
from offload.stores.capabilities import (
    BlobInspection,
    DefersReleases,
    HoldsAndPuts,
    HoldTracking,
    TagsWrites,
    Wanted,
    hold_tracking_of,
)
from offload.stores.checks import MAX_POINTER
from offload.stores.protocols import FOREVER

HOUR = 3600.0
SHORT = 0.05  # seconds; the life of what a test lets expire
PATIENCE = 20.0  # seconds to wait until a condition is true
SOON = 0.5  # seconds; the life of what must outlast the next call, then expire
LIMIT = 16 << 20  # bytes, more than any blob here has
BAD_NAMES = ("", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a b", "é", "a\n", "a*b", "x" * 201)
GOOD_NAMES = (
    "a",
    "A",
    "0",
    "a.b",
    "..a",
    "a-_b",
    "a:b@c+d=e",
    "a/b/c",
    "x" * 200,
    "/".join("y" * 100),
)


class FakeClock:
    """A clock that stands still until it is advanced."""

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float = 1.0) -> None:
        self.now += seconds


_numbers = itertools.count()


def unique(begin: str = "t") -> str:
    """Return a name that no other test uses."""
    return f"{begin}/{os.getpid()}-{next(_numbers)}-{os.urandom(4).hex()}"


def blob(size: int = 100) -> tuple[Digest, bytes]:
    """Return random content and its digest."""
    content = os.urandom(size)
    return digest_of([content]), content


def blobs(number: int, size: int = 100) -> dict[Digest, list[bytes]]:
    """Return random contents by digest, in the form that `BlobStore.put` takes."""
    return {digest: [content] for digest, content in (blob(size) for _ in range(number))}


def contents(store: Store, digests: Iterable[Digest], limit: int = LIMIT) -> list[bytes]:
    return [bytes(content) for content in store.blobs.get(list(digests), limit)]


def scanned(store: Store) -> Mapping[Digest, BlobInfo]:
    return {info.digest: info for info in store.blobs.scan()}


def swept(store: Store, *, dry_run: bool = False) -> int:
    """Sweep *store*; return how many items it deletes, or would delete."""
    return sum(1 for _ in store.sweep(dry_run=dry_run))


def _inspection(store: Store) -> BlobInspection:
    if not isinstance(store.blobs, BlobInspection):
        pytest.skip("its blobs can't be inspected")
    return store.blobs


def _holding(store: Store) -> HoldsAndPuts:
    if not isinstance(store.blobs, HoldsAndPuts):
        pytest.skip("it can't hold and store blobs at once")
    return store.blobs


def _deferring(store: Store) -> DefersReleases:
    if not isinstance(store.blobs, DefersReleases):
        pytest.skip("it can't release along with other requests")
    return store.blobs


def _tracking(store: Store) -> HoldTracking:
    account = hold_tracking_of(store)
    if account is None:
        pytest.skip("it doesn't track holds")
    return account


class BlobTests:
    """Tests of blobs.

    Attributes:
        many: number of blobs in the largest call; lower it if each blob takes a request.
    """

    many: ClassVar[int] = 1500

    @pytest.mark.parametrize("size", (0, 1, 5999, 6001, 70_000, (4 << 20) + 1))
    def test_what_was_put_is_got(self, store: Store, size: int) -> None:
        """A blob comes back with exactly its bytes, whatever its size."""
        digest, content = blob(size)
        store.blobs.put({digest: [content]}, HOUR)
        assert contents(store, [digest]) == [content]

    def test_parts_are_stored_one_after_another(self, store: Store) -> None:
        """A blob may be passed as several buffers of any kind; they are concatenated."""
        digest, content = blob(20_000)
        view = memoryview(bytearray(content))
        parts: Parts = [content[:1], b"", view[1:8000], bytearray(content[8000:8001]), view[8001:]]
        store.blobs.put({digest: parts}, HOUR)
        assert contents(store, [digest]) == [content]

    def test_a_buffer_may_change_after_put(self, store: Store) -> None:
        """The caller may change its buffers after `put`, because the store has copied them."""
        digest, content = blob(10_000)
        buffer = bytearray(content)
        store.blobs.put({digest: [memoryview(buffer)]}, HOUR)
        buffer[:] = bytes(10_000)
        assert contents(store, [digest]) == [content]

    def test_get_keeps_the_order(self, store: Store) -> None:
        """`get` yields blobs in the requested order, and one requested twice twice."""
        many = blobs(self.many // 5)
        store.blobs.put(many, HOUR)
        order = [*reversed(many), next(iter(many))]
        assert contents(store, order) == [many[digest][0] for digest in order]

    def test_get_may_be_left_early(self, store: Store) -> None:
        """After a reader has stopped early, the store still works."""
        many = blobs(8, 3 << 20)
        store.blobs.put(many, HOUR)
        for _ in range(3):
            reading = store.blobs.get(list(many), 3 << 20)
            assert bytes(next(iter(reading))) == next(iter(many.values()))[0]
            del reading
        assert contents(store, many) == [content for (content,) in many.values()]

    def test_nothing_is_no_error(self, store: Store) -> None:
        """Calls without digests do nothing."""
        store.blobs.put({}, HOUR)
        store.blobs.delete([])
        assert store.blobs.hold([], HOUR) == set()
        assert contents(store, []) == []

    def test_missing_names_what_is_not_there(self, store: Store) -> None:
        """`hold` returns exactly the missing blobs, for any number of digests."""
        here, gone = blobs(self.many, 1), blobs(self.many, 8)
        store.blobs.put(dict(here), HOUR)
        asked = [*here, *gone, *here, *gone]
        assert store.blobs.hold(asked, HOUR) == set(gone) - set(here)

    def test_one_that_is_not_there_is_missed(self, store: Store) -> None:
        """`get` raises BlobMissing with the digest and the store."""
        (here, _), (gone, _) = blob(), blob()
        store.blobs.put({here: [b"x"]}, HOUR)
        with pytest.raises(BlobMissing) as caught:
            contents(store, [here, gone])
        assert caught.value.digest == gone
        assert caught.value.store == store.url
        assert gone in str(caught.value)
        assert store.url in str(caught.value)

    def test_what_is_there_stays_as_it_is(self, store: Store) -> None:
        """Storing a digest again doesn't change its content."""
        digest, content = blob()
        store.blobs.put({digest: [content]}, HOUR)
        store.blobs.put({digest: [b"something else"]}, HOUR)
        assert contents(store, [digest]) == [content]

    @pytest.mark.parametrize("size", (0, 10, 100_000))
    def test_the_limit_is_kept(self, store: Store, size: int) -> None:
        """A blob of the limit's size is returned; a larger one raises IntegrityError."""
        digest, content = blob(size)
        store.blobs.put({digest: [content]}, HOUR)
        assert contents(store, [digest], size) == [content]
        if size:
            for limit in (size - 1, 0):
                with pytest.raises(IntegrityError) as caught:
                    contents(store, [digest], limit)
                assert caught.value.digest == digest

    def test_deleted_is_gone(self, store: Store) -> None:
        """Every call reports a deleted blob as missing; deleting it again is no error."""
        many = blobs(3)
        first, *rest = many
        store.blobs.put(many, HOUR)
        store.blobs.delete([first])
        store.blobs.delete([first])
        assert store.blobs.hold(list(many), HOUR) == {first}
        assert first not in scanned(store)
        with pytest.raises(BlobMissing):
            contents(store, [first])
        assert contents(store, rest) == [many[digest][0] for digest in rest]

    def test_scan_tells_size_and_life(self, store: Store) -> None:
        """`scan` yields every blob once, with its size and remaining life."""
        many = {**blobs(30, 10), **blobs(30, 5000)}
        store.blobs.put(many, HOUR)
        found = [info for info in store.blobs.scan() if info.digest in many]
        assert sorted(info.digest for info in found) == sorted(many)
        for info in found:
            assert info.size == len(many[info.digest][0])
            assert HOUR - 60 < info.ttl <= HOUR + 60.1

    @pytest.mark.parametrize("size", (0, 1, 5000))
    def test_a_look_tells_how_blobs_begin(self, store: Store, size: int) -> None:
        """`peek` returns each blob's size, remaining life, and first bytes."""
        blobs_ = _inspection(store)
        here, gone = {**blobs(3, 2000), **blobs(1, 0)}, blobs(1)
        store.blobs.put(here, HOUR)
        *found, missing = blobs_.peek([*here, *gone], size)
        assert missing is None
        for (content,), seen in zip(here.values(), found, strict=True):
            assert seen is not None
            assert (seen.size, seen.prefix) == (len(content), content[:size])
            assert HOUR - 60 < seen.ttl <= HOUR + 60.1

    def test_digests_are_found_by_their_begin(self, store: Store) -> None:
        """`find` returns the digests with a prefix."""
        blobs_ = _inspection(store)
        here, gone = blobs(3, 2000), next(iter(blobs(1)))
        store.blobs.put(here, HOUR)
        for digest in here:
            assert [*blobs_.find(digest[:20])] == [digest]
            assert digest in [*blobs_.find(digest[:4])]
        assert [*blobs_.find(gone)] == []

    @pytest.mark.parametrize("ttl", (0, -1, float("nan")))
    def test_a_life_is_positive(self, store: Store, ttl: float) -> None:
        """A time to live that isn't positive raises ValueError and stores nothing."""
        digest, content = blob()
        with pytest.raises(ValueError, match="time to live"):
            store.blobs.put({digest: [content]}, ttl)
        with pytest.raises(ValueError, match="time to live"):
            store.blobs.hold([digest], ttl)
        assert store.blobs.hold([digest], HOUR) == {digest}

    def test_a_very_long_life_is_no_error(self, store: Store) -> None:
        """A time to live may be any positive number, including infinity."""
        digest, content = blob()
        store.blobs.put({digest: [content]}, float("inf"))
        assert store.blobs.hold([digest], 1e30) == set()
        assert scanned(store)[digest].ttl > 365 * 86400


class HoldTests:
    """Tests of holds."""

    GRACE = 60.0
    SLACK = 130.0  # seconds that stores may add to a life, as clocks differ and the test takes time

    def test_a_hold_names_its_holder(self, store: Store) -> None:
        """`holders` returns each holder and its remaining time, if holds are tracked."""
        (digest, content), (other, _) = blob(), blob()
        assert store.blobs.hold([digest], HOUR, "task:1") == {digest}
        store.blobs.put({digest: [content]}, HOUR)
        assert store.blobs.hold([digest, other], HOUR / 2, "result:ä") == {other}
        found = store.blobs.holders(digest)
        if not store.blobs.tracks_holds:
            assert found == {}
            return
        assert sorted(found) == ["result:ä", "task:1"]
        assert HOUR - 60 < found["task:1"] <= HOUR
        assert HOUR / 2 - 60 < found["result:ä"] <= HOUR / 2
        assert list(store.blobs.holders(other)) == ["result:ä"]
        assert store.blobs.holders(blob()[0]) == {}

    def test_a_hold_is_the_longest_asked_for(self, store: Store) -> None:
        """Holding again for less time changes nothing."""
        digest, content = blob()
        store.blobs.put({digest: [content]}, HOUR)
        for ttl in (HOUR, 2 * HOUR, 1):
            store.blobs.hold([digest], ttl, "task:1")
        assert scanned(store)[digest].ttl > 2 * HOUR - 60
        if store.blobs.tracks_holds:
            assert store.blobs.holders(digest)["task:1"] > 2 * HOUR - 60

    def test_the_last_release_ends_a_life(self, store: Store) -> None:
        """After the last release, a blob expires at the end of the grace period."""
        digest, content = blob()
        for holder in ("task:1", "task:2"):
            store.blobs.hold([digest], HOUR, holder)
        store.blobs.put({digest: [content]}, HOUR)
        store.blobs.release([digest], "task:1", self.GRACE)
        assert scanned(store)[digest].ttl > HOUR - 60
        store.blobs.release([digest], "task:2", self.GRACE)
        assert contents(store, [digest]) == [content]
        left = scanned(store)[digest].ttl
        if store.blobs.tracks_holds:
            assert self.GRACE - 10 < left <= self.GRACE + 1
            assert store.blobs.holders(digest) == {}
        else:
            assert left > HOUR - 60

    def test_a_release_leaves_what_others_hold(self, store: Store) -> None:
        """A released blob expires with its last remaining hold."""
        digest, content = blob()
        store.blobs.hold([digest], HOUR, "put")
        store.blobs.hold([digest], 4 * HOUR, "task:1")
        store.blobs.put({digest: [content]}, 4 * HOUR)
        store.blobs.release([digest], "task:1", self.GRACE)
        left = scanned(store)[digest].ttl
        assert left > HOUR - 60
        if store.blobs.tracks_holds:
            assert left <= HOUR + 1

    def test_a_grace_prolongs_nothing(self, store: Store) -> None:
        """A release never extends a blob's life."""
        digest, content = blob()
        store.blobs.hold([digest], HOUR, "task:1")
        store.blobs.put({digest: [content]}, HOUR)
        store.blobs.release([digest], "task:1", 10 * HOUR)
        assert scanned(store)[digest].ttl <= 2 * HOUR + self.SLACK

    def test_what_nobody_holds_is_not_released(self, store: Store) -> None:
        """A release without a hold, or a second release, changes nothing."""
        digest, content = blob()
        store.blobs.put({digest: [content]}, HOUR)
        store.blobs.release([digest], "task:1", 1)
        assert scanned(store)[digest].ttl > HOUR - 60
        store.blobs.hold([digest], HOUR, "task:1")
        store.blobs.release([digest], "task:1", self.GRACE)
        before = scanned(store)[digest].ttl
        store.blobs.release([digest], "task:1", 1)
        store.blobs.release([blob()[0]], "task:1", 1)
        store.blobs.release([], "task:1", 1)
        assert scanned(store)[digest].ttl > before - 10

    def test_a_hold_of_what_is_not_there_counts(self, store: Store) -> None:
        """A hold on a missing blob counts once the blob is stored."""
        digest, content = blob()
        store.blobs.hold([digest], 2 * HOUR, "task:1")
        store.blobs.hold([digest], HOUR, "task:2")
        store.blobs.put({digest: [content]}, 2 * HOUR)
        store.blobs.release([digest], "task:2", 1)
        assert scanned(store)[digest].ttl > 2 * HOUR - 60

    def test_blobs_are_held_and_stored_at_once(self, store: Store) -> None:
        """`hold_and_put` holds all, stores those missing that have a content, and returns them."""
        (here, old), (new, content), (known, kept), (gone, _) = (blob(2000) for _ in range(4))
        store.blobs.put({here: [old], known: [kept]}, 60.0)
        wanted = {
            here: Wanted(HOUR, [old], 2000),
            new: Wanted(2 * HOUR, [content[:9], content[9:]], 2000),
            known: Wanted(HOUR),
            gone: Wanted(HOUR),
        }
        assert _holding(store).hold_and_put(wanted, "task:1") == {new, gone}
        assert contents(store, [here, new, known]) == [old, content, kept]
        lives = scanned(store)
        assert min(lives[here].ttl, lives[known].ttl) > HOUR - 60
        assert lives[new].ttl > 2 * HOUR - 60
        assert gone not in lives
        if store.blobs.tracks_holds:
            assert all("task:1" in store.blobs.holders(each) for each in wanted)
            store.blobs.release([new], "task:1", self.GRACE)
            assert scanned(store)[new].ttl <= self.GRACE + 1

    def test_holding_and_storing_shortens_nothing(self, store: Store) -> None:
        """`hold_and_put` shortens no life, and doesn't replace content."""
        digest, content = blob()
        store.blobs.put({digest: [content]}, 2 * HOUR)
        wanted = {digest: Wanted(60.0, [b"other"], 5)}
        assert _holding(store).hold_and_put(wanted, "task:1") == set()
        assert contents(store, [digest]) == [content]
        assert scanned(store)[digest].ttl > 2 * HOUR - 60
        assert _holding(store).hold_and_put({}, "task:1") == set()

    def test_a_release_may_wait(self, store: Store) -> None:
        """`release_later` releases along with a later request, or by `release_deferred`."""
        deferring, (digest, content) = _deferring(store), blob()
        store.blobs.put({digest: [content]}, HOUR)
        store.blobs.hold([digest], 2 * HOUR, "task:1")
        if deferring.release_later([digest], "task:1", self.GRACE):  # or it can't now
            store.blobs.hold([digest], 60.0, "task:2")
            assert deferring.release_deferred() == 0
            assert set(store.blobs.holders(digest)) == {"task:2"}
        assert deferring.release_deferred() == 0

    def test_a_release_that_waits_ends_no_later_hold(self, store: Store) -> None:
        """A hold taken after `release_later`, as for a redelivered message, stays."""
        deferring, (digest, content) = _deferring(store), blob()
        store.blobs.put({digest: [content]}, HOUR)
        store.blobs.hold([digest], HOUR, "task:1")
        store.blobs.release([digest], "task:2", self.GRACE)  # loads the script into the server
        if deferring.release_later([digest], "task:1", self.GRACE):
            store.blobs.hold([digest], 2 * HOUR, "task:1")
            assert deferring.release_deferred() == 0
            assert set(store.blobs.holders(digest)) == {"task:1"}
            assert scanned(store)[digest].ttl > 2 * HOUR - 60

    @pytest.mark.parametrize("holder", ("", "@s3", "x" * 301))
    def test_other_holders_are_refused(self, store: Store, holder: str) -> None:
        """An invalid holder raises ValueError."""
        digest, _ = blob()
        with pytest.raises(ValueError, match="a holder is"):
            store.blobs.hold([digest], HOUR, holder)
        with pytest.raises(ValueError, match="a holder is"):
            store.blobs.release([digest], holder, HOUR)

    def test_holders_are_counted(self, store: Store) -> None:
        """Stores that track holds count each holder once, until its release."""
        account = _tracking(store)
        (one, two), gone = blobs(2, 2000).items(), next(iter(blobs(1)))
        store.blobs.hold([one[0], two[0]], HOUR, "task:1")
        store.blobs.put(dict((one, two)), HOUR)
        for holder in ("task:1", "task:2", "put"):
            store.blobs.hold([one[0]], HOUR, holder)
        assert account.count_holders([one[0], gone, two[0]]) == [3, 0, 1]
        store.blobs.release([one[0]], "task:2", HOUR)
        assert account.count_holders([one[0]]) == [2]

    def test_the_last_holds_are_told(self, store: Store) -> None:
        """Stores that track holds return the few holders of a blob with the most time left."""
        account = _tracking(store)
        (one, content), gone = next(iter(blobs(1, 2000).items())), next(iter(blobs(1)))
        for number in range(1, 8):
            store.blobs.hold([one], number * HOUR, f"task:{number}")
        store.blobs.put({one: content}, HOUR)
        store.blobs.release([one], "task:6", HOUR)
        last, nothing = account.longest_holds([one, gone])
        assert list(last) == ["task:7", "task:5", "task:4", "task:3", "task:2"]
        assert all(abs(left - int(name[-1]) * HOUR) < 60 for name, left in last.items())
        assert not nothing

    def test_what_somebody_holds_is_found(self, store: Store) -> None:
        """Stores that track holds find blobs by a holder, or by its id, also among many holders."""
        account = _tracking(store)
        many = blobs(4, 2000)
        one, two, crowd, gone = many
        store.blobs.put(many, HOUR)
        for digest, holder in (
            (one, "task:id*1+ab12"),
            (two, "result:id*1"),
            (two, "task:id*12"),
            (gone, "task:id*1"),
            (crowd, "pin:model+07"),
        ):
            store.blobs.hold([digest], HOUR, holder)
        for number in range(1500):
            store.blobs.hold([crowd], HOUR, f"task:{number}")
        store.blobs.release([gone], "task:id*1", HOUR)
        asked = [one, two, crowd, gone, next(iter(blobs(1)))]
        assert account.held_by(asked, "id*1") == {one, two}
        assert account.held_by(asked, "task:id*1") == {one}
        assert account.held_by(asked, "result:id*1") == {two}
        assert account.held_by(asked, "model") == {crowd}
        assert account.held_by(asked, "1499") == {crowd}
        for name in ("id*", "id", "d*1", "id*1+", "other"):
            assert account.held_by(asked, name) == set()

    def test_what_nobody_holds_is_dropped(self, store: Store) -> None:
        """Stores that track holds delete at once what nobody holds or has asked for."""
        account = _tracking(store)
        many = blobs(3, 2000)
        free, held, asked = many
        store.blobs.hold([held], HOUR, "task:1")
        store.blobs.put({free: many[free], held: many[held]}, HOUR)
        store.blobs.hold([asked], HOUR, "task:2")
        assert account.delete_unheld([free, held, asked]) == {held, asked}
        assert contents(store, [held]) == many[held]
        with pytest.raises(BlobMissing):
            contents(store, [free])
        assert free not in scanned(store)
        assert _inspection(store).peek([free], 1) == [None]
        assert store.blobs.hold([free, held], HOUR, "task:3") == {free}
        store.blobs.put({free: many[free]}, HOUR)
        assert contents(store, [free]) == many[free]

    def test_long_holds_are_listed(self, store: Store) -> None:
        """Stores that track holds list those that last longer than a given time."""
        account = _tracking(store)
        one, two = many = blobs(2)
        store.blobs.put(many, HOUR)
        store.blobs.hold([one, two], FOREVER, "catalog:1")
        store.blobs.hold([one], HOUR, "task:1")
        store.blobs.hold([two], HOUR * 30, "task:2")

        def listed(least: float) -> set[tuple[Digest, str]]:
            return {(d, holder) for d, holder, _ in account.long_holds(least) if d in many}

        assert listed(HOUR * 100) == {(one, "catalog:1"), (two, "catalog:1")}
        assert listed(HOUR * 20) == {(one, "catalog:1"), (two, "catalog:1"), (two, "task:2")}
        store.blobs.release([one, two], "catalog:1", 1)
        assert listed(HOUR * 20) == {(two, "task:2")}

    def test_a_dry_sweep_removes_nothing(self, store: Store) -> None:
        """A sweep neither reports nor deletes live blobs; a dry one deletes nothing."""
        many = blobs(3)
        store.blobs.put(many, HOUR)
        for dry_run in (True, False):
            assert not {each.name for each in store.sweep(dry_run=dry_run)} & set(many)
        assert store.blobs.hold(list(many), HOUR) == set()


class ExpiryTests:
    """Tests of expiry: blobs and leases expire, but never early."""

    @pytest.fixture
    def tick(self) -> Callable[[], None]:
        """Return a function that lets a little of the store's time pass."""
        return lambda: time.sleep(0.005)

    def test_a_blob_ends_by_itself(self, store: Store, tick: Callable[[], None]) -> None:
        """Every call reports an expired blob as missing, and it can be stored again."""
        digest, content = blob()
        store.blobs.put({digest: [content]}, SHORT)
        wait_for_end(store, digest, tick)
        assert store.blobs.hold([digest], HOUR) == {digest}
        with pytest.raises(BlobMissing):
            contents(store, [digest])
        store.blobs.put({digest: [b"again"]}, HOUR)
        assert contents(store, [digest]) == [b"again"]
        assert store.blobs.hold([digest], HOUR) == set()

    @pytest.mark.parametrize("how", ("put", "missing"))
    def test_a_life_is_prolonged(self, store: Store, tick: Callable[[], None], how: str) -> None:
        """Storing or holding a blob extends its life."""
        kept, ending = blobs(1), blobs(1)
        store.blobs.put({**kept, **ending}, SOON)
        if how == "put":
            store.blobs.put(kept, HOUR)
        else:
            assert store.blobs.hold(list(kept), HOUR) == set()
        wait_for_end(store, next(iter(ending)), tick)
        assert store.blobs.hold(list(kept), HOUR) == set()
        assert scanned(store)[next(iter(kept))].ttl > HOUR - 60

    @pytest.mark.parametrize("how", ("put", "missing"))
    def test_a_life_is_never_shortened(
        self, store: Store, tick: Callable[[], None], how: str
    ) -> None:
        """Storing or holding a blob for less time doesn't shorten its life."""
        kept, ending = blobs(1), blobs(1)
        store.blobs.put(kept, HOUR)
        if how == "put":
            store.blobs.put({**kept, **ending}, SHORT)
        else:
            store.blobs.put(ending, SHORT)
            assert store.blobs.hold(list(kept), SHORT) == set()
        wait_for_end(store, next(iter(ending)), tick)
        assert scanned(store)[next(iter(kept))].ttl > HOUR - 60
        assert len(contents(store, kept)) == 1

    def test_a_lease_ends_by_itself(self, store: Store, tick: Callable[[], None]) -> None:
        """Another owner can take an expired lease, with a greater number."""
        name = unique("lease")
        first = store.leases.acquire(name, "one", SHORT)
        assert first is not None
        second = eventually(lambda: store.leases.acquire(name, "two", HOUR), tick)
        assert second > first
        assert not store.leases.renew(name, "one", HOUR)
        assert not store.leases.release(name, "one")
        assert store.leases.acquire(name, "one", HOUR) is None

    def test_a_lease_that_ended_is_taken_anew(self, store: Store, tick: Callable[[], None]) -> None:
        """An owner who takes an expired lease again gets a new number."""
        name = unique("lease")
        first = store.leases.acquire(name, "one", SHORT)
        assert first is not None
        eventually(lambda: not store.leases.renew(name, "one", 0.001), tick)
        second = store.leases.acquire(name, "one", HOUR)
        assert second is not None
        assert second > first

    def test_a_renewed_lease_lives_on(self, store: Store, tick: Callable[[], None]) -> None:
        """A renewed lease excludes others for as long as asked."""
        kept, again, ending = unique("lease"), unique("lease"), unique("lease")
        number = None
        for name in (kept, again, ending):
            number = store.leases.acquire(name, "one", SOON)
        assert store.leases.renew(kept, "one", HOUR)
        assert store.leases.acquire(again, "one", HOUR)
        assert number is not None
        eventually(lambda: store.leases.acquire(ending, "two", HOUR), tick)
        assert store.leases.acquire(kept, "two", HOUR) is None
        assert store.leases.acquire(again, "two", HOUR) is None


class PointerTests:
    """Tests of pointers."""

    def test_a_pointer_is_set_changed_and_unset(self, store: Store) -> None:
        """A pointer changes only if it has the expected value."""
        name, swap, read = unique(), store.pointers.swap, store.pointers.read
        assert read(name) is None
        assert not swap(name, b"never was", b"1")
        assert swap(name, None, b"1")
        assert not swap(name, None, b"2")
        assert not swap(name, b"2", b"3")
        assert read(name) == b"1"
        assert swap(name, b"1", b"2")
        assert not swap(name, b"1", None)
        assert swap(name, b"2", None)
        assert read(name) is None
        assert swap(name, None, None)
        assert name not in set(store.pointers.names())

    def test_a_value_is_any_bytes(self, store: Store) -> None:
        """A value may contain any bytes, up to 64 KiB; an empty one isn't unset."""
        name = unique()
        last: bytes | None = None
        for value in (b"", b"\0", b"a\nb\r\n", bytes(range(256)), b"0", bytes(MAX_POINTER)):
            assert store.pointers.swap(name, last, value)
            assert store.pointers.read(name) == value
            last = value
        with pytest.raises(ValueError, match="at most"):
            store.pointers.swap(name, last, bytes(MAX_POINTER + 1))
        assert store.pointers.read(name) == last

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_other_names_are_refused(self, store: Store, name: str) -> None:
        """An invalid name raises ValueError, for pointers and leases."""
        for call in (
            lambda: store.pointers.read_all([GOOD_NAMES[0], name]),
            lambda: store.pointers.read(name),
            lambda: store.pointers.swap(name, None, b""),
            lambda: store.leases.acquire(name, "me", 1),
            lambda: store.leases.renew(name, "me", 1),
            lambda: store.leases.release(name, "me"),
            lambda: store.leases.read(name),
        ):
            with pytest.raises(ValueError, match="not a name"):
                call()

    def test_names_are_told_apart(self, store: Store) -> None:
        """Every valid name is a pointer of its own, also one that starts with another."""
        for name in GOOD_NAMES:
            store.pointers.swap(name, store.pointers.read(name), name.encode())
        assert [store.pointers.read(name) for name in GOOD_NAMES] == [
            name.encode() for name in GOOD_NAMES
        ]
        asked = [*GOOD_NAMES, unique(), *GOOD_NAMES]
        expected = [name.encode() if name in GOOD_NAMES else None for name in asked]
        assert store.pointers.read_all(asked) == expected
        assert store.pointers.read_all([]) == []
        assert set(GOOD_NAMES) <= set(store.pointers.names())
        for name in GOOD_NAMES:
            assert store.pointers.swap(name, name.encode(), None)

    def test_names_are_listed_by_how_they_begin(self, store: Store) -> None:
        """`names` yields each set name with a prefix once; no character of it is special."""
        base = unique()
        names = {f"{base}/{end}" for end in ("a", "ab", "ab/c", "b", "ABC")}
        for name in names:
            assert store.pointers.swap(name, None, b"1")
        assert sorted(store.pointers.names(base)) == sorted(names)
        assert set(store.pointers.names(f"{base}/ab")) == {f"{base}/ab", f"{base}/ab/c"}
        for pattern in ("*", "?", f"{base}/[ab]", f"{base}/a*", "\\"):
            assert list(store.pointers.names(pattern)) == []

    def test_a_tag_tells_one_write_from_another(self, store: Store) -> None:
        """Each write of a pointer has a new tag, even if it restores an earlier value."""
        pointers, name = store.pointers, unique()
        if not isinstance(pointers, TagsWrites):
            pytest.skip("its list of pointers has no tags")
        tags: set[str] = set()
        for before, after in ((None, b"1"), (b"1", b"2"), (b"2", b"1"), (b"1", None), (None, b"1")):
            assert store.pointers.swap(name, before, after)
            listed = dict(pointers.tagged_names(name))
            assert list(listed) == ([] if after is None else [name])
            assert tags.isdisjoint(listed.values())
            tags.update(listed.values())
        assert dict(pointers.tagged_names(name)) == listed


class LeaseTests:
    """Tests of leases."""

    def test_one_owner_at_a_time(self, store: Store) -> None:
        """Nobody else can take, renew, or release an owner's lease."""
        name = unique("lease")
        number = store.leases.acquire(name, "one", HOUR)
        assert number is not None
        assert store.leases.acquire(name, "two", HOUR) is None
        assert not store.leases.renew(name, "two", HOUR)
        assert not store.leases.release(name, "two")
        assert store.leases.acquire(name, "one", HOUR) == number
        assert store.leases.renew(name, "one", HOUR)

    def test_a_released_lease_is_free(self, store: Store) -> None:
        """Anyone can take a released lease, each time with a greater number."""
        name = unique("lease")
        last = 0
        for owner in ("one", "two", "two", "é \0\n", "x" * 200):
            number = store.leases.acquire(name, owner, HOUR)
            assert number is not None
            assert number > last
            last = number
            assert store.leases.release(name, owner)
            assert not store.leases.release(name, owner)
            assert not store.leases.renew(name, owner, HOUR)

    def test_a_lease_can_be_read(self, store: Store) -> None:
        """`read` returns owner, fence, and remaining time while somebody has the lease."""
        name = unique("lease")
        assert store.leases.read(name) is None
        fence = store.leases.acquire(name, "é one", HOUR)
        for longest in (HOUR, 2 * HOUR):
            lease = store.leases.read(name)
            assert lease is not None
            assert (lease.owner, lease.fence) == ("é one", fence)
            assert longest - 60 < lease.ttl < longest + 60
            assert store.leases.renew(name, "é one", 2 * HOUR)
        assert store.leases.release(name, "é one")
        assert store.leases.read(name) is None

    def test_leases_are_listed(self, store: Store) -> None:
        """`names` yields each lease that somebody has and whose name starts with the prefix."""
        base = unique("lease")
        names = {f"{base}/{end}" for end in ("a", "ab", "ab/c", "b", "ABC", "x:y@z+1=2")}
        for name in names:
            assert store.leases.acquire(name, "me", HOUR)
        assert sorted(store.leases.names(base)) == sorted(names)
        assert set(store.leases.names(f"{base}/ab")) == {f"{base}/ab", f"{base}/ab/c"}
        for pattern in ("*", "?", f"{base}/[ab]", f"{base}/a*", "\\"):
            assert list(store.leases.names(pattern)) == []

    def test_names_have_leases_of_their_own(self, store: Store) -> None:
        """Leases, and a pointer of the same name, are independent."""
        one, other = unique("lease"), unique("lease")
        assert store.leases.acquire(one, "me", HOUR)
        assert store.leases.acquire(other, "you", HOUR)
        assert store.pointers.swap(one, None, b"1")
        assert one in set(store.pointers.names())
        assert other not in set(store.pointers.names())

    def test_wrong_arguments_are_refused(self, store: Store) -> None:
        """An empty or too long owner, or a time that isn't positive, raises ValueError."""
        name = unique("lease")
        for owner in ("", "x" * 201):
            with pytest.raises(ValueError, match="owner"):
                store.leases.acquire(name, owner, 1)
        for ttl in (0, -1, float("nan")):
            with pytest.raises(ValueError, match="time to live"):
                store.leases.acquire(name, "me", ttl)
        assert store.leases.acquire(name, "you", HOUR)


class ThreadTests:
    """Tests with several threads of one process.

    Attributes:
        threads: number of threads; lower it if each call takes long.
    """

    threads: ClassVar[int] = 8

    def test_no_swap_is_lost(self, store: Store) -> None:
        """Threads that increment by compare-and-swap lose no step."""
        name = unique()

        def count(_: int) -> None:
            for _ in range(20):
                while True:
                    value = store.pointers.read(name)
                    if store.pointers.swap(name, value, b"%d" % (int(value or 0) + 1)):
                        break

        in_threads(count, self.threads)
        assert store.pointers.read(name) == b"%d" % (20 * self.threads)

    def test_one_thread_has_the_lease(self, store: Store) -> None:
        """Only one thread at a time has the lease, and its numbers increase."""
        name, inside, numbers = unique("lease"), threading.Lock(), list[int]()

        def work(thread: int) -> None:
            for _ in range(5):
                while True:
                    number = store.leases.acquire(name, f"thread {thread}", HOUR)
                    if number is not None:
                        break
                assert inside.acquire(blocking=False)
                numbers.append(number)
                inside.release()
                assert store.leases.release(name, f"thread {thread}")

        in_threads(work, self.threads)
        assert len(numbers) == 5 * self.threads
        assert numbers == sorted(set(numbers))

    def test_the_same_blobs_are_put_at_once(self, store: Store) -> None:
        """Threads that store the same blobs and others at once each read theirs intact."""
        shared = blobs(20, 50_000)

        def work(_: int) -> None:
            own = blobs(20, 2000)
            store.blobs.put({**shared, **own}, HOUR)
            assert store.blobs.hold([*own, *shared], HOUR) == set()
            assert contents(store, own) == [content for (content,) in own.values()]
            assert contents(store, shared) == [content for (content,) in shared.values()]

        in_threads(work, self.threads)


class StoreSuite(BlobTests, HoldTests, ExpiryTests, PointerTests, LeaseTests, ThreadTests):
    """All tests; subclasses provide the fixture ``store`` (and ``tick``)."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("a subclass of StoreSuite provides the fixture 'store'")

    def test_it_has_the_three_parts(self, store: Store) -> None:
        """A store has a URL without credentials, and can be used after it was closed."""
        assert isinstance(store, Store)
        assert "://" in store.url
        assert "@" not in store.url
        digest, content = blob()
        store.blobs.put({digest: [content]}, HOUR)
        store.close()
        store.close()
        assert contents(store, [digest]) == [content]


def eventually(condition: Callable[[], int | None], tick: Callable[[], None]) -> int:
    """Return the first true result of *condition*, letting the store's time pass."""
    deadline = time.monotonic() + PATIENCE
    while True:
        tick()
        if result := condition():
            return result
        assert time.monotonic() < deadline, f"not true within {PATIENCE:g} s"
        time.sleep(0.01)


def wait_for_end(store: Store, digest: Digest, tick: Callable[[], None]) -> None:
    """Wait until the blob has expired, by `scan`, which doesn't extend its life."""
    eventually(lambda: digest not in scanned(store), tick)


def in_threads(work: Callable[[int], None], number: int) -> None:
    with ThreadPoolExecutor(number) as pool:
        for done in [pool.submit(work, thread) for thread in range(number)]:
            done.result()
