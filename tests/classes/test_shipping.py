"""Shipping code between two processes with one store: uploads, loads, caches, and refusals."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading

import cloudpickle
import numpy as np
import pytest
from celery import Celery
from kombu.exceptions import EncodeError

from offload import Offload
from offload.classes import hashing, loading
from offload.classes.hashing import identify
from offload.errors import (
    CodeRefused,
    ConfigurationError,
    DeserializationError,
    SerializationError,
    StoreUnavailable,
    UnknownClass,
    VersionMissing,
)
from tests.classes.sides import Side, cells, content
from tests.support.processes import wait_until

KEY = "hmac:0123456789abcdef"
CLASS = """
class F:
    number = {number}
    def run(self):
        return self.number
"""
gates: dict[str, threading.Event] = {}


def is_waiting(thread):
    """Return whether a thread waits for another one that is loading."""
    frames = [sys._current_frames().get(thread.ident)]
    while frames[-1] is not None:
        frames.append(frames[-1].f_back)
    return any(frame.f_code.co_name == "one_at_a_time" for frame in frames[:-1])


class Clock:
    def __init__(self):
        self.now = 1e9

    def __call__(self):
        return self.now


class Gate:
    """Blocks unpickling until the test opens it."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return pass_gate, (self.name,)


def pass_gate(name):
    reached, opened = gates[f"{name} reached"], gates[name]
    reached.set()
    assert opened.wait(30)
    return Gate(name)


@pytest.fixture
def gate():
    """Return a gate, an event for its being reached, and one that opens it."""
    name = os.urandom(4).hex()
    gates[name], gates[f"{name} reached"] = threading.Event(), threading.Event()
    yield Gate(name), gates[f"{name} reached"], gates[name]
    gates[name].set()


@pytest.fixture
def sides(memory):
    return Side(memory), Side(memory)


class TestUploads:
    def test_each_version_is_uploaded_once_for_all_messages(self, sides, defined):
        """Ten messages write one pointer, and another process that sends the same writes none."""
        here, _ = sides
        cls = defined(CLASS.format(number=1))
        for _ in range(10):
            here.write([cls(), cls(), cls])
        code_hash = here.registry.get_class_hash(cls)
        assert here.written == [f"plugins/__main__.F/{code_hash}.pkl"]
        assert here.counters.snapshot()["classes_pushed"] == 1
        other = Side(here.store)
        other.write(defined(CLASS.format(number=1))())
        assert not other.written

    def test_dependencies_are_uploaded(self, sides):
        """Classes that a class refers to are separate versions, written before it."""
        here, there = sides
        main = cells()
        payload = here.write(main["Grandchild"]())
        assert [name.split("/")[1] for name in here.written] == [
            "__main__.Base",
            "__main__.Child",
            "__main__.Grandchild",
        ]
        arrived = there.read(payload)
        assert isinstance(arrived, type(there.read(here.write(main["Child"]()))))
        assert len(here.written) == 3

    def test_a_message_is_a_tenth_of_one_with_the_class_in_it(self, sides, defined):
        """An instance of a class with 50 methods takes at most a tenth of cloudpickle's bytes."""
        here, _ = sides
        methods = "".join(
            f"    def method{i}(self, a, b={i}):\n        return [a + x for x in range(b)]\n"
            for i in range(50)
        )
        value = defined(f"class F:\n{methods}")()
        for side, native in ((here, "json"), (Side(here.store, accept=("pickle",)), "pickle")):
            payload = side.write(value, native)
            assert len(content(payload)) < len(cloudpickle.dumps(value, protocol=5)) / 10
            assert len(content(payload)) < 250
            assert b"method" not in content(payload)

    def test_a_version_is_checked_again_after_a_minute(self, memory, defined):
        """After a minute, the process checks whether the store still has the version and uploads it
        if not.
        """
        clock = Clock()
        here = Side(memory, clock=clock)
        cls = defined(CLASS.format(number=1))
        here.write(cls())
        [name] = here.written
        memory.pointers.swap(name, memory.pointers.read(name), None)
        here.write(cls())
        assert here.written == [name]
        clock.now += 61
        here.write(cls())
        assert here.written == [name, name]

    def test_an_outage_only_affects_new_versions(self, memory, defined):
        """While the store is unavailable, a version that was uploaded counts as stored, and a new
        one is an error.
        """
        clock = Clock()
        here = Side(memory, clock=clock)
        known, new = defined(CLASS.format(number=1)), defined(CLASS.format(number=2))
        here.write(known())
        clock.now += 61
        here.store.pointers.away = True
        assert here.write(known()).ships_code
        with pytest.raises(StoreUnavailable):
            here.write(new())

    def test_a_class_whose_content_changes_is_another_version(self, sides, defined):
        """A changed attribute, or a changed global that a method uses, is uploaded as a new
        version.
        """
        here, there = sides
        cls = defined("names = []\nclass F:\n    def run(self): return list(names)")
        first = here.write(cls())
        cls.run.__globals__["names"].append("new")
        second = here.write(cls())
        assert len(here.written) == 2
        assert [there.read(payload).run() for payload in (first, second)] == [[], ["new"]]


class TestClassState:
    @pytest.fixture
    def hashed(self, monkeypatch):
        """Return the names of everything that was hashed, once per time."""
        names = []

        def counted(obj, scope):
            names.append(obj.__name__)
            return identify(obj, scope)

        monkeypatch.setattr(hashing, "identify", counted)
        return names

    @pytest.mark.parametrize("table", ("list(range(200_000))", "{i: [i] for i in range(50_000)}"))
    def test_a_large_global_is_hashed_once_until_it_changes(self, sides, defined, hashed, table):
        """Sending again hashes nothing; a changed item creates a new version."""
        here, there = sides
        function = defined(f"TABLE = {table}\ndef F(): return TABLE[0]")
        payloads = [here.write(function) for _ in range(5)]
        assert hashed == ["F"]
        function.__globals__["TABLE"][0] = "changed"
        payloads.append(here.write(function))
        assert hashed == ["F", "F"]
        assert there.read(payloads[-1])() == "changed" != there.read(payloads[0])()

    def test_instances_do_not_change_their_class(self, sides, defined, hashed):
        """What Python itself keeps in a class when an instance is first reduced isn't a change."""
        here, _ = sides
        cls = defined("class C: x = 1", "C")
        for _ in range(3):
            here.write(cls())
        assert "__slotnames__" in vars(cls)
        assert hashed == ["C"]

    def test_mutable_globals_are_hashed_again_with_a_warning(self, sides, defined, hashed, caplog):
        """One warning names a large global that is hashed for every message."""
        here, _ = sides
        function = defined("import numpy as np\nTABLE = np.zeros(200_000)\ndef F(): return TABLE")
        for _ in range(3):
            here.write(function)
        assert len(hashed) == 3
        [record] = [each for each in caplog.records if "is hashed again" in each.message]
        assert "__main__.F" in record.message
        assert "TABLE (ndarray)" in record.message

    def test_class_state_that_makes_versions_is_named_once(self, sides, defined, caplog):
        """A counter on a class creates a version per message, and one warning names it."""
        here, _ = sides
        cls = defined("""
            class F:
                created = 0
                table = []
                def __init__(self): F.created += 1
                def run(self): return self.table
        """)
        for _ in range(3):
            here.write(cls())
        assert len(here.written) == 3
        [record] = [each for each in caplog.records if "a new version" in each.message]
        assert record.levelname == "WARNING"
        assert record.message.startswith("F.created has changed, so a new version of __main__.F")

    def test_an_edited_class_causes_no_warning(self, sides, defined, caplog):
        """Replacing a method creates a version without a warning."""
        here, _ = sides
        cls = defined("class F:\n    limit = 1\n    def run(self): return 1")
        here.write(cls())
        cls.run = defined("def run(self): return 2", "run")
        here.write(cls())
        assert len(here.written) == 2
        assert not caplog.records


class TestRegistered:
    def test_a_class_and_its_references(self, sides, module):
        """A registered class is shipped with instances of classes that it refers to in its module;
        others are sent as by plain Celery.
        """
        here, there = sides
        shop = module("""
            class Item:
                pass
            class Order:
                def __init__(self): self.items = [Item()]
            class Other:
                pass
        """)
        here.registry.register(shop.Order)
        payload = here.write(shop.Order())
        item = here.write(shop.Item())
        with pytest.raises(SerializationError, match="of type Other"):
            here.write(shop.Other())
        del sys.modules["shop_of_the_producer"]
        order = there.read(payload)
        assert type(order.items[0]) is type(there.read(item))
        assert type(order) is not shop.Order

    @pytest.mark.parametrize("native", ("json", "pickle"))
    def test_another_process_ships_the_same_though_it_uploads_nothing(self, memory, module, native):
        """A process that didn't push a version also ships everything the version refers to."""
        shop = module("""
            class Far:
                pass
            class Near:
                make = Far
            class Order:
                make = Near
        """)
        for _ in range(2):
            side = Side(memory, accept=("json", "pickle"))
            side.registry.register(shop.Order)
            payload = side.write([shop.Order(), shop.Far(), shop.Near()], native)
        assert not side.written or all(name.endswith("latest.json") for name in side.written)
        assert b"shop_of_the_producer.Far" in content(payload)
        del sys.modules["shop_of_the_producer"]
        assert [type(each).__name__ for each in Side(memory, accept=("pickle",)).read(payload)] == [
            "Order",
            "Far",
            "Near",
        ]

    @pytest.mark.parametrize("native", ("json", "pickle"))
    def test_a_module(self, memory, module, native):
        """All classes of a registered module are shipped, and no pickle refers to the module; its
        own instances return home unchanged.
        """
        here, there = (Side(memory, accept=("json", "pickle")) for _ in range(2))
        shop = module("""
            import functools
            class Item:
                def run(self): return helper(self)
            def helper(item): return type(item).__name__
            @functools.lru_cache
            def cached(n): return n + 1
        """)
        here.registry.register(shop)
        payload = here.write([shop.Item(), shop.Item, shop.helper, shop.cached], native)
        del sys.modules["shop_of_the_producer"]
        item, cls, helper, cached = there.read(payload)
        assert type(item) is cls is not shop.Item
        assert item.run() == helper(item) == "Item"
        assert cached(1) == 2
        again = there.write([item, cls, helper, cached], native)
        sys.modules["shop_of_the_producer"] = shop
        home = here.read(again)
        assert type(home[0]) is home[1] is shop.Item
        assert home[2:] == [shop.helper, shop.cached]

    @pytest.mark.parametrize(
        "cell",
        (
            "def F(): return Order(2).run() + total(3)",
            "class F(Order):\n    def __init__(self): super().__init__(5)",
            """class F:
                order, total = Order, staticmethod(total)
                def run(self): return self.order(2).run() + self.total(3)""",
            """class F:
                def __init__(self): self.order, self.total = Order(2), total
                def run(self): return self.order.run() + self.total(3)""",
        ),
        ids=("function", "subclass", "attribute", "instance"),
    )
    @pytest.mark.parametrize("native", ("json", "pickle"))
    def test_registered_names_are_dependencies(self, memory, module, defined, cell, native):
        """A cell that uses registered classes and functions of a module that workers lack has them
        as dependencies and runs without the module.
        """
        accept = ("json", "pickle")
        here, there = Side(memory, accept=accept), Side(memory, accept=accept)
        shop = module("""
            TAX = 10
            def taxed(n): return n + TAX
            class Order:
                def __init__(self, n): self.n = n
                def run(self): return taxed(self.n)
            def total(n): return 2 * taxed(n)
        """)
        here.registry.register(shop.Order)
        here.registry.register(shop.total)
        source = f"from shop_of_the_producer import Order, total\n{cell}"
        obj = defined(source)
        value = obj() if isinstance(obj, type) else obj
        payload = here.write(value, native)
        before = here.registry.get_class_hash(obj)
        record = here.registry.stored("__main__.F", before).record
        needs = {name.rpartition(".")[2] for name, _ in record.needs}
        assert needs >= (
            {"Order"} if "(Order)" in cell or "= Order(" in cell else {"Order", "total"}
        )
        del sys.modules["shop_of_the_producer"]
        arrived = there.read(payload)
        expected = 15 if "(Order)" in cell else 38
        assert (arrived.run() if isinstance(obj, type) else arrived()) == expected
        assert type(there.registry.recover_class("__main__.F", before)) is type(obj)
        sys.modules["shop_of_the_producer"] = shop
        shop.TAX = 20  # of the classes it refers to, because it needs other versions of them
        assert here.registry.get_class_hash(obj) != before

    @pytest.mark.parametrize("what", ("class", "module"))
    @pytest.mark.parametrize("native", ("json", "pickle"))
    def test_what_a_registered_class_defines_ships_alone(
        self, memory, module, defined, what, native
    ):
        """Methods and nested classes of a registered class also ship by themselves, as values and
        in the globals of other code; with push='manual', only after a push.
        """
        accept = ("json", "pickle")
        here, there = Side(memory, accept=accept), Side(memory, accept=accept)
        shop = module("""
            class Order:
                def __init__(self, n): self.n = n
                def twice(self): return 2 * self.n
                @staticmethod
                def next(n): return n + 1
                class Line:
                    def __init__(self, n): self.n = n
                    def run(self): return self.n, isinstance(self, Order.Line)
        """)
        order = shop.Order
        here.registry.register(shop if what == "module" else order, push="manual")
        makers = (lambda: order.Line(4), lambda: order.Line.run, lambda: order.next)
        for make in makers:
            with pytest.raises(VersionMissing, match="push='manual'"):
                here.write(make(), native)
        here.registry.register(shop if what == "module" else order)
        names = defined("F = lambda: [each(Order(3)) for each in PARTS]")
        names.__globals__.update(Order=order, PARTS=[order.twice])
        values = (order.Line(4), order.Line.run, order.next, order.twice, [order.Line], names)
        payloads = [here.write(value, native) for value in values]
        del sys.modules["shop_of_the_producer"]
        line, run, following, twice, [kind], parts = map(there.read, payloads)
        assert line.run() == run(kind(4)) == (4, True)
        assert type(line) is kind
        assert following(1) == 2
        assert twice(line) == 8
        assert parts() == [6]
        back = there.write(line, native)
        sys.modules["shop_of_the_producer"] = shop
        assert type(here.read(back)) is order.Line

    def test_registering_takes_effect_at_once(self, sides, module, defined):
        """Registering a module changes the version of code that failed before; both errors suggest
        it.
        """
        here, there = sides
        shop = module("class Item:\n    def run(self): return 1")
        source = "import shop_of_the_producer\ndef F(): return shop_of_the_producer.Item().run()"
        function = defined(source)
        with pytest.raises(SerializationError, match=r"classes\.register\(shop_of_the_producer\)"):
            here.write(shop.Item())
        first = here.write(function)
        del sys.modules["shop_of_the_producer"]
        with pytest.raises(DeserializationError, match=r"register\(shop_of_the_producer\)"):
            there.read(first)
        sys.modules["shop_of_the_producer"] = shop
        here.registry.register(shop)
        payload = here.write([function, shop.Item()])
        del sys.modules["shop_of_the_producer"]
        arrived, item = there.read(payload)
        assert arrived() == item.run() == 1

    def test_an_error_suggests_registering_a_missing_module(self, memory, module):
        """If a module is missing, the error says so and what to do."""
        here, there = (Side(memory, accept=("pickle",)) for _ in range(2))
        payload = here.write(module("class Item: pass").Item(), "pickle")
        del sys.modules["shop_of_the_producer"]
        with pytest.raises(
            DeserializationError, match=r"No module.*or ship the class from the sender"
        ):
            there.read(payload)

    def test_an_error_suggests_registering_what_was_passed(self, sides, module):
        """A class or function of a missing module, passed as a value, is to be registered; a class
        written in C can't be.
        """
        here, there = sides
        shop = module("class Item: pass\ndef total(): return 1")
        with pytest.raises(SerializationError, match=r"classes\.register\(shop_of_the_producer\)"):
            here.write([shop.Item])
        with pytest.raises(SerializationError) as caught:
            here.write(np.float32)
        assert "register" not in str(caught.value)
        payload = here.write(shop.total)
        del sys.modules["shop_of_the_producer"]
        with pytest.raises(DeserializationError, match=r"No module.*\(shop_of_the_producer\)"):
            there.read(payload)

    @pytest.mark.parametrize("push", ("auto", "manual"))
    def test_a_package_is_registered_with_its_submodules(
        self, memory, tmp_path, monkeypatch, caplog, push
    ):
        """Classes of all submodules are registered and can be pushed. A submodule that can't be
        imported, or a function that can't be shipped, is named and skipped, and ``__main__``
        modules don't run.
        """
        parts = {
            "__init__": "from offload_package.models import Order",
            "models": "class Order:\n    def run(self): return 1",
            "sub/__init__": "",
            "sub/late": "class Late: pass\nfrom offload_package.models import Order",
            "broken": "import a_module_that_is_nowhere",
            "locks": "import threading\nLOCK = threading.Lock()\ndef locked(): return LOCK",
            "__main__": "raise SystemExit('it ran')",
        }
        for name, source in parts.items():
            path = tmp_path / "offload_package" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        package = importlib.import_module("offload_package")
        try:
            here = Side(memory)
            here.registry.register(package, push=push)
            names = {"offload_package.models.Order", "offload_package.sub.late.Late"}
            assert here.registry.statuses() == dict.fromkeys(names, "untracked")
            assert "skipping offload_package.broken" in caplog.text
            assert "skipping offload_package.locks.locked" in caplog.text
            assert set(here.registry.push_all()) == names
            assert set(here.registry.statuses().values()) == {"synced"}
            payload = here.write(package.Order())
        finally:
            for name in [each for each in sys.modules if each.startswith("offload_package")]:
                del sys.modules[name]
        monkeypatch.undo()
        assert Side(memory).read(payload).run() == 1

    def test_push_auto_makes_a_version_the_latest_once(self, memory, module):
        """A process's first message makes its version the latest; later ones don't override other
        pushes or rollbacks.
        """
        clock = Clock()
        here = Side(memory, clock=clock)
        shop = module(CLASS.format(number=1))
        first = here.registry.push(shop.F)
        shop = module(CLASS.format(number=2))
        here.registry.register(shop.F)
        here.write(shop.F())
        name = "shop_of_the_producer.F"
        assert here.registry.tags(name)["latest"] == here.registry.get_class_hash(shop.F) != first
        here.registry.rollback(name, first)
        clock.now += 61
        here.write(shop.F())
        assert here.registry.tags(name)["latest"] == first

    @pytest.mark.parametrize("what", ("class", "module"))
    def test_push_manual_requires_a_push(self, sides, module, what):
        """With push='manual', sending fails until the class is pushed, and the error says how."""
        here, there = sides
        shop = module(CLASS.format(number=1))
        here.registry.register(shop if what == "module" else shop.F, push="manual")
        with pytest.raises(VersionMissing, match=r"push='manual'.*classes push"):
            here.write(shop.F())
        assert not here.written
        here.registry.push(shop.F)
        payload = here.write(shop.F())
        del sys.modules["shop_of_the_producer"]
        assert there.read(payload).run() == 1

    @pytest.mark.parametrize("native", ("json", "pickle"))
    def test_importable_code_is_not_shipped(self, memory, native):
        """Classes and functions of modules that aren't registered are not shipped."""
        here = Side(memory, accept=("json", "pickle"))
        here.registry.register(sys.modules["json"])
        for value in (Clock(), Clock, wait_until, [Clock()]):
            payload = here.write(value, native)
            assert (payload.serializer, payload.ships_code) == ("pickle", False)
            assert b"cloudpickle" not in payload.head
        assert not here.calls


class TestLoaded:
    def test_the_second_load_makes_no_store_call(self, sides, defined):
        """A process fetches a version once."""
        here, there = sides
        cls = defined(CLASS.format(number=1))
        first = there.read(here.write(cls()))
        there.calls.clear()
        second, third = there.read(here.write([cls(), cls()]))
        assert not there.calls
        assert type(first) is type(second) is type(third)
        assert there.counters.snapshot()["classes_loaded"] == 1

    def test_two_versions_live_side_by_side(self, sides, defined):
        """Instances of two versions with one name behave accordingly, in any order, and return home
        as their own class.
        """
        here, there = sides
        one, two = (defined(CLASS.format(number=number)) for number in (1, 2))
        payloads = [here.write(cls()) for cls in (one, two, one, two)]
        arrived = [there.read(payload) for payload in payloads]
        assert [each.run() for each in arrived] == [1, 2, 1, 2]
        assert type(arrived[0]) is type(arrived[2]) is not type(arrived[1])
        home = [here.read(there.write(each)) for each in arrived]
        assert [type(each) for each in home] == [one, two, one, two]
        assert len(here.written) == 2

    def test_a_process_uses_its_own_class(self, memory, module):
        """A receiver's own registered class of the same version is used, subject to its policy."""
        here, there = Side(memory), Side(memory)
        shop = module(CLASS.format(number=1))
        here.registry.register(shop)
        payload = here.write(shop.F())
        same = module(CLASS.format(number=1))
        there.registry.register(same)
        assert type(there.read(payload)) is same.F is not shop.F
        for options in (
            {"mode": "off"},
            {"allow": ["other.*"]},
            {"mode": "signed", "verify_keys": ["hmac:another key of ours"]},
        ):
            refusing = Side(memory, **options)
            refusing.registry.register(same)
            with pytest.raises(CodeRefused):
                refusing.read(payload)

    def test_versions_that_nothing_uses_are_forgotten(self, sides, defined, monkeypatch):
        """A process that loads ever new versions keeps those used last, and all that it uses."""
        monkeypatch.setattr(loading, "KEPT", 3)
        here, there = sides
        payloads = [here.write(defined(CLASS.format(number=number))()) for number in range(20)]
        used = there.read(payloads[0])
        for number, payload in enumerate(payloads):
            assert there.read(payload).run() == number
            assert there.read(payloads[1]).run() == 1
        gc.collect()
        assert 3 < len(there.registry._loaded.pairs()) <= 8
        loaded = there.counters.snapshot()["classes_loaded"]
        assert type(there.read(payloads[0])) is type(used)
        assert [there.read(payloads[number]).run() for number in (1, 17, 18, 19)] == [1, 17, 18, 19]
        assert there.counters.snapshot()["classes_loaded"] == loaded
        assert there.read(payloads[5]).run() == 5
        assert there.counters.snapshot()["classes_loaded"] == loaded + 1
        assert there.write(there.read(payloads[5]))

    def test_concurrent_threads_load_a_version_once(self, sides, defined):
        """Twenty threads get one class, fetched once."""
        here, there = sides
        payload = here.write(defined(CLASS.format(number=1))())
        barrier, found = threading.Barrier(20), []

        def read():
            barrier.wait()
            found.append(there.read(payload))

        threads = [threading.Thread(target=read) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({type(each) for each in found}) == 1
        assert len(found) == 20
        assert there.counters.snapshot()["classes_loaded"] == 1
        assert [call[0] for call in there.calls].count("read_all") == 1

    def test_no_thread_sees_an_incomplete_class(self, sides, defined, gate):
        """While one thread loads classes that refer to each other, another waits, even for one that
        is complete.
        """
        here, there = sides
        waiting, reached, opened = gate
        main = defined(
            "class B:\n    def make(self): return A()\nclass A:\n    other = B\nboth = (A, B)",
            "both",
        )
        main[0].gate = waiting
        main[0].ready = True
        payload_a, payload_b = here.write(main[0]()), here.write(main[1]())
        found = []
        first = threading.Thread(target=lambda: there.read(payload_a))
        second = threading.Thread(target=lambda: found.append(there.read(payload_b).make().ready))
        first.start()
        assert reached.wait(30)
        second.start()
        wait_until(lambda: not second.is_alive() or is_waiting(second), "the other one waits")
        opened.set()
        first.join()
        second.join()
        assert found == [True]


class TestForks:
    @staticmethod
    def in_child(call):
        """Return the result of *call* in a forked child, as text."""
        readable, writable = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.write(writable, str(call()).encode())
            except BaseException as exc:
                os.write(writable, repr(exc).encode())
            finally:
                os._exit(0)
        os.close(writable)
        with os.fdopen(readable, "rb") as file:
            text = file.read().decode()
        os.waitpid(pid, 0)
        return text

    def test_a_child_inherits_loaded_classes(self, sides, defined):
        """After a fork, a child has the loaded class without fetching it."""
        here, there = sides
        payload = here.write(defined(CLASS.format(number=1))())
        cls = type(there.read(payload))

        def again():
            there.calls.clear()
            value = there.read(payload)
            return type(value) is cls, value.run(), len(there.calls)

        assert self.in_child(again) == "(True, 1, 0)"

    def test_a_child_is_forked_while_another_thread_loads(self, sides, defined, gate):
        """A child that is forked while another thread loads a class loads it itself, completely."""
        here, there = sides
        waiting, reached, opened = gate
        cls = defined(CLASS.format(number=1))
        cls.gate = waiting
        payload = here.write(cls())
        thread = threading.Thread(target=there.read, args=(payload,))
        thread.start()
        assert reached.wait(30)

        def load():
            gates[waiting.name].set()
            return there.read(payload).run(), there.counters.snapshot()["classes_loaded"]

        assert self.in_child(load) == "(1, 1)"
        opened.set()
        thread.join()
        assert there.read(payload).run() == 1


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        (
            ({"mode": "off"}, r"offload_code is 'off'"),
            ({"mode": "signed", "verify_keys": ["hmac:another key of ours"]}, r"not signed"),
            ({"allow": ["shop.*"]}, r"offload_code_allow"),
        ),
    )
    @pytest.mark.parametrize("native", ("json", "pickle"))
    def test_forbidden_code_does_not_run(self, memory, defined, tmp_path, options, message, native):
        """The error names class and setting and is counted, and no code runs, not even while it is
        unpickled.
        """
        accept = ("json", "pickle")
        here, there = Side(memory, accept=accept), Side(memory, accept=accept, **options)
        cls = defined("class F:\n    pass")
        cls.note = Writing(str(tmp_path / "executed"))
        payload = here.write(cls(), native)
        with pytest.raises(CodeRefused, match=rf"__main__\.F@.*{message}"):
            there.read(payload)
        assert not (tmp_path / "executed").exists()
        assert there.counters.snapshot()["classes_refused"] == 1
        Side(memory, accept=accept).read(payload)
        assert (tmp_path / "executed").exists()

    def test_a_missing_version(self, sides, defined, memory):
        """The error is VersionMissing if the store has other versions of the name, else
        UnknownClass.
        """
        here, there = sides
        one, two = (defined(CLASS.format(number=number)) for number in (1, 2))
        payload = here.write(one())
        here.write(two())
        first, second = here.written
        memory.pointers.swap(first, memory.pointers.read(first), None)
        with pytest.raises(VersionMissing, match=r"__main__\.F"):
            there.read(payload)
        memory.pointers.swap(second, memory.pointers.read(second), None)
        with pytest.raises(UnknownClass, match=r"__main__\.F"):
            there.read(payload)

    def test_an_unavailable_store(self, sides, defined):
        """Loading raises StoreUnavailable, and works when the store is back."""
        here, there = sides
        payload = here.write(defined(CLASS.format(number=1))())
        there.store.pointers.away = True
        with pytest.raises(StoreUnavailable):
            there.read(payload)
        there.store.pointers.away = False
        assert there.read(payload).run() == 1

    def test_mode_signed_needs_a_key(self, memory, defined):
        """In mode signed, classes of __main__ aren't sent without a key. Local classes of a module
        are still pickled as usual, because workers, which have no key, return them.
        """
        side = Side(memory, accept=("json", "pickle"), mode="signed", verify_keys=[KEY])
        with pytest.raises(ConfigurationError, match="offload_signing_key"):
            side.write(defined(CLASS.format(number=1))(), "pickle")

        class Local(tuple):
            __slots__ = ()

        for native, expected in (("json", [1, 2]), ("pickle", (1, 2))):
            payload = side.write([Local((1, 2)), lambda: 3][:1], native)
            assert not payload.ships_code
            [arrived] = side.read(payload)
            assert arrived == expected
        assert side.read(side.write(lambda: 3, "pickle"))() == 3
        assert not side.written

    def test_a_process_without_a_key_returns_loaded_classes(self, memory, defined):
        """A worker without a signing key can return instances of classes that others signed."""
        here = Side(memory, mode="signed", signing_key=KEY)
        there = Side(memory, mode="signed", verify_keys=[KEY])
        cls = defined(CLASS.format(number=1))
        arrived = there.read(here.write(cls()))
        assert type(here.read(there.write([arrived]))[0]) is cls
        assert not there.written


class Writing:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return write_file, (self.path,)


def write_file(path):
    with open(path, "w"):  # noqa: PTH123 (as short as can be)
        return


def test_the_store_may_be_of_any_kind(store):
    """Instances can be shipped through every kind of store."""
    here, there = Side(store), Side(store)
    main = cells()
    network = main["Network"](main["np"].arange(3.0))
    assert there.read(here.write(network)).run() == network.run()


@pytest.mark.parametrize("serializer", ("json", "pickle"))
def test_mode_observe_pushes_nothing(serializer):
    """In mode observe, messages don't change, and no class is stored."""
    app = Celery("observed", broker="memory://", set_as_current=False)
    app.conf.update(task_serializer=serializer, accept_content=["json", "pickle"])
    store = f"memory://observed-{serializer}"
    offload = Offload(app, mode="observe", store=store, code="trusted", threshold=0)
    try:
        app.send_task("observed.task", (cells()["Level"].LOW,))
    except EncodeError:  # as in plain Celery
        assert serializer == "pickle"
    assert not list(offload.store.pointers.names("plugins/"))
    app.close()
