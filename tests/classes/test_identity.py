"""The hash of a class changes with its behavior and with nothing else."""

from __future__ import annotations

import functools
import logging
import socket
import threading
import types

import pytest

from offload.classes.hashing import identify
from offload.classes.scope import Scope
from offload.errors import SerializationError
from tests.classes.changes import CHANGES, CONSTANTS, SAME, change, possible
from tests.classes.definitions import define, get_class_hash, in_notebook, module

PLACES = {
    "global": "X = {}\ndef F(): return X",
    "class attribute": "class F:\n    x = {}",
    "default": "def F(x={}): pass",
    "keyword default": "def F(*, x={}): pass",
    "closure": "def make(n):\n    def F(): return n\n    return F\nF = make({})",
    "item": "class F:\n    x = [1, ({{'k': {}}},)]",
}


def hash_of(source):
    return get_class_hash(define(source))


@pytest.mark.parametrize("name", possible(CHANGES))
def test_the_hash_changes_with_behaviour(name):
    """Two sources that behave differently have different hashes, which stay the same."""
    each = CHANGES[name]
    before, after = hash_of(each.before), hash_of(each.after)
    assert before != after
    assert (before, after) == (hash_of(each.before), hash_of(each.after))


@pytest.mark.parametrize("name", possible(SAME))
def test_the_hash_does_not_change_with_anything_else(name):
    """Two sources that behave the same have the same hash."""
    assert hash_of(SAME[name].before) == hash_of(SAME[name].after)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CONSTANTS)
def test_values_count_by_content(name, place):
    """A value counts wherever it is, by type and content; equal values have the same hash."""
    a, b = (change(PLACES[place].format(value), "").before for value in CONSTANTS[name])
    assert hash_of(a) == hash_of(a) != hash_of(b)


# -- place of definition

SOURCES = {
    "class": """
        LOG = logging.getLogger(__name__)
        LIMIT = {"a", "b"}
        def helper(x): return x in LIMIT
        class Base(abc.ABC):
            @abc.abstractmethod
            def run(self): ...
        @dataclass
        class F(Base):
            x: int = 1
            log: ClassVar = logging.getLogger(__name__)
            def run(self):
                LOG.info("run")
                class Inner:
                    def deep(self): return super().__repr__()
                return helper(self.x), lambda: Inner
            def again(self) -> "F": return F(2)
        """,
    "function": "def helper(): return F\ndef F(x: int = 3): return helper() or F(x)",
    "enum": "class F(enum.Enum):\n    A = 1\n    def other(self): return F.A",
    "NamedTuple": "class F(NamedTuple):\n    a: int = 1\n    def b(self): return F",
    "generic": (
        "T = TypeVar('T')\nclass F(Generic[T]):\n    def f(self, x: T) -> 'F[T]': return F[int]()"
    ),
    "NewType": "I = NewType('I', int)\ndef F(x: I) -> I: pass",
}


@pytest.mark.parametrize("name", SOURCES)
def test_it_is_the_same_wherever_it_is_defined(name):
    """The hash is the same in a script, a module, a package's module, or a cell, on any line."""
    source = change(SOURCES[name], "").before
    expected = hash_of(source)
    assert hash_of("\n" * 50 + source) == expected
    assert get_class_hash(in_notebook(source, 1)) == expected
    assert get_class_hash(in_notebook(f"# again\n\n{source}", 2)) == expected
    for where, file in (("shop", "/a/shop.py"), ("shop_b.models.filters", "C:\\b\\filters.py")):
        with module(where, source, file) as made:
            assert get_class_hash(made.F) == expected


def _relocate(obj, seen):
    """Change the file, line, and qualified name of all code that *obj* reaches."""
    if id(obj) in seen:
        return
    seen.add(id(obj))
    if isinstance(obj, types.FunctionType):
        obj.__code__ = _elsewhere(obj.__code__)
        used = [v for k, v in obj.__globals__.items() if k in obj.__code__.co_names]
        for each in [*used, *(cell.cell_contents for cell in obj.__closure__ or ())]:
            _relocate(each, seen)
    elif isinstance(obj, type) and obj.__module__ == "__main__":
        for each in vars(obj).values():
            _relocate(getattr(each, "__func__", each), seen)


def _elsewhere(code):
    consts = [_elsewhere(c) if isinstance(c, types.CodeType) else c for c in code.co_consts]
    where = {"co_filename": "<dynamic-code>", "co_firstlineno": 7, "co_linetable": b""}
    if hasattr(code, "co_qualname"):
        where["co_qualname"] = "elsewhere"
    return code.replace(co_consts=tuple(consts), **where)


@pytest.mark.parametrize("name", SOURCES)
def test_file_names_do_not_change_the_hash(name):
    """No file name, line, or qualified name of any code changes the hash, also in generated
    methods; cloudpickle writes others, and each release may write different ones.
    """
    made = define(change(SOURCES[name], "").before)
    before, seen = get_class_hash(made), set()
    _relocate(made, seen)
    assert get_class_hash(made) == before


def test_registering_or_nesting_does_not_change_the_hash():
    """A class that can be imported has the same hash as one that can't."""
    text = "    class F:\n        def f(self): return super().__init__"
    inner = define(f"def make():\n{text}\n    return F\nF = make()")
    with module("shop", f"if True:\n{text}") as made:
        assert get_class_hash(made.F) == get_class_hash(made.F, ["shop"]) == get_class_hash(inner)


# -- dependencies

HELPERS = "def helper(): return {0}\nclass Base:\n    x = {0}\nLIMIT = {0}\nTABLE = {{'k': {0}}}"


def _using(names, imports):
    source = f"{imports}\ndef F():\n    return {names}"
    return define(source)


@pytest.mark.parametrize(
    ("used", "imports", "is_value"),
    (
        ("helper()", "from shop.helpers import helper", False),
        ("Base", "from shop.helpers import Base", False),
        ("LIMIT", "from shop.helpers import LIMIT", True),
        ("TABLE", "from shop.helpers import TABLE", True),
        ("h.helper()", "import shop.helpers as h", False),
        ("h.LIMIT", "import shop.helpers as h", False),
        ("getattr(h, 'LIMIT')", "import shop.helpers as h", False),
    ),
)
def test_imports_count_by_content_if_shipped(used, imports, is_value):
    """Shipped code and modules count by content, others by name; values count by content."""
    found = []
    for number in (1, 2):
        with (
            module("shop") as shop,
            module("shop.helpers", HELPERS.format(number)) as helpers,
        ):
            shop.helpers = helpers
            function = _using(used, imports)
            found.append((get_class_hash(function), get_class_hash(function, ["shop"])))
    (alone, shipped), (other_alone, other_shipped) = found
    assert (alone != other_alone) is is_value
    assert shipped != other_shipped


def test_each_method_may_use_another_part_of_a_module():
    """Each method's use of a shipped module counts."""
    text = "class F:\n    def a(self): return h.helper()\n    def b(self): return h.other()"
    found = set()
    for number in (1, 2):
        source = f"def helper(): pass\ndef other(): return {number}"
        with module("shop_helpers", source) as helpers:
            names = {"__name__": "__main__", "h": helpers}
            exec(text, names)
            found.add(get_class_hash(names["F"], ["shop_helpers"]))
    assert len(found) == 2


def test_unused_parts_of_a_module_do_not_count():
    """Only the used parts of a shipped module count."""
    found = set()
    for number in (1, 2):
        with module("shop", f"def helper(): pass\nUNUSED = {number}") as shop:
            function = define("def F(): return h.helper()")
            function.__globals__["h"] = shop
            found.add(get_class_hash(function, ["shop"]))
    assert len(found) == 1


def test_a_ring_of_classes():
    """A change of any class in a ring of classes changes all their hashes."""
    text = "class A:\n    def f(self): return B\nclass B:\n    def f(self): return C\n"
    text += (
        "class C:\n    x = {}\n    def f(self): return A\nclass D:\n    def f(self): return A, B, C"
    )
    for name in "ABCD":
        a, b = (get_class_hash(define(text.format(n), name)) for n in (1, 2))
        assert a == get_class_hash(define(text.format(1), name)) != b


def test_two_classes_that_do_the_same_are_one():
    """Two classes with the same behavior have one hash and are one version."""
    make = "def make():\n    class P:\n        def f(self): return 1\n    return P\n"
    one = define(f"{make}P = make()\nclass F:\n    x, y = P, P")
    two = define(f"{make}class F:\n    x, y = make(), make()")
    assert get_class_hash(one) == get_class_hash(two)


def test_large_modules_have_a_hash():
    """Thousands of functions and classes that call each other don't exceed the recursion limit."""
    functions = "\n".join(f"def f{n}(): return f{n + 1}()" for n in range(3000))
    classes = "\n".join(f"class C{n}:\n    def f(self): return C{n + 1}" for n in range(300))
    source = (
        f"{functions}\ndef f3000(): return {{}}\n{classes}\nclass C300: pass\ndef F(): f0(), C0"
    )
    assert hash_of(source.format(1)) != hash_of(source.format(2))


# -- libraries


def test_numpy_arrays_count_by_content():
    """Arrays count by dtype, shape, and items, not by memory layout."""
    np = pytest.importorskip("numpy")

    def of(value):
        function = define("def F(): return X")
        function.__globals__["X"] = value
        return get_class_hash(function)

    base = of(np.arange(6).reshape(2, 3))
    assert base == of(np.array([[0, 9, 1, 9, 2, 9], [3, 9, 4, 9, 5, 9]])[:, ::2])
    assert base != of(np.arange(6).reshape(3, 2))
    assert base != of(np.arange(6, dtype="f4").reshape(2, 3))
    assert base != of(np.array([[0, 1, 2], [3, 4, 6]]))
    assert of(np.float32(1)) != of(np.float64(1))
    shared = np.dtype([("a", "i4")])
    assert of((shared, shared)) == of((shared, np.dtype([("a", "i4")])))
    assert of(np.add) != of(np.subtract)


PYDANTIC = """
    from pydantic import (BaseModel, ConfigDict, Field, PrivateAttr, computed_field,
                          field_validator, model_validator)
    T = TypeVar("T")
    def checked(x): return x
    class Part(BaseModel):
        name: str = "p"
    class Pair(BaseModel, Generic[T]):
        first: T
    class F(Part):
        model_config = ConfigDict(validate_assignment=True)
        x: int = Field(1, gt=0)
        y: Optional[List["F"]] = None
        part: Part = Field(default_factory=Part)
        pair: Optional[Pair[int]] = None
        later: "Optional[Later]" = None
        _p: int = PrivateAttr(3)
        @field_validator("x")
        @classmethod
        def _check(cls, value): return checked(value)
        @model_validator(mode="after")
        def _all(self): return self
        @computed_field
        @property
        def double(self) -> int: return self.x * 2
        def run(self): return self.x
    class Later(BaseModel):
        z: int = 0
"""
PYDANTIC_CHANGES = {
    "constraint": ("gt=0", "gt=1"),
    "default": ("Field(1,", "Field(2,"),
    "type": ("x: int", "x: float"),
    "validator": ("return checked(value)", "return value"),
    "validator's helper": ("def checked(x): return x", "def checked(x): return -x"),
    "what it validates": ('field_validator("x")', 'field_validator("part")'),
    "when it validates": ('mode="after"', 'mode="wrap"'),
    "private": ("PrivateAttr(3)", "PrivateAttr(4)"),
    "computed": ("self.x * 2", "self.x * 3"),
    "computed's type": ("-> int", "-> float"),
    "configuration": ("validate_assignment=True", "frozen=True"),
    "factory": ("default_factory=Part", "default_factory=lambda: Part()"),
    "method": ("return self.x\n", "return -self.x\n"),
    "part": ('"p"', '"q"'),
    "argument of a generic": ("Pair[int]", "Pair[str]"),
}


@pytest.mark.parametrize("name", PYDANTIC_CHANGES)
def test_pydantic_models_change_with_behavior(name):
    """Fields, constraints, validators, and configuration change a model's hash."""
    pytest.importorskip("pydantic")
    before = change(PYDANTIC, "").before
    assert before.count(PYDANTIC_CHANGES[name][0]) == 1
    assert hash_of(before) == hash_of(before) != hash_of(before.replace(*PYDANTIC_CHANGES[name]))


def test_pydantic_models_do_not_change_by_use():
    """What pydantic creates on first use doesn't change the hash."""
    pytest.importorskip("pydantic")
    made = define(change(PYDANTIC, "").before)
    before = get_class_hash(made)
    made.model_rebuild(_types_namespace=made.run.__globals__)
    instance = made(x=2, y=[{"x": 3}])
    instance.x = 5
    made.model_validate_json(instance.model_dump_json())
    made.model_json_schema()
    instance.__reduce_ex__(4)
    repr(made.__signature__), made.model_fields, instance.model_copy()
    assert get_class_hash(made) == before


# -- errors

LOCKED = {
    "global": ("def F(): return LOCK", "LOCK"),
    "global of a helper": ("def helper(): return LOCK\ndef F(): return helper()", "helper > LOCK"),
    "closure": ("def make(it):\n    def F(): return it\n    return F\nF = make(LOCK)", "it"),
    "attribute": ("class F:\n    lock = LOCK", "lock"),
    "default": ("class F:\n    def f(self, x=LOCK): pass", "f"),
    "part": ("class F:\n    def f(self): return TABLE\nTABLE = {'a': [LOCK]}", "f > TABLE"),
    "base": ("class Base:\n    lock = LOCK\nclass F(Base): pass", "lock"),
}


@pytest.mark.parametrize("name", LOCKED)
def test_objects_without_content_are_refused_by_name(name):
    """A lock or socket in what would be shipped raises an error that says where it is."""
    source, where = LOCKED[name]
    with socket.socket() as opened:
        for value in (threading.Lock(), opened):
            names = {"__name__": "__main__", "LOCK": value}
            exec(source, names)
            with pytest.raises(SerializationError) as caught:
                get_class_hash(names["F"])
            message = str(caught.value)
            assert f"cannot be shipped: {where}: " in message
            assert "can't be hashed or shipped" in message
            assert type(value).__name__ in message


@pytest.mark.parametrize("value", (1, None, "F", len, functools.partial(len), object()))
def test_only_classes_and_functions_have_a_hash(value):
    """Anything but a class or function is a TypeError."""
    with pytest.raises(TypeError, match="expected a class or function"):
        get_class_hash(value)


# -- caching


def _wide():
    source = """
        def helper(): return LIMIT
        LIMIT = 1
        def make():
            n = 1
            class Base(abc.ABC):
                def get(self): return n
                def up(self):
                    nonlocal n
                    n += 1
            class F(Base):
                x = 1
                def f(self, a=1, *, b=2) -> int: return helper() + missing
            return F
        F = make()
    """
    return define(change(source, "").before)


def _set(names, name, value):
    names[name] = value


IN_PLACE = {
    "global": lambda F: _set(F.f.__globals__, "LIMIT", 2),
    "global that was missing": lambda F: _set(F.f.__globals__, "missing", 2),
    "helper": lambda F: _set(F.f.__globals__, "helper", lambda: 1),
    "closure": lambda F: F().up(),
    "attribute": lambda F: setattr(F, "x", 2),
    "new attribute": lambda F: setattr(F, "y", 2),
    "attribute of a base": lambda F: setattr(F.__base__, "y", 2),
    "attribute away": lambda F: delattr(F, "x"),
    "code": lambda F: setattr(F.f, "__code__", (lambda self, a, *, b: 1).__code__),
    "defaults": lambda F: setattr(F.f, "__defaults__", (2,)),
    "keyword defaults": lambda F: setattr(F.f, "__kwdefaults__", {"b": 3}),
    "keyword default": lambda F: _set(F.f.__kwdefaults__, "b", 3),
    "annotation": lambda F: _set(F.f.__annotations__, "return", str),
    "function's attribute": lambda F: setattr(F.f, "x", 1),
    "bases": lambda F: setattr(F, "__bases__", (type("Other", (F.__base__,), {}),)),
    "registered subclass": lambda F: F.register(int),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_hash_is_cached_until_something_changes(name):
    """A change in place changes the hash and is noticed."""
    cls = _wide()
    before = identify(cls, Scope())
    assert before.dependencies.unchanged()
    IN_PLACE[name](cls)
    assert not before.dependencies.unchanged()
    after = identify(cls, Scope())
    assert after.hash != before.hash
    assert after.dependencies.unchanged()


CONTAINERS = {
    "[1]": lambda value: value.append(2),
    "[1, 2]": lambda value: value.__setitem__(0, 3),
    "[True]": lambda value: value.__setitem__(0, 1),
    "[{'a': [1]}]": lambda value: value[0]["a"].append(2),
    "{'a': 1}": lambda value: value.update(a=2),
    "{'a': 1, 2: 3}": lambda value: value.update(b=2),
    "({1}, 2)": lambda value: value[0].add(2),
    "{1, 2}": lambda value: (value.remove(1), value.add(3)),
}


@pytest.mark.parametrize("content", CONTAINERS)
@pytest.mark.parametrize("place", PLACES)
def test_a_hash_is_cached_until_an_item_changes(place, content):
    """A change in a list, dict, or set, wherever it is, is noticed."""
    value = eval(content)
    names = {"__name__": "__main__", "given": value}
    exec(change(PLACES[place].format("given"), "").before, names)
    before = identify(names["F"], Scope())
    assert before.dependencies.unchanged()
    CONTAINERS[content](value)
    assert not before.dependencies.unchanged()
    assert identify(names["F"], Scope()).hash != before.hash


@pytest.mark.parametrize("place", PLACES)
def test_a_hash_of_a_mutable_object_is_not_cached(place):
    """A mutable object may change unnoticed, so it is hashed every time."""
    names = {"__name__": "__main__", "given": types.SimpleNamespace(a=1)}
    exec(change(PLACES[place].format("given"), "").before, names)
    assert not identify(names["F"], Scope()).dependencies.unchanged()


def test_objects_that_pickle_copies_are_not_cached():
    """An object whose ``__reduce__`` copies its content isn't cached, because the copies don't
    change with it.
    """
    function = define(
        "class Bag:\n"
        "    def __init__(self, items): self.items = items\n"
        "    def __reduce__(self): return Bag, (list(self.items),)\n"
        "BAG = Bag([1])\n"
        "def F(): return BAG"
    )
    before = identify(function, Scope())
    function.__globals__["BAG"].items.append(2)
    assert not before.dependencies.unchanged()
    assert identify(function, Scope()).hash != before.hash


def test_a_dataclass_is_cached():
    """Python's internal data about fields doesn't count as mutable."""
    cls = define(
        "from dataclasses import dataclass, field\n@dataclass(order=True)\nclass F:\n"
        "    a: int\n    b: list = field(default_factory=list)\n    def f(self): return self.a"
    )
    assert identify(cls, Scope()).dependencies.unchanged()


def test_loggers_are_distinguished_by_name():
    """Loggers with different names differ."""
    functions = [define("import logging\ndef F(): return LOG") for _ in range(3)]
    for function, name in zip(functions, ("__main__", "__main__", "other"), strict=True):
        function.__globals__["LOG"] = logging.getLogger(name)
    a, b, other = map(get_class_hash, functions)
    assert a == b != other
