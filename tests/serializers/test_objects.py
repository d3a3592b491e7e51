"""Instances of shipped classes: as data with a name and a hash, or inside a pickle."""

from __future__ import annotations

import functools
import json
import math
import operator
import threading
from collections import Counter, defaultdict
from fractions import Fraction
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import orjson
import pytest

from offload.errors import CodeRefused, DeserializationError, SerializationError
from offload.serializers import Registry
from offload.stores.memory import MemoryStore
from tests.classes.sides import Side, cells, content

KEY = "hmac:0123456789abcdef"
WAYS = ("json", "json with pickle", "pickle")
MAIN = cells()


@pytest.fixture(params=WAYS)
def sides(request):
    """Return the sender, the receiver, and the serializer of their messages."""
    accept = ("json",) if request.param == "json" else ("json", "pickle")
    native = "pickle" if request.param == "pickle" else "json"
    store = MemoryStore()
    return Side(store, accept=accept), Side(store, accept=accept), native


@pytest.mark.parametrize("kind", MAIN["VALUES"])
def test_an_instance_arrives_as_one_of_the_same_class_and_comes_home(sides, kind):
    """An instance behaves the same at the receiver; sent back, it is equal and of the sender's own
    class.
    """
    here, there, native = sides
    value = MAIN["VALUES"][kind]()
    payload = here.write(value, native)
    assert payload.ships_code
    assert payload.serializer == ("pickle" if native == "pickle" else "tree")
    arrived = there.read(payload)
    assert type(arrived) is not type(value)
    assert type(arrived).__qualname__ == type(value).__qualname__
    assert repr(arrived.run()) == repr(value.run())
    home = here.read(there.write(arrived, native))
    assert type(home) is type(value)
    assert MAIN["state"](home) == MAIN["state"](value)


@pytest.mark.parametrize("kind", MAIN["CALLABLES"])
def test_a_callable_behaves_the_same_at_the_receiver(sides, kind):
    """Functions, closures, partials, and methods can be called at the receiver; classes and
    functions return home as the same objects.
    """
    here, there, native = sides
    function, *args = MAIN["CALLABLES"][kind]
    expected = function(*args)
    arrived = there.read(here.write(function, native))
    assert repr(arrived(*args)) == repr(expected)
    home = here.read(there.write(arrived, native))
    assert repr(home(*args)) == repr(expected)
    if kind in ("function", "lambda", "closure", "recursive", "class"):
        assert home is function


def test_values_and_types_of_python_in_instances_and_partials(sides):
    """Paths, fractions, and the like arrive in instances, and Python's types in partials."""
    here, there, native = sides
    value = [Path("a/b"), Fraction(1, 3), range(3), ip_address("::1"), slice(1), Counter("aa")]
    point = MAIN["Point"](1, [*value, defaultdict(MAIN["scale"]), functools.partial(int, base=2)])
    *arrived, table, binary = there.read(here.write(point, native)).y
    assert arrived == value
    assert list(map(type, arrived)) == list(map(type, value))
    assert table.default_factory(2) == 2000
    assert binary("11") == 3


IMPORTED = {
    "builtin": len,
    "function": json.dumps,
    "compiled": math.sqrt,
    "numpy function": np.sum,
    "ufunc": np.add,
}


@pytest.mark.parametrize("name", IMPORTED)
def test_functions_of_libraries_are_imported_by_signed_versions(name):
    """Under JSON, libraries' functions arrive as themselves, alone, in instances, in partials, and
    as factories; a worker without a signing key can send them on; only allowed names are imported.
    """
    function, store = IMPORTED[name], MemoryStore()
    keys = {"mode": "signed", "verify_keys": [KEY]}
    here, there = Side(store, signing_key=KEY, **keys), Side(store, **keys)
    given = [function, functools.partial(function, 1), defaultdict(function), {1}]
    payload = here.write(MAIN["Point"](1, given))
    alone, partial, factory, _ = there.read(payload).y
    assert alone is partial.func is factory.default_factory is function
    assert partial.args == (1,)
    assert here.read(there.write(there.read(payload))).y[0] is function
    module = getattr(function, "__module__", "numpy")  # numpy's ufuncs have one from 2.2 on
    full = f"{module}.{getattr(function, '__qualname__', function.__name__)}"
    assert full.encode() in payload.head
    [record] = there.registry.versions(full)
    assert there.registry.recover_class(full, record.hash)() is function
    with pytest.raises(CodeRefused, match=f"{full}@.*offload_code_allow"):
        Side(store, allow=["__main__.*"], **keys).read(payload)
    with pytest.raises(CodeRefused, match="offload_code is 'off'"):
        Side(store, mode="off").read(payload)
    assert Side(store, accept=("json", "pickle")).write(function).serializer == "pickle"


def test_imported_functions_take_no_arguments_from_a_tree():
    """An imported function's version takes no arguments from a tree, and other objects aren't
    accepted as such versions.
    """
    store = MemoryStore()
    here, there = Side(store), Side(store)
    [[sqrt]], scale = [orjson.loads(here.write(math.sqrt).head)["shipped"][0]], FUNCTION
    here.write([MAIN["scale"], MAIN["Point"]])
    for node in (
        {"shipped": [[sqrt], {"object": ["call", {"import": 0}, 0, [4]]}]},
        {"shipped": [[sqrt], {"object": ["call", {"code": 0}, 0, {"tuple": [4]}]}]},
        {"shipped": [[sqrt], {"object": ["new", 0, 0]}]},
        {"shipped": [[scale], {"import": 0}]},
        {"shipped": [[POINT], {"import": 0}]},
        {"import": 0},
        {"import": "math:sqrt"},
    ):
        with pytest.raises(DeserializationError):
            there.serializers.decode("tree", orjson.dumps(node), [])


def test_an_itemgetter_is_data_where_code_is_allowed():
    """An itemgetter only reads items, so it is data; methodcaller and attrgetter need pickle."""
    here, there = (Side(store) for store in [MemoryStore()] * 2)
    key = there.read(here.write(MAIN["Point"](1, [operator.itemgetter("a", 1)]))).y[0]
    assert key({"a": 2, 1: 3}) == (2, 3)
    with pytest.raises(CodeRefused):
        Side(MemoryStore(), mode="off").serializers.decode("tree", b'{"itemgetter":["a"]}', [])
    with pytest.raises(SerializationError, match="of type methodcaller"):
        here.write(MAIN["Point"](1, [operator.methodcaller("eval", "1")]))


EXCEPTIONS = """
class Mismatched(Exception):
    def __init__(self, code, *, where):
        super().__init__(f"{code} at {where}")
        self.code = code
class NoFile(OSError): pass
"""


def test_an_exception_keeps_its_arguments_whatever_it_is_made_with():
    """Under JSON, an exception's ``__init__`` isn't called with arguments that it doesn't take; an
    exception with more state than arguments, like OSError, is created by calling it.
    """
    here, there = (Side(store) for store in [MemoryStore()] * 2)
    names = {"__name__": "__main__"}
    exec(EXCEPTIONS, names)
    kinds = names["Mismatched"], names["NoFile"]
    sent = kinds[0](3, where="home"), kinds[1](2, "gone", "f.txt")
    mismatched, missing = there.read(here.write(list(sent)))
    assert (mismatched.args, mismatched.code) == (("3 at home",), 3)
    assert (missing.args, missing.errno, missing.filename) == ((2, "gone"), 2, "f.txt")
    assert [type(each) for each in here.read(there.write([mismatched, missing]))] == [*kinds]


def test_members_of_an_enum_are_those_of_its_class(sides):
    """Enum members, and classes as values, are the same objects at the receiver and when they
    return.
    """
    here, there, native = sides
    color = MAIN["Color"]
    arrived = there.read(here.write([color.RED, color, {color.BLUE: 1}], native))
    assert arrived[0] is arrived[1].RED
    assert list(arrived[2]) == [arrived[1].BLUE]
    home = here.read(there.write(arrived, native))
    assert home[0] is color.RED
    assert home[1] is color


def test_shared_instances_stay_shared(sides):
    """Instances keep their identity within a value, also if they refer to themselves."""
    here, there, native = sides
    point = MAIN["Point"](1)
    point.y.append(point)
    first, [second], third = there.read(here.write((point, [point], MAIN["Point"](1)), native))
    assert first is second
    assert first is first.y[0]
    assert third is not first


def test_items_of_sets_are_shipped(sides):
    """Equal sets give the same bytes, and arrive."""
    here, there, native = sides
    frozen = MAIN["Frozen"]
    shared = frozen(9)
    value = {frozen(1), frozen(2), frozenset({frozen(3)}), (shared, shared)}
    arrived = there.read(here.write(value, native))
    assert len(arrived) == len(value)
    assert {type(each).__name__ for each in arrived} == {"Frozen", "frozenset", "tuple"}
    assert here.read(there.write(arrived, native)) == value


def test_arrays_in_instances_are_not_copied(sides):
    """Arrays in instances are passed as buffers, and arrive writable."""
    here, there, native = sides
    weights = np.arange(10_000.0)
    payload = here.write(MAIN["Network"](weights), native)
    assert sum(view.nbytes for view in payload.buffers) == weights.nbytes
    assert np.shares_memory(np.frombuffer(payload.buffers[0]), weights)
    arrived = there.read(payload)
    arrived.weights[0] = 1


def test_nothing_but_name_and_hash_is_written(sides):
    """The bytes contain a class's name and hash once, however many instances there are."""
    here, _there, native = sides
    many = content(here.write([MAIN["Rich"]() for _ in range(100)], native))
    name, code_hash = "__main__.Rich", here.registry.get_class_hash(MAIN["Rich"])
    assert many.count(name.encode()) == many.count(code_hash.encode()) == 1
    for absent in (b"doubled", b"cached", b"limit", b"Twice", b"cloudpickle", b"co_"):
        assert absent not in many


def test_named_tuples_of_main_are_shipped():
    """A named tuple of ``__main__`` keeps its class, also next to plain data. A local one of a
    module arrives as in plain Celery, and so do objects in other containers.
    """
    here, there = (Side(store) for store in [MemoryStore()] * 2)
    pair, level = MAIN["Pair"](1), MAIN["Level"].LOW
    arrived = there.read(here.write({"rows": [pair, (1, 2)], "level": level}))
    assert type(arrived["rows"][0]).__name__ == "Pair"
    assert type(arrived["rows"][1]) is tuple
    assert arrived["level"].name == "LOW"

    class Local(list):
        pass

    assert there.read(here.write(Local([1]))) == [1]
    within = Side(MemoryStore()).write([functools.reduce(lambda a, _: a, [Counted(a=level)])])
    assert within.serializer == "native:json"


class Counted(dict):
    """A dict subclass that only plain Celery can serialize."""


def test_classes_with_a_json_method():
    """A class with ``__json__`` arrives as plain Celery delivers it."""
    names = {"__name__": "__main__"}
    exec("class Own:\n    def __json__(self): return {'own': 1}", names)
    here, there = (Side(store) for store in [MemoryStore()] * 2)
    assert there.read(here.write(names["Own"]())) == {"own": 1}


@pytest.mark.parametrize("options", ({"mode": "off"}, None), ids=("off", "no registry"))
@pytest.mark.parametrize("native", ("json", "pickle"))
def test_mode_off_changes_nothing(options, native):
    """In mode off, and without a registry, instances are pickled or refused, and subclasses of
    simple types arrive as in plain Celery.
    """
    side = Side(MemoryStore(), accept=("json", "pickle"), **(options or {}))
    serializers = side.serializers if options else Registry({"json", "pickle"})
    plain = Registry({"json"}, side.code if options else None)
    point = MAIN["Point"](1)
    payload = serializers.encode(point, native)
    assert (payload.serializer, payload.ships_code) == ("pickle", False)
    assert type(serializers.decode("pickle", payload.head, [])) is type(point)
    for value in (point, MAIN["Box"][int], functools.partial(MAIN["scale"], 1), MAIN["scale"]):
        with pytest.raises(SerializationError, match="add 'pickle' to accept_content"):
            plain.encode(value, "json")
    pair = plain.encode(MAIN["Pair"](1), "json")
    assert plain.decode(pair.serializer, pair.head, pair.buffers) == [1, "b"]
    assert not side.calls


def test_errors_contain_the_path_in_an_instance():
    """An error about an instance's attribute contains the path to it."""
    point = MAIN["Point"](1, [threading.Lock()])
    with pytest.raises(SerializationError, match=r"of type lock at \['state'\]\['y'\]\[0\]"):
        Side(MemoryStore()).write(point)


def test_readers_that_may_not_load_code_get_an_error():
    """A reader that may not load code gets an error with class and setting."""
    store = MemoryStore()
    payload = Side(store).write(MAIN["Point"](1))
    with pytest.raises(CodeRefused, match=r"__main__\.Point@.*offload_code is 'off'"):
        Side(store, mode="off").read(payload)
    with pytest.raises(DeserializationError, match=r"__main__\.Point"):
        Registry({"json"}).decode(payload.serializer, payload.head, payload.buffers)


POINT = ["__main__.Point", Side(MemoryStore()).registry.get_class_hash(MAIN["Point"])]
FUNCTION = ["__main__.scale", Side(MemoryStore()).registry.get_class_hash(MAIN["scale"])]


@pytest.mark.parametrize(
    "node",
    (
        {"code": 0},
        {"shipped": [[POINT], {"code": 1}]},
        {"shipped": [[POINT], {"code": -1}]},
        {"shipped": [[POINT], {"code": True}]},
        {"shipped": [[POINT], {"code": None}]},
        {"shipped": [[["__main__.Point"]], {"code": 0}]},
        {"shipped": [[[1, 2]], {"code": 0}]},
        {"shipped": ["no", 1]},
        {"shipped": [[POINT], {"shipped": [[POINT], {"code": 0}]}]},
        {"shipped": [[FUNCTION], {"object": ["new", 0, 0]}]},
        {"shipped": [[POINT], {"object": ["other", 0, 0]}]},
        {"shipped": [[POINT], {"object": ["call", {"type": "object"}, 0]}]},
        {"shipped": [[POINT], {"object": ["call", 5, 0]}]},
        {"shipped": [[POINT], {"object": ["call", {"bound": [{"code": 0}, "mro"]}, 0]}]},
        {"shipped": [[POINT], {"bound": [{"code": 0}, "__subclasses__"]}]},
        {"shipped": [[POINT], {"bound": ["text", "upper"]}]},
        {"shipped": [[POINT], {"bound": [{"code": 0}, 5]}]},
        {"shipped": [[POINT], {"alias": [5, 6]}]},
        {"shipped": [[POINT], {"partial": [5, [], {}]}]},
        {"shipped": [[POINT], {"again": 1}]},
        {"type": "Exception"},
        {"type": ["int"]},
    ),
    ids=str,
)
def test_unknown_nodes_are_refused(node):
    """Nodes that no writer produces are an error, and call nothing that isn't shipped."""
    store = MemoryStore()
    here, there = Side(store), Side(store)
    here.write([MAIN["Point"](1), MAIN["scale"]])
    with pytest.raises(DeserializationError):
        there.serializers.decode("tree", orjson.dumps(node), [])
