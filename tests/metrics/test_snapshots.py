"""Snapshots that each process writes add up to the same total at every moment."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections import Counter
from contextlib import suppress
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from offload.errors import StoreUnavailable
from offload.metrics.folding import GRACE, LIFE, SILENT, STRAY
from offload.metrics.snapshots import (
    END,
    NumberedHead,
    PointerHead,
    Snapshot,
    is_fold,
    is_part,
    read_snapshot,
    write_snapshot,
)
from offload.metrics.storage import FileSums, sums_of
from offload.stores.capabilities import SmallFile
from offload.stores.file import FileStore
from offload.stores.memory import MemoryStore
from offload.stores.sums import LABEL, SPANS, CounterBatch

NAME = LABEL.join(("seen", "t", "a"))


class Killed(BaseException):
    """Raised in place of killing the process."""


class Shelf:
    """A shelf in memory with hooks for its calls."""

    url = "shelf://"

    def __init__(self):
        self.time = 1_000_000.0
        self.files = {}
        self.tags = count()
        self.at = lambda call: None
        self.pointers = Noticed(MemoryStore().pointers, self)

    def entries(self):
        self.at("entries")
        return [
            SmallFile(name, len(content), tag, written)
            for name, (content, tag, written) in self.files.items()
        ]

    def read(self, names):
        self.at("read")
        return [self.files[name][0] if name in self.files else None for name in names]

    def write(self, name, content):
        self.at("write")
        self.files[name] = content, str(next(self.tags)), self.time
        self.at("written")

    def remove(self, names):
        for name in names:
            self.at("remove")
            self.files.pop(name, None)

    def now(self):
        return self.time

    sure_time = now

    def named(self, kind):
        return [name for name in self.files if kind(name)]


class Noticed:
    def __init__(self, pointers, shelf):
        self._pointers = pointers
        self._shelf = shelf

    def read(self, name):
        return self._pointers.read(name)

    def swap(self, *arguments):
        self._shelf.at("swap")
        done = self._pointers.swap(*arguments)
        self._shelf.at("swapped")
        return done


@pytest.fixture
def shelf():
    return Shelf()


@pytest.fixture(params=["pointed", "listed"])
def head(request, shelf):
    return PointerHead(shelf.pointers) if request.param == "pointed" else NumberedHead(shelf)


@pytest.fixture
def process(shelf, head):
    """Return another process's counters."""
    return lambda: FileSums(shelf, head, (lambda: shelf.time,))


numbers = count()


def one(amount=1):
    return CounterBatch("p", next(numbers), {NAME: amount}, {NAME: amount})


def seen(tallies):
    """Return the total, which must be equal in all accounts."""
    [found] = {tallies.total().get(NAME, 0), *(_sum(tallies, span) for span in SPANS)}
    return found


def _sum(tallies, span):
    return sum(sum(amounts.values()) for amounts in tallies.series(span).values())


def sweep(tallies):
    return list(tallies.sweep(dry_run=False))


def test_snapshots_of_exited_processes_become_one(shelf, process):
    """Snapshots of exited processes become one; their files are removed later."""
    reader = process()
    for _ in range(10):
        writer = process()
        writer.add(one())
        writer.add(one())
        writer.end()
    assert len(shelf.named(is_part)) == 10
    sweep(reader)
    assert seen(reader) == 20
    shelf.time += GRACE + 1
    process().add(one())
    sweep(reader)
    assert len(shelf.named(is_part)) == 1
    assert not [name for name in shelf.files if name.endswith(END)]
    assert len(shelf.named(is_fold)) == 1
    assert seen(reader) == seen(process()) == 21


def test_a_process_has_one_snapshot_per_hour(shelf, process):
    """A process writes to one file for an hour, then to another."""
    writer = process()
    for _ in range(10):
        writer.add(one())
        shelf.time += LIFE / 10 - 1
    assert len(shelf.named(is_part)) == 1
    shelf.time += LIFE / 2
    writer.add(one())
    assert len(shelf.named(is_part)) == 2
    assert seen(writer) == 11


def test_snapshots_of_killed_processes_are_folded(shelf, process):
    """A snapshot that wasn't written for long is folded like that of an exited process."""
    process().add(one(5))
    shelf.time += SILENT - 1
    sweep(process())
    assert not shelf.named(is_fold)
    shelf.time += 1
    sweep(process())
    assert shelf.named(is_fold)
    shelf.time += STRAY + 1
    sweep(process())
    assert not shelf.named(is_part)
    assert process().total() == {NAME: 5}


def test_a_process_that_slept_starts_another_snapshot(shelf, process):
    """A process that slept starts another snapshot, because its former one may be folded."""
    writer = process()
    writer.add(one(5))
    shelf.time += SILENT
    sweep(process())
    writer.add(one(2))
    assert process().total() == {NAME: 7}


@pytest.mark.parametrize("arrived", (False, True))
@pytest.mark.parametrize("seconds", (1, 30 * 60, 3 * LIFE))
def test_a_batch_without_an_answer_counts_once(shelf, process, arrived, seconds):
    """A batch without an answer counts once when it is repeated, written or not."""
    writer = process()
    writer.add(one(5))

    def fail(call):
        if call == ("written" if arrived else "write"):
            raise StoreUnavailable("away")

    tally = one(2)
    shelf.at = fail
    with pytest.raises(StoreUnavailable):
        writer.add(tally)
    shelf.at = lambda call: None
    if seconds > LIFE and arrived:
        return  # nobody can know any more
    shelf.time += seconds
    sweep(process())
    writer.add(tally)
    writer.add(tally)
    assert process().total() == {NAME: 7}
    sweep(process())
    writer.add(one())
    assert process().total() == {NAME: 8}


class KillAt:
    """Kills the process at a given call."""

    def __init__(self, number):
        self.left = number

    def __call__(self, call):
        self.left -= 1
        if self.left < 0:
            raise Killed


def fill(shelf, process):
    """Create an older fold, snapshots in it, others that aren't, and one being written."""
    for _ in range(3):
        writer = process()
        writer.add(one())
        writer.end()
    sweep(process())
    shelf.time += GRACE + 1
    for _ in range(3):
        writer = process()
        writer.add(one())
        writer.end()
    (going := process()).add(one())
    return going


def test_a_process_that_dies_while_folding_keeps_the_total(shelf, process):
    """A process that dies at any step of a fold doesn't change the total; the next fold completes
    it.
    """
    for step in count():
        writer = fill(shelf, process)
        expected = seen(process())
        shelf.at = KillAt(step)
        with suppress(Killed):
            sweep(process())
        done = shelf.at.left >= 0
        shelf.at = lambda call: None
        assert seen(process()) == expected
        sweep(process())
        assert seen(process()) == expected
        writer.add(one())
        assert seen(process()) == expected + 1
        shelf.time += 2 * STRAY
        sweep(process())
        sweep(process())
        assert process().total() == {NAME: expected + 1}
        assert len(shelf.named(is_fold)) == 1
        if done:
            break
        process().clear()
    assert step > 10


def test_concurrent_folds_count_nothing_twice(shelf, process):
    """A second fold may run between any two steps of the first."""
    for step in count():
        fill(shelf, process)
        expected = process().total()[NAME]
        state = KillAt(step)
        finished = []

        def meanwhile(call, state=state, finished=finished):
            try:
                state(call)
            except Killed:
                shelf.at = lambda call: None
                finished.append(process().total()[NAME])
                (other := process()).add(one())
                other.end()
                sweep(process())
                sweep(process())

        shelf.at = meanwhile
        sweep(process())
        shelf.at = lambda call: None
        assert finished in ([], [expected])
        expected += len(finished)
        assert process().total()[NAME] == expected
        shelf.time += GRACE + 1
        process().add(one())
        sweep(process())
        assert process().total()[NAME] == expected + 1
        if not finished:
            break
    assert step > 10


def test_a_delayed_fold_loses_its_swap(shelf):
    """A fold that is delayed before its swap loses it, for however long and whatever others folded
    and removed.
    """
    made = lambda: FileSums(shelf, PointerHead(shelf.pointers), (lambda: shelf.time,))
    fill(shelf, made)

    def hold_up(call):
        if call != "written":
            return
        shelf.at = lambda call: None
        for _ in range(3):
            (other := made()).add(one())
            other.end()
            sweep(made())
            shelf.time += GRACE + 1

    shelf.at = hold_up
    sweep(made())
    assert made().total() == {NAME: 10}


def test_a_delayed_fold_gives_up(shelf):
    """A delayed fold gives up, because a head found by its number could name removed files."""
    tallies = FileSums(shelf, NumberedHead(shelf), (lambda: shelf.time,))
    tallies.add(one())
    tallies.end()

    def hold_up(call):
        shelf.time += 50

    shelf.at = hold_up
    sweep(tallies)
    assert not shelf.named(is_fold)
    assert tallies.total() == {NAME: 1}


def test_a_reset_includes_running_processes(shelf, process):
    """After a reset, snapshots of running processes contain the former counts."""
    going = fill(shelf, process)
    process().clear()
    assert seen(process()) == 0
    assert process().total() == {}
    assert not any(process().series(span) for span in SPANS)
    going.add(one(3))
    assert process().total() == {NAME: 3}
    going.end()
    sweep(process())
    assert process().total() == {NAME: 3}
    shelf.time += GRACE + 1
    sweep(process())
    assert process().total() == {NAME: 3}


def written(**changes):
    content = {
        "total": {},
        "series": {"minute": {}, "hour": {}, "day": {}},
        "covers": {},
        **changes,
    }
    return b"offload statistics 1\n" + zlib.compress(json.dumps(content).encode())


FUTURE = b"offload statistics 2\n whatever"
_WHOLE = write_snapshot(Snapshot())


@pytest.mark.parametrize(
    "content",
    (
        b"",
        b"nothing of ours",
        _WHOLE[:-3],
        _WHOLE.replace(b"\n", b"\nx", 1),
        FUTURE,
        b"offload statistics \n",
        written(covers={"part": 10**400}),
        written(total={NAME: 10**400}),
        written(series={"minute": {"x": {}}, "hour": {}, "day": {}}),
    ),
)
def test_unreadable_snapshots_are_omitted_and_reported(shelf, process, content, caplog):
    """An unreadable snapshot is no error; a sweep removes damaged ones but not those of a later
    version.
    """
    name = f"part-{'0' * 32}"
    shelf.write(name, content)
    process().add(one(5))
    caplog.clear()
    assert process().total() == {NAME: 5}
    assert name in caplog.text
    shelf.time += STRAY
    assert len(list(process().sweep(dry_run=True))) == (content != FUTURE)
    assert name in shelf.files
    swept = sweep(process())
    assert (name in shelf.files) == (content == FUTURE)
    assert [each.name for each in swept] == ([] if content == FUTURE else [f"stats/{name}"])
    assert process().total() == {NAME: 5}


def test_a_fold_of_a_later_version_is_left_alone(shelf, process, head, caplog):
    """Nothing is folded over or removed for a fold of a later version."""
    name = f"fold-{9:010}-{'0' * 32}"
    shelf.write(name, FUTURE)
    if isinstance(head, PointerHead):
        shelf.pointers.swap("stats/fold", None, name.encode())
    writer = process()
    writer.add(one())
    writer.end()
    sweep(process())
    assert name in caplog.text
    assert process().total() == {NAME: 1}
    assert shelf.named(is_fold) == [name]


@pytest.mark.parametrize("content", (b"damaged", None))
def test_a_damaged_or_missing_fold_is_replaced(shelf, process, head, content, caplog):
    """The content of a damaged or missing fold is lost and reported; counting continues."""
    writer = fill(shelf, process)
    sweep(process())
    before = head.find()
    if content is None and isinstance(head, PointerHead):
        del shelf.files[before]
    else:
        shelf.write(before, b"damaged")
    caplog.set_level(logging.WARNING)
    process().total()
    assert before in caplog.text
    shelf.time += STRAY + 1
    writer.add(one(7))
    writer.end()
    for _ in range(2):
        sweep(process())
        shelf.time += GRACE + 1
    caplog.clear()
    assert process().total()[NAME] >= 7
    assert not caplog.text
    assert before not in shelf.files


def test_foreign_files_are_left_alone(shelf, process):
    """Files with other names are neither read nor removed."""
    shelf.write("readme", b"hello")
    shelf.time += 2 * STRAY
    process().add(one())
    sweep(process())
    assert "readme" in shelf.files
    assert process().total() == {NAME: 1}


def test_unchanged_snapshots_are_not_read_again(shelf, process):
    """A page that is refreshed every few seconds only reads what was written since."""
    going = fill(shelf, process)
    sweep(process())
    reader = process()
    reader.total()
    calls = []
    shelf.at = calls.append
    read, shelf.read = shelf.read, lambda names: calls.extend(names) or read(names)
    assert reader.total()
    assert [name for name in calls if is_part(name) or is_fold(name)] == []
    going.add(one())
    calls.clear()
    reader.total()
    assert len([name for name in calls if is_part(name) or is_fold(name)]) == 1


def test_many_snapshots_are_folded_without_a_sweep(shelf, process, monkeypatch):
    """Short-lived processes, as of a worker with one task per child, leave a bounded number of
    files.
    """
    monkeypatch.setattr("offload.metrics.storage.SELDOM", 1)
    most = 0
    for _ in range(500):
        writer = process()
        writer.add(one())
        writer.end()
        shelf.time += 30
        most = max(most, len(shelf.files))
    assert most < 400
    assert process().total() == {NAME: 500}


def test_old_entries_are_merged(shelf, process):
    """A fold's size is bounded: old minutes become hours, and old hours become days."""
    for _ in range(100):
        writer = process()
        writer.add(one())
        writer.end()
        shelf.time += 7200
        sweep(process())
    tallies = process()
    assert tallies.total() == {NAME: 100}
    assert _sum(tallies, "day") == 100
    assert len(tallies.series("minute")) <= 2
    assert len(tallies.series("hour")) <= 37
    [fold] = shelf.named(is_fold)
    assert len(read_snapshot(shelf.files[fold][0]).sums.series["hour"]) <= 38


def test_entries_in_the_future_are_in_no_series(shelf, process):
    """Entries in the future, from a wrong clock, are in no series, because a chart would be huge;
    the total has them.
    """
    tallies = process()
    shelf.time += 50 * 365 * 86400
    writer = process()
    writer.add(one())
    writer.end()
    shelf.time -= 50 * 365 * 86400
    tallies.add(one())
    assert tallies.total() == {NAME: 2}
    for span in SPANS:
        assert _sum(tallies, span) == 1


def test_a_forked_child_writes_its_own(tmp_path):
    """A forked child doesn't write its parent's counts again."""
    tallies = sums_of(FileStore(tmp_path))
    tallies.add(one(5))
    pid = os.fork()
    if not pid:
        try:
            tallies.add(one(2))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    tallies.add(one())
    assert sums_of(FileStore(tmp_path)).total() == {NAME: 8}


class Machine(RuleBasedStateMachine):
    """Processes start, count, exit, or are killed; others fold, sweep, die midway, and reset."""

    head = PointerHead

    def __init__(self):
        super().__init__()
        self.shelf = Shelf()
        self.processes = []
        self.expected = Counter()
        self.reader = self.made()

    def made(self):
        is_pointer = self.head is PointerHead
        head = PointerHead(self.shelf.pointers) if is_pointer else NumberedHead(self.shelf)
        return FileSums(self.shelf, head, (lambda: self.shelf.time,))

    @rule(number=st.integers(0, 3), task=st.sampled_from("ab"), amount=st.integers(1, 9))
    def count(self, number, task, amount):
        if number >= len(self.processes):
            self.processes.append(self.made())
        name = LABEL.join(("seen", task, ""))
        amounts = {name: amount}
        self.processes[min(number, len(self.processes) - 1)].add(
            CounterBatch("p", next(numbers), amounts, amounts)
        )
        self.expected[name] += amount

    @rule(number=st.integers(0, 3))
    def end(self, number):
        if number < len(self.processes):
            self.processes.pop(number).end()

    @rule(number=st.integers(0, 3))
    def kill(self, number):
        del self.processes[number : number + 1]

    @rule(steps=st.integers(0, 40))
    def fold(self, steps):
        self.shelf.at = KillAt(steps)
        with suppress(Killed):
            sweep(self.made())
        self.shelf.at = lambda call: None

    @rule(seconds=st.sampled_from([1, GRACE + 1, LIFE + 1, SILENT + 1, STRAY + 1]))
    def wait(self, seconds):
        self.shelf.time += seconds

    @rule()
    def reset(self):
        self.made().clear()
        self.expected.clear()

    @invariant()
    def total_is_correct(self):
        for tallies in (self.reader, self.made()):
            assert tallies.total() == {k: v for k, v in self.expected.items() if v}


class ListedMachine(Machine):
    head = NumberedHead


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestListedMachine = ListedMachine.TestCase
TestListedMachine.settings = TestMachine.settings
