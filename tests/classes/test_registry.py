"""ClassRegistry: versions of classes and functions, according to the specification."""

from __future__ import annotations

import importlib
import random
import sys
import textwrap
import threading
from dataclasses import replace
from queue import Empty

import orjson
import pytest

from offload.classes.registry import ClassRegistry
from offload.classes.versions import PointerNames
from offload.digest import digest_of
from offload.errors import (
    CodeError,
    CodeRefused,
    ConfigurationError,
    NotShippable,
    OffloadError,
    SerializationError,
    UnknownClass,
    VersionMissing,
)
from offload.stores import open_store
from offload.stores.memory import MemoryStore
from tests.classes.conftest import separate_processes

V1 = """
class F:
    def go(self, x):
        return x + 1
"""
V2 = """
class F:
    def go(self, x):
        return x + 2
"""
V1_WRITTEN_OTHERWISE = """
# a comment


class F:
    def go(self, x):

        return (x
                + 1)  # another
"""
NOWHERE = "0" * 64


def count(registry, name):
    return registry._versions.counters.snapshot()[name]


@pytest.fixture
def other(store):
    """Return another process's registry over the same store."""
    return ClassRegistry(store, mode="trusted")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes and imports a module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def make(name, source):
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        made.append(name)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield make
    for name in made:
        sys.modules.pop(name, None)


def push_in_process(url, source, gate, queue, times=1):
    names = {"__name__": "__main__"}
    registry = ClassRegistry(url, mode="trusted")
    for i in range(times):
        exec(source.replace("TURN", str(i)), names)
        if gate is not None:
            gate.wait(60)
        queue.put(registry.push(names["F"]))


def in_processes(target, arguments):
    context = separate_processes()
    gate, queue = context.Barrier(len(arguments)), context.Queue()
    processes = [context.Process(target=target, args=(*each, gate, queue, 5)) for each in arguments]
    for process in processes:
        process.start()
    answers = []
    while len(answers) < 5 * len(processes):
        try:
            answers.append(queue.get(timeout=10))
        except Empty:
            assert not any(process.exitcode for process in processes)
    for process in processes:
        process.join(60)
    return answers


class TestSequences:
    """Sequences of calls from the specification."""

    def test_check_push_check(self, registry, defined):
        """A class is untracked, then synced after a push, and out of sync after a change."""
        cls = defined(V1)
        assert registry.check_status(cls) == "untracked"
        assert registry.push(cls) == registry.get_class_hash(cls)
        assert registry.check_status(cls) == "synced"
        assert registry.check_status(defined(V2)) == "out_of_sync"

    def test_two_versions(self, registry, other, defined):
        """Both versions can be pulled by hash and used side by side."""
        h1, h2 = registry.push(defined(V1)), registry.push(defined(V2))
        assert h1 != h2
        f1, f2 = other.pull("F", h1), other.pull("F", h2)
        assert (f1().go(1), f2().go(1)) == (2, 3)
        assert f1 is not f2
        assert other.pull("F") is f2
        assert registry.pull("F", h1)().go(1) == 2

    def test_whitespace_and_comments(self, registry, defined):
        """Whitespace and comments create no version; a change of behavior does."""
        h1 = registry.push(defined(V1))
        assert registry.get_class_hash(defined(V1_WRITTEN_OTHERWISE)) == h1
        assert registry.check_status(defined(V1_WRITTEN_OTHERWISE)) == "synced"
        assert registry.get_class_hash(defined(V2)) != h1

    @pytest.mark.parametrize("name", ("Nope", "shop.Nope", "", ".", "..", "a/b", "\ud800"))
    def test_an_unknown_class(self, registry, name):
        """An unknown class is a ValueError and an offload error that names class and store."""
        for ask in (
            registry.pull,
            registry.versions,
            lambda name: registry.pull(name, NOWHERE),
            lambda name: registry.pull(name, tag="t"),
            lambda name: registry.recover_class(name, NOWHERE),
            lambda name: registry.rollback(name, NOWHERE),
            lambda name: registry.tag(name, "t", NOWHERE),
            lambda name: registry.diff(name, NOWHERE, NOWHERE),
        ):
            with pytest.raises(ValueError, match="push it first") as caught:
                ask(name)
            assert isinstance(caught.value, UnknownClass)
            assert isinstance(caught.value, CodeError)
            assert isinstance(caught.value, OffloadError)
            assert repr(name) in str(caught.value)
            assert registry.store.url in str(caught.value)
            assert caught.value.store == registry.store.url

    def test_a_missing_version(self, registry, defined):
        """A missing version is a FileNotFoundError and an offload error that names class, version,
        and store.
        """
        registry.push(defined(V1))
        for ask in (
            lambda: registry.pull("F", NOWHERE),
            lambda: registry.pull("F", tag="t"),
            lambda: registry.recover_class("F", NOWHERE),
            lambda: registry.rollback("F", NOWHERE),
            lambda: registry.tag("F", "t", NOWHERE),
            lambda: registry.diff("F", NOWHERE, NOWHERE),
        ):
            with pytest.raises(FileNotFoundError) as caught:
                ask()
            assert isinstance(caught.value, VersionMissing)
            assert isinstance(caught.value, CodeError)
            assert "__main__.F" in str(caught.value)
            assert "000000000000" in str(caught.value) or "tag 't'" in str(caught.value)
            assert registry.store.url in str(caught.value)

    @pytest.mark.parametrize("what", (5, "F", None, object(), len, [].append))
    def test_an_object_that_is_no_class(self, registry, what):
        """Every method that expects a class raises a TypeError of offload for other objects."""
        for take in (
            registry.push,
            registry.persist_class,
            registry.check_status,
            registry.get_class_hash,
            registry.register if what is not None else registry.push,
            lambda it: registry.push_all([it]),
        ):
            with pytest.raises(TypeError, match="expected a class or function") as caught:
                take(what)
            assert isinstance(caught.value, NotShippable)

    def test_a_builtin_class(self, registry):
        """A builtin class is refused with its reason."""
        with pytest.raises(SerializationError, match="int cannot be shipped"):
            registry.push(int)

    def test_recovered_and_verified(self, registry, other, defined):
        """A recovered class's hash can be compared before it is used."""
        h1 = registry.push(defined(V1))
        registry.push(defined(V2))
        found = other.recover_class("F", h1)
        assert found is not other.recover_class("F", h1)
        assert found is not other.pull("F", h1)
        assert other.get_class_hash(found) == h1
        assert found().go(1) == 2

    def test_code_under_a_wrong_hash(self, store, registry, other, defined):
        """Code stored under the wrong hash is refused, also in mode trusted."""
        h1, h2 = registry.push(defined(V1)), registry.push(defined(V2))
        stored = registry.stored("F", h2)
        there = store.pointers.read(PointerNames("__main__.F").version(h1))
        registry._versions.storage.put(
            replace(stored, record=replace(stored.record, hash=h1)), there
        )
        with pytest.raises(CodeRefused, match=f"has the hash {h2[:12]}.*push it again"):
            other.recover_class("F", h1)
        assert count(other, "classes_refused") == 1

    def test_the_layout_of_a_store(self, store, registry, defined):
        """A store has ``plugins/<Name>/<hash>.pkl``, and ``latest.json`` with ``class_name`` and
        ``hash``.
        """
        code_hash = registry.push(defined(V1))
        registry.tag("F", "v1", code_hash)
        folder = "plugins/__main__.F/"
        assert sorted(store.pointers.names("plugins/")) == sorted(
            [f"{folder}{code_hash}.pkl", f"{folder}latest.json", f"{folder}tags/v1.json"]
        )
        latest = orjson.loads(store.pointers.read(f"{folder}latest.json"))
        assert (latest["class_name"], latest["hash"]) == ("__main__.F", code_hash)


class TestPushing:
    def test_persisting_keeps_the_latest(self, registry, other, defined):
        """Persisting stores a version by its hash and doesn't change the latest."""
        h1 = registry.persist_class(defined(V1))
        assert registry.check_status(defined(V1)) == "untracked"
        assert other.pull("__main__.F", h1)().go(1) == 2
        with pytest.raises(VersionMissing, match="no latest version"):
            other.pull("__main__.F")
        registry.push(defined(V2))
        assert registry.persist_class(defined(V1)) == h1
        assert other.pull("F")().go(1) == 3
        assert other.versions("F")[0].hash == h1

    def test_pushing_again_changes_nothing(self, counting, defined):
        """Pushing an unchanged class, also from another process, writes nothing and reads twice."""
        registry = ClassRegistry(counting, mode="trusted")
        cls = defined(V1)
        code_hash = registry.push(cls)
        before = {name: counting.pointers.read(name) for name in counting.pointers.names()}
        for again in (registry, ClassRegistry(counting, mode="trusted")):
            counting.pointers.calls.clear()
            assert again.push(cls) == code_hash
            assert again.persist_class(cls) == code_hash
            assert again.push_all([cls]) == {}
            assert {call[0] for call in counting.pointers.calls} == {"read_all"}
            assert len(counting.pointers.calls) == 4
            assert count(again, "classes_pushed") == (again is registry)
        assert before == {name: counting.pointers.read(name) for name in before}

    @pytest.mark.parametrize("count", (1, 60))
    def test_round_trips_of_pushing_all(self, counting, defined, count):
        """Unchanged classes take one round trip together; changed ones take their own."""
        registry = ClassRegistry(counting, mode="trusted")
        classes = [defined(V1.replace("class F", f"class F{i}"), f"F{i}") for i in range(count)]
        pushed = registry.push_all(classes)
        assert pushed == {
            f"__main__.F{i}": registry.get_class_hash(c) for i, c in enumerate(classes)
        }
        counting.pointers.calls.clear()
        assert registry.push_all(classes) == {}
        assert [call[0] for call in counting.pointers.calls] == ["read_all"]
        counting.pointers.calls.clear()
        changed = [defined(V2.replace("class F", f"class G{i}"), f"G{i}") for i in range(3)]
        assert len(registry.push_all([*classes, *changed])) == 3
        assert len(counting.pointers.calls) == 1 + 3 * 3  # looked for, stored, pointed to

    def test_pushing_all_that_is_registered(self, registry, other, defined):
        """Without arguments, all registered classes are pushed, and their statuses returned
        together.
        """
        assert registry.push_all() == {}
        f, g = registry.register(defined(V1)), registry.register(defined("def g(): return 5", "g"))
        registry.push(f)
        assert registry.statuses() == {"__main__.F": "synced", "__main__.g": "untracked"}
        assert registry.push_all() == {"__main__.g": registry.get_class_hash(g)}
        assert other.pull("g")() == 5
        assert set(registry.statuses().values()) == {"synced"}

    def test_functions_and_lambdas(self, registry, other, defined):
        """Functions and lambdas are versions like classes, including the helpers they call."""
        source = """
        def helper(x): return x * 10
        def f(x, add=3): return helper(x) + add
        g = lambda x: helper(x) + 1
        """
        f, g = defined(source, "f"), defined(source, "g")
        assert other.pull("f", registry.push(f))(1) == 13
        assert other.pull("__main__.<lambda>", registry.push(g))(1) == 11
        assert registry.check_status(f) == "synced"
        assert registry.check_status(defined(source.replace("10", "20"), "f")) == "out_of_sync"

    def test_dependencies_are_stored(self, store, registry, other, defined):
        """Classes that a class refers to are separate versions, stored before it, and the same
        class wherever they are used.
        """
        source = """
        class Base:
            def go(self): return 1
        class F(Base):
            def go(self): return super().go() + Part().go()
            def part(self): return Part()
        class Part(Base):
            def go(self): return 10
        """
        cls = defined(source)
        code_hash = registry.push(cls)
        stored = [name for name in store.pointers.names() if name.endswith(".pkl")]
        assert len(stored) == 3
        assert count(registry, "classes_pushed") == 3
        found = other.pull("F")
        assert found().go() == 11
        needs = dict(other.versions("F")[0].needs)
        assert set(needs) == {"__main__.Base", "__main__.Part"}
        assert other.pull("Part", needs["__main__.Part"]) is type(found().part())
        assert found.__base__ is other.pull("Base", needs["__main__.Base"])
        recovered = other.recover_class("F", code_hash)
        assert recovered().go() == 11
        assert recovered.__base__ is not found.__base__

    def test_circular_dependencies(self, registry, other, defined):
        """Classes that refer to each other in a circle are pushed and pulled."""
        source = """
        class F:
            def other(self): return G()
        class G:
            def other(self): return F()
        """
        code_hash = registry.push(defined(source))
        found = other.pull("F", code_hash)
        assert type(found().other().other()) is found
        assert other.recover_class("F", code_hash)().other().other().other() is not None

    def test_large_versions(self, store, registry, other, defined):
        """A version over 64 KiB has several pointers and works the same."""
        data = random.Random(1).randbytes(200_000)
        cls = defined(f"class F:\n    data = {data!r}\n    def go(self): return len(self.data)")
        code_hash = registry.push(cls)
        assert len([n for n in store.pointers.names() if code_hash in n]) == 4
        assert other.pull("F", code_hash).data == data
        assert other.recover_class("F", code_hash)().go() == 200_000
        assert [each.hash for each in other.versions("F")] == [code_hash]

    def test_too_large_a_version(self, memory, defined):
        """A version over 16 MiB is refused by name, and nothing is stored."""
        registry = ClassRegistry(memory)
        cls = defined(f"class F:\n    data = b'x' * {17 << 20}")
        with pytest.raises(SerializationError, match=r"__main__.F has .* bytes.*be an argument"):
            registry.push(cls)
        assert list(memory.pointers.names()) == []

    def test_processes_that_push_the_same_class_at_once(self, url, defined):
        """Processes that push the same class at once create one version, which is the latest."""
        hashes = in_processes(push_in_process, [(url, V1)] * 2)
        registry = ClassRegistry(url, mode="trusted")
        assert set(hashes) == {registry.get_class_hash(defined(V1))}
        assert [each.hash for each in registry.versions("F")] == [hashes[0]]
        assert registry.pull("F")().go(1) == 2

    def test_processes_that_push_different_versions_at_once(self, url):
        """Processes that push different versions at once store all of them; the latest is one of
        the last pushes.
        """
        source = "class F:\n    def go(self): return ('{}', TURN)"
        hashes = in_processes(push_in_process, [(url, source.format(each)) for each in "ab"])
        registry = ClassRegistry(url, mode="trusted")
        assert {each.hash for each in registry.versions("F")} == set(hashes)
        assert len(set(hashes)) == 10
        assert registry.pull("F")().go() in {("a", 4), ("b", 4)}

    def test_the_latest_moves_by_compare_and_swap(self, memory, defined):
        """A process whose swap of the latest fails checks again; no write is lost unnoticed."""
        rival = ClassRegistry(memory, mode="trusted")
        real = memory.pointers
        turns = []

        class Pointers:
            def swap(self, name, expected, value):
                if name.endswith("latest.json") and len(turns) < 3:
                    turns.append(name)
                    rival.push(defined(V2 + f"    turn = {len(turns)}\n"))
                return real.swap(name, expected, value)

            def __getattr__(self, name):
                return getattr(real, name)

        class Store:
            url, pointers = memory.url, Pointers()

        registry = ClassRegistry(Store(), mode="trusted")
        code_hash = registry.push(defined(V1))
        assert len(turns) == 3
        assert rival.resolve("F")[1] == code_hash
        assert len(rival.versions("F")) == 4

    def test_a_pointer_that_always_changes(self, memory, defined):
        """After many failed swaps, the error names the pointer."""

        class Pointers:
            def swap(self, name, expected, value):
                return not name.endswith("latest.json") and memory.pointers.swap(
                    name, expected, value
                )

            def __getattr__(self, name):
                return getattr(memory.pointers, name)

        class Store:
            url, pointers = memory.url, Pointers()

        with pytest.raises(OffloadError, match=r"latest.json was changed by other processes"):
            ClassRegistry(Store()).push(defined(V1))


class TestPulling:
    def test_the_same_object_every_time(self, registry, other, defined):
        """A process loads a version once; if it is the process's own class, that is returned."""
        cls = defined(V1)
        code_hash = registry.push(cls)
        assert registry.pull("F") is cls
        found = other.pull("F")
        assert found is other.pull("F", code_hash) is other.pull("__main__.F") is not cls
        assert count(other, "classes_loaded") == 1
        assert count(registry, "classes_loaded") == 0

    def test_concurrent_first_loads(self, memory, defined):
        """Threads that load a version at once get one class, loaded once."""
        ClassRegistry(memory).push(defined(V1))
        other = ClassRegistry(memory, mode="trusted")
        gate, found = threading.Barrier(8), []

        def pull():
            gate.wait(10)
            found.append(other.pull("F"))

        threads = [threading.Thread(target=pull) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(found) == 8
        assert len(set(map(id, found))) == 1
        assert count(other, "classes_loaded") == 1

    def test_a_cached_pull_makes_no_store_call(self, counting, defined):
        """Pulling a loaded version by hash takes no round trip; the first pull takes one."""
        code_hash = ClassRegistry(counting).push(defined(V1))
        other = ClassRegistry(counting, mode="trusted")
        counting.pointers.calls.clear()
        other.pull("__main__.F", code_hash)
        assert len(counting.pointers.calls) == 1
        other.pull("__main__.F", code_hash)
        assert len(counting.pointers.calls) == 1

    def test_dependencies_are_read_together(self, counting, defined):
        """Dependencies are read level by level, not one by one."""
        parts = "\n".join(f"class P{i}:\n    x = {i}" for i in range(20))
        cls = defined(
            f"{parts}\nclass F:\n    def go(self): return [{', '.join(f'P{i}' for i in range(20))}]"
        )
        code_hash = ClassRegistry(counting).push(cls)
        other = ClassRegistry(counting, mode="trusted")
        counting.pointers.calls.clear()
        assert [each.x for each in other.pull("__main__.F", code_hash)().go()] == list(range(20))
        assert len(counting.pointers.calls) == 2

    def test_two_classes_with_one_name(self, registry, other, defined):
        """Classes with the same name in two modules don't collide; an ambiguous short name is
        refused with both.
        """
        one = registry.push(defined(V1, module="shop.models"))
        assert other.pull("F")().go(1) == 2
        two = registry.push(defined(V2, module="jobs"))
        assert other.pull("shop.models.F")().go(1) == 2
        assert other.pull("jobs.F")().go(1) == 3
        assert one != two
        for ask in (other.pull, other.versions, other.full_name, other.tags):
            with pytest.raises(UnknownClass, match=r"'F' is ambiguous: jobs\.F or shop\.models\.F"):
                ask("F")
        with pytest.raises(UnknownClass):
            other.pull("models.F")

    def test_short_names_of_persisted_classes(self, registry, other, defined):
        """A version that was never the latest can be found by its short name, too."""
        code_hash = registry.persist_class(defined(V1))
        assert other.pull("F", code_hash)().go(1) == 2

    def test_by_hash_and_tag(self, registry):
        """Hash and tag together, or an invalid hash or tag, are refused."""
        with pytest.raises(ValueError, match="not both"):
            registry.pull("F", NOWHERE, tag="a")
        with pytest.raises(ValueError, match="not the hash"):
            registry.pull("m.F", "abc")
        with pytest.raises(ValueError, match="not a tag"):
            registry.pull("m.F", tag="a/b")

    def test_a_removed_dependency_is_named(self, store, registry, other, defined):
        """A removed version that another one needs is named in the error."""
        cls = defined("class P:\n    pass\nclass F:\n    part = P")
        registry.push(cls)
        [pointer] = [n for n in store.pointers.names("plugins/__main__.P/") if ".pkl" in n]
        store.pointers.swap(pointer, store.pointers.read(pointer), None)
        with pytest.raises(CodeError, match=r"__main__\.P"):
            other.pull("F")
        assert count(other, "classes_loaded") == 0


class TestVersions:
    @pytest.fixture
    def hashes(self, registry, defined):
        return [registry.push(defined(f"class F:\n    x = {i}")) for i in range(4)]

    def test_versions(self, registry, other, hashes):
        """All versions are listed, oldest first, with their details."""
        found = other.versions("F")
        assert [each.hash for each in found] == hashes
        assert {(each.class_name, each.kind) for each in found} == {("__main__.F", "class")}
        assert other.classes()["__main__.F"].hash == hashes[-1]

    def test_tags(self, registry, other, hashes):
        """A tag returns its version and can be moved; a version may have several tags."""
        registry.tag("F", "stable", hashes[0])
        assert other.pull("F", tag="stable").x == 0
        registry.tag("__main__.F", "stable", hashes[2])
        registry.tag("F", "v3", hashes[2])
        assert other.pull("F", tag="stable").x == other.pull("F", tag="v3").x == 2
        assert other.pull("F").x == 3
        assert other.tags("F") == {"stable": hashes[2], "v3": hashes[2], "latest": hashes[3]}

    def test_rollback(self, registry, other, hashes, defined):
        """A rollback makes an older version the latest, loses nothing, and can be reversed."""
        registry.rollback("F", hashes[1])
        assert other.pull("F").x == 1
        assert [each.hash for each in other.versions("F")] == hashes
        cls = defined("class F:\n    x = 3")
        assert registry.check_status(cls) == "out_of_sync"
        assert registry.push(cls) == hashes[3]
        assert other.pull("F").x == 3

    def test_a_version_is_read_by_all_of_its_names(self, registry, other, hashes):
        """By hash, as the latest, and by tag, a version is the same object."""
        registry.tag("F", "t", hashes[3])
        assert other.pull("F") is other.pull("F", hashes[3]) is other.pull("F", tag="t")


class TestDiff:
    SOURCE = """
    def helper(x):
        return x + {}

    class F:
        def go(self, x):
            return helper(x) * {}
    """

    def test_sources(self, store, module):
        """The diff shows the pushed source of the class and of the helpers it calls."""
        registry = ClassRegistry(store, mode="trusted", ship_source=True)
        first = registry.push(module("shop_a", self.SOURCE.format(1, 2)).F)
        sys.modules.pop("shop_a")
        again = module("shop_a", self.SOURCE.format(10, 2))  # longer, so linecache reloads it
        second = registry.push(again.F)
        found = registry.diff("F", first, second)
        assert f"--- shop_a.F@{first[:12]}" in found
        assert "-    return x + 1\n" in found
        assert "+    return x + 10\n" in found
        assert registry.diff("F", first, first) == ""

    def test_without_source(self, registry, defined):
        """A version that was pushed without source says so and what to do."""
        h1, h2 = registry.push(defined(V1)), registry.push(defined(V2))
        with pytest.raises(VersionMissing, match=r"without its source: push it where.*ship_source"):
            registry.diff("F", h1, h2)

    def test_source_comes_with_the_next_push(self, store, module):
        """Following that advice adds the source to the version, which continues to work."""
        cls = module("shop_b", self.SOURCE.format(1, 2)).F
        code_hash = ClassRegistry(store).push(cls)
        registry = ClassRegistry(store, mode="trusted", ship_source=True)
        assert registry.push_all([cls]) == {"shop_b.F": code_hash}
        assert registry.diff("F", code_hash, code_hash) == ""
        assert registry.push_all([cls]) == {}
        assert ClassRegistry(store).push_all([cls]) == {}
        assert ClassRegistry(store, mode="trusted").pull("F")().go(1) == 4
        assert len(registry.versions("F")) == 1

    def test_hostile_source(self, memory, module):
        """Invalid source in a store is refused."""
        registry = ClassRegistry(memory, mode="trusted", ship_source=True)
        code_hash = registry.push(module("shop_c", self.SOURCE.format(1, 2)).F)
        stored = registry.stored("F", code_hash)
        for content in (b"x", b"[]", b"{}", b'{"modules":5}', b'{"modules":[{"definitions":[5]}]}'):
            record = replace(stored.record, source=digest_of([content]), source_size=len(content))
            there = memory.pointers.read(PointerNames("shop_c.F").version(code_hash))
            registry._versions.storage.put(replace(stored, record=record, source=content), there)
            with pytest.raises(CodeRefused, match="source"):
                registry.diff("F", code_hash, code_hash)


class TestRegistering:
    def test_every_way_to_register(self, memory, defined, module):
        """Registering works as a decorator, with and without arguments, and as a call, for classes,
        functions, and modules, and returns its argument unchanged.
        """
        registry = ClassRegistry(memory)

        @registry.register
        class A:
            pass

        @registry.register(push="manual")
        class B:
            pass

        @registry.register()
        def f():
            pass

        g = lambda: 1
        assert registry.register(g) is g
        shop = module("shop_d", "class C: pass\ndef h(): pass\nfrom json import loads\nx = 5")
        assert registry.register(shop, push="manual") is shop
        assert registry.registered == [A, B, f, g, shop.C, shop.h]
        for each in registry.registered:
            assert registry.ships_by_value(each)
        assert not registry.ships_by_value(shop.loads)
        assert isinstance(A, type)
        assert isinstance(B, type)

    def test_invalid_registrations(self, memory):
        """An unknown value of push, or an object that is no code, is refused."""
        registry = ClassRegistry(memory)
        with pytest.raises(ConfigurationError, match=r"'always'.*'auto' or 'manual'"):
            registry.register(push="always")
        with pytest.raises(NotShippable):
            registry.register("shop")

    def test_a_name_registered_again(self, memory, defined):
        """The last definition of a name counts, as in a notebook."""
        registry = ClassRegistry(memory)
        registry.register(defined(V1))
        again = registry.register(defined(V2))
        assert registry.registered == [again]

    def test_push_auto(self, store, defined):
        """With push='auto', a class is pushed when it is first sent."""
        registry = ClassRegistry(store)
        cls = registry.register(defined(V1))
        assert registry.check_status(cls) == "untracked"
        assert registry.ship(cls) == ("__main__.F", registry.get_class_hash(cls))
        assert registry.check_status(cls) == "synced"

    def test_push_manual(self, store, defined):
        """With push='manual', a class must have been pushed; otherwise the error says so, and
        nothing is stored.
        """
        registry = ClassRegistry(store)
        cls = registry.register(defined(V1), push="manual")
        with pytest.raises(VersionMissing, match=r"__main__\.F@.*push='manual'.*classes push"):
            registry.ship(cls)
        assert list(store.pointers.names()) == []
        code_hash = registry.persist_class(cls)
        assert registry.ship(cls) == ("__main__.F", code_hash)
        assert registry.check_status(cls) == "untracked"

    @pytest.mark.parametrize("push", ("auto", "manual"))
    def test_options_of_a_module(self, memory, module, push):
        """Options of a module apply to everything in it and its submodules."""
        registry = ClassRegistry(memory)
        package = module("shop_e.__init__", "class A: pass")
        package = importlib.import_module("shop_e")
        part = module("shop_e.part", "class B: pass")
        registry.register(package, push=push)
        for cls in (package.A, part.B):
            assert registry.ships_by_value(cls)
            if push == "auto":
                registry.ship(cls)
                assert registry.check_status(cls) == "synced"
            else:
                with pytest.raises(VersionMissing, match="manual"):
                    registry.ship(cls)

    def test_a_class_that_is_not_registered(self, memory, defined):
        """A class that is shipped because it can't be imported is stored but doesn't become the
        latest.
        """
        registry = ClassRegistry(memory)
        cls = defined(V1)
        registry.ship(cls)
        assert registry.check_status(cls) == "untracked"
        assert len(registry.versions("__main__.F")) == 1

    def test_sending_does_not_undo_a_rollback(self, store, defined):
        """A process that keeps sending a version stores it again if it is missing, but makes it the
        latest only once.
        """
        now = [1000.0]
        registry = ClassRegistry(store, clock=lambda: now[0])
        first = registry.push(defined(V1))
        cls = registry.register(defined(V2))
        pair = registry.ship(cls)
        registry.rollback("F", first)
        now[0] += 3600
        assert registry.ship(cls) == pair
        assert registry.check_status(cls) == "out_of_sync"
        version = PointerNames(pair[0]).version(pair[1])
        store.pointers.swap(version, store.pointers.read(version), None)
        now[0] += 3600
        registry.ship(cls)
        assert store.pointers.read(version) is not None

    def test_sending_again_makes_no_store_call(self, counting, defined):
        """Within a minute, sending again makes no store call."""
        now = [0.0]
        registry = ClassRegistry(counting, clock=lambda: now[0])
        cls = registry.register(defined(V1))
        registry.ship(cls)
        counting.pointers.calls.clear()
        for _ in range(100):
            registry.ship(cls)
        assert counting.pointers.calls == []
        now[0] += 61
        registry.ship(cls)
        assert [call[0] for call in counting.pointers.calls] == ["read_all"]

    def test_a_pulled_class_is_sent_as_its_version(self, registry, other, defined, counting):
        """A pulled class is sent as its version without a store call."""
        code_hash = registry.push(defined(V1))
        there = ClassRegistry(counting, mode="trusted")
        found = there.pull("F")
        counting.pointers.calls.clear()
        assert there.ship(found) == ("__main__.F", code_hash)
        assert there.get_class_hash(found) == code_hash
        assert counting.pointers.calls == []
        mine = defined(V2)
        assert there.get_class_hash(mine) != code_hash
        assert there.get_class_hash(found) == code_hash


class TestMeans:
    def test_by_url(self, tmp_path, defined):
        """A registry works on its own with the URL of any store."""
        url = f"file://{tmp_path}/store"
        ClassRegistry(url).push(defined(V1))
        assert ClassRegistry(url, mode="trusted").pull("F")().go(1) == 2
        assert ClassRegistry(open_store(url), mode="trusted").pull("F")().go(1) == 2

    def test_wrong_settings(self, memory):
        """A wrong mode, key, or pattern is refused when the registry is created or first used."""
        for given, message in (
            ({"mode": "on"}, "offload_code: 'on'"),
            ({"mode": "signed"}, "offload_verify_keys"),
            ({"allow": "shop.*"}, "offload_code_allow"),
            ({"signing_key": "nothing"}, "offload_signing_key"),
        ):
            with pytest.raises(ConfigurationError, match=message):
                ClassRegistry(memory, **given)
        registry = ClassRegistry(memory, mode="signed", verify_keys=["nothing"])
        with pytest.raises(ConfigurationError, match="offload_verify_keys"):
            registry.check_keys()

    def test_stores_do_not_mix(self, defined):
        """Versions in one store are not visible in another."""
        ClassRegistry(MemoryStore()).push(defined(V1))
        with pytest.raises(UnknownClass):
            ClassRegistry(MemoryStore(), mode="trusted").pull("F")
