"""Classes and functions by value: what is kept, what the reader provides, and what is refused."""

from __future__ import annotations

import dataclasses
import enum
import pickle
import pickletools
import sys
import textwrap
import threading
from types import FunctionType, ModuleType

import pytest
from celery import Celery

from offload import ClassRegistry, Offload
from offload.classes.pickling import dump, load, shipped
from offload.classes.reducers import _set_enum, make_class, make_function, set_enum
from offload.classes.scope import Scope, own
from offload.errors import CodeRefused, DeserializationError, SerializationError
from offload.stores.memory import MemoryStore
from tests.classes.definitions import module
from tests.classes.sides import Side, cells

PASSWORD = "a-password-of-the-broker"
KEY = "hmac:a-signing-key-of-the-producer"


HOOKS = {
    "names": """
        class Base:
            registry = []
            def __init_subclass__(cls, **more):
                super().__init_subclass__(**more)
                assert cls.__name__ not in Base.registry
                Base.registry.append(cls.__name__)
        class F(Base):
            def run(self): return self.registry
    """,
    "classes": """
        class Base:
            registry = []
            def __init_subclass__(cls):
                cls.registry.append(cls)
        class F(Base):
            def run(self): return [each is F for each in self.registry]
    """,
    "global": """
        registry = {}
        class Base:
            def __init_subclass__(cls):
                if cls.__name__ in registry: raise TypeError("registered twice")
                registry[cls.__name__] = cls.__name__
        class F(Base):
            def run(self): return registry
    """,
    "metaclass": """
        import abc
        class Meta(abc.ABCMeta):
            registry = {}
            def __new__(meta, name, bases, attributes):
                made = super().__new__(meta, name, bases, attributes)
                if name in meta.registry: raise TypeError("registered twice")
                meta.registry[name] = made
                return made
            def __init__(cls, *args):
                super().__init__(*args)
                cls.number = len(cls.registry)
        class Base(metaclass=Meta): pass
        class F(Base):
            def run(self): return {k: v.__name__ for k, v in type(F).registry.items()}, F.number
    """,
    "__init_subclass__ with keywords": """
        class Base:
            tag = 0
            def __init_subclass__(cls, *, tag): cls.tag = tag
        class F(Base, tag=1):
            def run(self): return self.tag
    """,
    "__new__ with keywords": """
        class Meta(type):
            def __new__(meta, name, bases, attributes, tag):
                return super().__new__(meta, name, bases, {**attributes, "tag": tag})
            def __init__(cls, name, bases, attributes, tag): pass
        class F(metaclass=Meta, tag=1):
            def run(self): return self.tag
    """,
    "__prepare__ with keywords": """
        class Meta(type):
            @classmethod
            def __prepare__(meta, name, bases, *, tag): return {"tag": tag}
            def __new__(meta, name, bases, attributes, **more):
                return super().__new__(meta, name, bases, attributes)
            def __init__(cls, name, bases, attributes, **more): pass
        class F(metaclass=Meta, tag=1):
            def run(self): return self.tag
    """,
}
"""Classes whose base class or metaclass acts when a subclass is defined."""


def stored(store):
    """Return all bytes of all versions in a store."""
    pointers = store.pointers
    return b"".join(pointers.read(name) for name in pointers.names("plugins/"))


@pytest.fixture
def sides(memory):
    return Side(memory), Side(memory)


def there_and_back(sides, obj):
    """Return *obj* as the other side loads it."""
    here, there = sides
    return there.registry.pull(
        f"{obj.__module__}.{obj.__qualname__}", here.registry.persist_class(obj)
    )


@pytest.mark.parametrize("name", [n for n, v in cells().items() if isinstance(v, type)])
def test_a_loaded_class_keeps_its_hash(sides, name):
    """A loaded class has the hash that it was pushed with."""
    main = cells()
    if main[name].__module__ != "__main__":
        pytest.skip("imported")
    here, there = sides
    code_hash = here.registry.persist_class(main[name])
    assert there.registry.recover_class(f"__main__.{name}", code_hash) is not main[name]


def test_stored_bytes_do_not_refer_to_cloudpickle():
    """Stored bytes don't use cloudpickle's private formats, which another release may not read."""
    main = cells()
    found = {}
    for name, obj in main.items():
        if isinstance(obj, (type, FunctionType)) and obj.__module__ == "__main__":
            content = dump(obj, ("F", "0" * 64), Scope(), lambda other: (other.__name__, ""))
            texts = {arg for _, arg, _ in pickletools.genops(content) if isinstance(arg, str)}
            found[name] = {text for text in texts if "cloudpickle" in text}
    assert len(found) > 30
    assert not any(found.values())


def test_enums_stored_by_earlier_builds_are_read():
    """Enums stored by earlier builds can be read: their function fills in a class, then its
    members.
    """

    class Color(enum.Enum):
        RED = 1

    def set_state(cls, state):
        cls.label = state

    state = (set_state, "of a class", {"RED": {"note": "of a member"}})
    pickle.loads(pickle.dumps(_set_enum))(Color, state)
    assert (Color.label, Color.RED.note) == ("of a class", "of a member")


def test_submodules_that_code_reaches_through_a_package_are_imported(sides, defined):
    """Code that uses ``package.module`` gets that module imported where it is loaded."""
    import xml.dom.minidom

    function = defined("def f(): return xml.dom.minidom.__name__", "f")
    function.__globals__["xml"] = xml
    here, there = sides
    payload = here.write(function)
    name = "xml.dom.minidom"
    module = sys.modules.pop(name)
    del xml.dom.minidom
    try:
        assert there.read(payload)() == name
        assert sys.modules[name] is not module
    finally:
        sys.modules[name] = xml.dom.minidom = module


def test_a_loaded_dataclass_can_be_a_base(sides):
    """Fields without a default stay required in subclasses of a loaded dataclass."""
    point = there_and_back(sides, cells()["Point"])
    assert dataclasses.fields(point)[0].default is dataclasses.MISSING
    derived = dataclasses.make_dataclass("Derived", [], bases=(point,))
    with pytest.raises(TypeError, match="'x'"):
        derived()


def test_slots_and_names_are_kept(sides):
    """Instances have slots and no dict, and a nested class keeps its name."""
    main = cells()
    slotted = there_and_back(sides, main["Slots"])
    assert slotted.__slots__ == ("__weakref__", "_b", "a")
    with pytest.raises(AttributeError):
        slotted().other = 1
    inner = there_and_back(sides, main["Outer"].Inner)
    assert (inner.__qualname__, inner.__module__) == ("Outer.Inner", "__main__")


def test_private_slots_are_kept(sides, defined):
    """Slots with mangled names work."""
    cls = defined("""
        class F:
            __slots__ = ("__a",)
            def __init__(self): self.__a = 1
            def run(self): return self.__a
    """)
    assert there_and_back(sides, cls)().run() == 1


def test_super_and_class_cells_are_of_the_loaded_class(sides):
    """super() and __class__ in methods refer to the loaded class."""
    child = there_and_back(sides, cells()["Child"])
    assert child().run() == ("base+child", "child", "Child")
    assert child.run.__closure__[0].cell_contents is child


def test_a_function_is_not_shared_with_its_sender(sides):
    """A loaded function has its own globals; its changes are private."""
    main = cells()
    scale = there_and_back(sides, main["scale"])
    assert scale(2) == 2000
    scale.__globals__["FACTOR"] = 1
    assert main["scale"](2) == 2000


def test_a_cached_function_returns_as_the_same_object(memory, monkeypatch):
    """A function wrapped by lru_cache keeps its parameters, and returns home as the same object."""
    main = cells()
    here, there = (Side(memory, accept=("json", "pickle")) for _ in range(2))
    payload = here.write(main["cached"], "pickle")
    assert b"cloudpickle" not in payload.head
    arrived = there.read(payload)
    assert arrived(1) == 1001
    assert arrived.cache_parameters() == {"maxsize": 7, "typed": False}
    monkeypatch.setattr(sys.modules["__main__"], "cached", main["cached"], raising=False)
    assert here.read(there.write(arrived, "pickle")) is main["cached"]


@pytest.fixture
def app():
    """Return an app with a password, and what code can reach of it."""
    app = Celery(
        "producer",
        broker=f"redis://:{PASSWORD}@127.0.0.1:1/0",
        backend=f"redis://:{PASSWORD}@127.0.0.1:1/1",
        set_as_current=False,
    )
    app.conf.timezone = "Europe/Vienna"
    app.offload = Offload(
        app, store="memory://", code="trusted", signing_key=KEY, secret="secret-of-references"
    )

    @app.task(name="shop.add", shared=False)
    def add(a, b):
        return a + b

    app.add = add
    yield app
    app.close()


REFERS = """
class F:
    def run(self):
        return (
            app.main, app.conf.timezone, conf.timezone, task.name, task.app is app,
            type(backend).__name__, offload.app is app, offload.classes is classes,
        )
    def current(self):
        return current_app.main
"""


def test_code_gets_the_app_of_the_process_that_loads_it(app, defined):
    """Apps, settings, tasks, backends, Offload, and registries are shipped by role, and code gets
    those of the process that loads it; no password or key is stored.
    """
    cls = defined(REFERS)
    cls.run.__globals__.update(
        app=app,
        conf=app.conf,
        task=app.add,
        backend=app.backend,
        offload=app.offload,
        classes=app.offload.classes,
    )
    store = MemoryStore()
    here = Side(store)
    payload = here.write(cls())
    content = stored(store)
    for secret in (PASSWORD, KEY.partition(":")[2], "secret-of-references", "127.0.0.1", "Vienna"):
        assert secret.encode() not in content

    worker = Celery("worker", broker="memory://", backend="cache+memory://", set_as_current=False)
    worker.offload = Offload(worker, store="memory://", code="trusted")

    @worker.task(name="shop.add", shared=False)
    def add(a, b):
        return a - b

    worker.offload._runtime._store = store
    head = [memoryview(bytearray(view)) for view in payload.buffers]
    value = worker.offload._runtime.content.serializers.decode("tree", payload.head, head)
    assert value.run() == ("worker", None, None, "shop.add", True, "CacheBackend", True, True)
    worker.close()


def test_a_registry_alone_stores_no_key(memory, defined):
    """A global registry becomes the one that loads the code."""
    function = defined("def f(): return classes", "f")
    here = Side(memory, signing_key=KEY)
    function.__globals__["classes"] = here.registry
    payload = here.write(function)
    assert KEY.partition(":")[2].encode() not in stored(memory)
    there = Side(memory)
    assert there.read(payload)() is there.registry
    with pytest.raises(CodeRefused, match="without a class registry"):
        pickle.loads(pickle.dumps(ClassRegistry(memory)))


@pytest.mark.parametrize(
    "function",
    (
        "classes.apps own",
        "classes.pickling _cached",
        "classes.pickling _cached_property",
        "classes.pickling _of_types",
        "classes.pickling _skeleton",
        "classes.pickling own_registry",
        "classes.pickling shipped",
        "classes.reducers _dispatch",
        "classes.reducers _dispatch_method",
        "classes.reducers _named",
        "classes.reducers _of_dataclasses",
        "classes.reducers make_class",
        "classes.reducers make_enum",
        "classes.reducers make_function",
        "classes.reducers set_class",
        "classes.reducers set_enum",
        "classes.reducers set_function",
        "classes.source _imported",
    ),
)
def test_stored_code_names_the_same_functions(function):
    """A function that stored code names is loaded, and stored again, under that name."""
    module, name = f"offload.{function}".split()
    found = pickle.loads(f"c{module}\n{name}\n.".encode())
    assert pickle.dumps(found, protocol=0).startswith(f"c{module}\n{name}\n".encode())


@pytest.mark.parametrize(
    ("former", "function"),
    (
        ("registry.apps own", own),
        ("registry.by_value make_class", make_class),
        ("registry.functions make_function", make_function),
        ("registry.kinds set_enum", set_enum),
        ("registry.pickling shipped", shipped),
    ),
)
def test_former_modules_are_still_found(former, function):
    """Code that was stored before modules were renamed names functions that are still found."""
    module, name = f"offload.{former}".split()
    assert pickle.loads(f"c{module}\n{name}\n.".encode()) is function


class TestCannot:
    @pytest.mark.parametrize("source", HOOKS.values(), ids=HOOKS)
    def test_shipped_hooks_do_not_run_again(self, sides, defined, source):
        """Hooks of shipped bases and metaclasses don't run again for loaded classes: their
        registries keep their content, and no keywords are needed. Later subclasses run them.
        """
        here, there = sides
        cls = defined(source)
        was = str(cls().run())
        arrived = there.read(here.write(cls()))
        assert str(arrived.run()) == was
        assert str(there.read(here.write([cls()]))[0].run()) == was
        kind = type(arrived)
        type(kind)("Later", (kind,), {}, **({"tag": 5} if "tag" in source else {}))
        of_class = "self.registry" in source or "type(F).registry" in source
        assert (str(arrived.run()) != was) == of_class
        assert here.read(there.write(arrived)).__class__ is cls

    @pytest.mark.parametrize(
        ("library", "message"),
        (
            (HOOKS["__init_subclass__ with keywords"], r"Base\.__init_subclass__ requires .*'tag'"),
            (HOOKS["__new__ with keywords"], r"Meta\.__new__ requires .*'tag'"),
            (HOOKS["__prepare__ with keywords"], r"Meta\.__prepare__ requires .*'tag'"),
        ),
    )
    def test_a_class_that_needs_keywords_is_refused_by_the_sender(
        self, sides, defined, library, message
    ):
        """A class that a library can't create again without its keywords is refused at the
        producer, with its name and the reason; nothing is stored.
        """
        here, _ = sides
        with module("a_library", textwrap.dedent(library)):
            cls = defined("from a_library import F as Base\nclass F(Base, tag=1): pass")
            with pytest.raises(SerializationError, match=rf"__main__\.F cannot.* {message}"):
                here.write(cls())
        assert not here.written

    def test_hooks_of_a_library_run_where_a_class_is_loaded(self, sides, defined):
        """A library's hooks run in the worker, so that its registry there has the class, too."""
        here, there = sides
        library = """
            class Plugin:
                names = []
                def __init_subclass__(cls): Plugin.names.append(cls.__name__)
        """
        source = "from a_library import Plugin\nclass F(Plugin): pass"
        with module("a_library", textwrap.dedent(library)) as plugins:
            payload = here.write(defined(source)())
            there.read(payload)
            assert plugins.Plugin.names == ["F", "F"]

    def test_tracebacks_name_the_version_and_the_cell(self, sides):
        """A traceback through shipped code, also a nested function, shows class, hash, and file."""
        here, there = sides
        names = {"__name__": "__main__"}
        source = "class F:\n    def run(self):\n        return [1 / x for x in (lambda: [0])()]"
        exec(compile(source, "/tmp/ipykernel_7/42.py", "exec"), names)
        arrived = there.read(here.write(names["F"]()))
        with pytest.raises(ZeroDivisionError) as caught:
            arrived.run()
        code_hash = here.registry.get_class_hash(names["F"])
        places = {str(entry.path) for entry in caught.traceback[1:]}
        assert places == {f"<__main__.F@{code_hash[:12]} 42.py>"}
        assert caught.traceback[-1].lineno + 1 == 3

    def test_a_class_with_a_lock_is_refused_by_the_sender(self, sides, defined):
        """A class that depends on a lock is refused with the lock's location."""
        here, _ = sides
        cls = defined("class F:\n    def run(self): return lock")
        cls.run.__globals__["lock"] = threading.Lock()
        with pytest.raises(SerializationError, match=r"F cannot be shipped: run.*lock"):
            here.write(cls())

    def test_a_class_that_cannot_be_created_is_named(self, sides, defined):
        """If a library's base class fails without attributes that are set later, the error names
        the class.
        """
        here, there = sides
        library = "class Base:\n    def __init_subclass__(cls): cls.name.upper()"
        with module("a_library", library):
            cls = defined("from a_library import Base\nclass F(Base):\n    name = 'f'")
            payload = here.write(cls())
            with pytest.raises(DeserializationError, match=r"class __main__\.F@.* can't be loaded"):
                there.read(payload)

    def test_a_missing_import_is_named(self, sides, defined):
        """If a class imports something that is missing, the error names both."""
        here, there = sides
        missing = ModuleType("missing_where_it_is_read")
        exec("def helper(): return 1", vars(missing))
        cls = defined("class F:\n    def run(self): return helper()")
        cls.run.__globals__["helper"] = missing.helper
        sys.modules[missing.__name__] = missing
        try:
            payload = here.write(cls())
        finally:
            del sys.modules[missing.__name__]
        with pytest.raises(
            DeserializationError, match=r"__main__\.F@.*No module named 'missing_where_it_is_read'"
        ):
            there.read(payload)

    def test_a_value_cannot_contain_a_class(self, sides, defined):
        """A pickle that names a version and contains its code is refused: only the stored version
        is loaded.
        """
        _, there = sides
        cls = defined("class F:\n    pass")
        pair = ("__main__.F", there.registry.get_class_hash(cls))
        content = dump(cls, pair, Scope(), lambda _: pair)
        with pytest.raises(CodeRefused, match="values can't contain code"):
            load(content, there.registry)


def test_the_same_class_gives_the_same_bytes(defined):
    """The stored bytes don't depend on the time of the push."""
    source = textwrap.dedent("""
        class F:
            a, b = 1, {"x": 2}
            def run(self, n=3): return {n, 1, 2}
    """)
    contents = {
        dump(cls, ("__main__.F", "0" * 64), Scope(), lambda _: ("", ""))
        for cls in (defined(source), defined(source))
    }
    assert len(contents) == 1
    assert not any(
        "cloudpickle" in str(arg) and "tracker" in str(arg)
        for _, arg, _ in pickletools.genops(contents.pop())
    )
