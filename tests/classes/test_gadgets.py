"""Trees written by an attacker: what they can name, construct, and call under each policy."""

from __future__ import annotations

import subprocess
import tracemalloc

import orjson
import pandas as pd
import pytest

from offload.classes.hashing import identify
from offload.classes.scope import Scope
from offload.errors import CodeError, CodeRefused, DeserializationError, OffloadError
from offload.inspect.preview import preview
from offload.serializers import Registry
from offload.serializers.objects import READERS
from tests.classes.sides import Side

KEY = "hmac:a key for the tests"
POLICIES = {
    "off": {"mode": "off"},
    "signed": {"mode": "signed", "signing_key": KEY},
    "signed, allowed": {"mode": "signed", "signing_key": KEY, "allow": ["subprocess.*"]},
    "other names": {"mode": "trusted", "allow": ["shop.*"]},
    "trusted": {"mode": "trusted"},
}
LIBRARY = """
calls = []
class Base:
    def __new__(cls, *args, **kwargs):
        calls.append("new")
        return object.__new__(cls)
    def __init__(self, *args): calls.append("init")
    def __setstate__(self, state): calls.append("setstate")
    def __setattr__(self, name, value): calls.append("setattr")
    def __setitem__(self, key, value): calls.append("setitem")
    def __class_getitem__(cls, item): calls.append("getitem")
    def extend(self, items): calls.append("extend")
    def run(self, *args): calls.append("run")
    @classmethod
    def make(cls, *args): calls.append("make")
    @property
    def shown(self): calls.append("shown")
class Meta(type):
    def __call__(cls, *args): calls.append("meta")
    def __getitem__(cls, item): calls.append("meta getitem")
    def made(cls, *args): calls.append("made")
class WithMeta(metaclass=Meta): pass
class Deleting:
    def __del__(self): calls.append("del")
"""
MINE = """
import enum, json, typing
import library_of_others as library
T = typing.TypeVar("T")
class F(library.Base):
    pass
class Plain(library.Base):
    def __new__(cls): return object.__new__(cls)
    def __init__(self): pass
    def own(self): return "own"
    @classmethod
    def of(cls): return cls()
    taken = library.Base.extend
    table = property(lambda self: self.calls.append("property"))
class Deleting(library.Deleting): pass
class WithMeta(library.WithMeta): pass
class Meta(type): pass
class Color(enum.Enum):
    RED = 1
class Free(enum.Enum): pass
class Point: pass
shared = Point()
def the_one(): return json.dumps
def table(): return {"a": 1}
class Generic(typing.Generic[T]): pass
"""


def tree(registry, classes, node):
    pairs = [[f"{cls.__module__}.{cls.__qualname__}", registry.push(cls)] for cls in classes]
    return orjson.dumps({"shipped": [pairs, node]})


def frame():
    return orjson.loads(Registry(()).encode(pd.DataFrame({"a": [1]}), "json").head)


def prepared(memory, module, defined, node):
    """Return the library, a side that pushed the classes of `MINE`, and the start of a tree."""
    library, side = module(LIBRARY, name="library_of_others"), Side(memory)
    names = ("F", "Plain", "Deleting", "WithMeta", "Meta", "Color", "Free", "the_one", "table")
    names += ("Generic",)
    head = tree(side.registry, [defined(MINE, name) for name in names], node)
    library.calls.clear()
    return library, side, head


@pytest.mark.parametrize("tag", READERS)
@pytest.mark.parametrize("nested", (False, True), ids=("alone", "nested"))
def test_without_a_policy_that_allows_code_the_decoder_knows_none_of_its_nodes(memory, tag, nested):
    """In mode off, or without a registry, nothing of a code node is read."""
    body = ["call", {"bound": [frame(), "eval"]}, 0, {"tuple": ["1 + 1"]}]
    node = {tag: body if tag == "object" else [[["subprocess.run", "0" * 64]], {"code": 0}]}
    head = orjson.dumps([{"tuple": [node]}] if nested else node)
    side = Side(memory, mode="off")
    with pytest.raises(CodeRefused, match="offload_code is 'off'"):
        side.serializers.decode("tree", head, [])
    assert side.counters.snapshot()["classes_refused"] == 1
    with pytest.raises(DeserializationError, match="without a class registry"):
        Registry(()).decode("tree", head, [])
    assert not side.calls


@pytest.mark.parametrize("policy", POLICIES)
def test_a_name_from_data_is_never_looked_up_among_imported_modules(memory, tmp_path, policy):
    """A name in data only finds what was registered, sent, or defined in ``__main__``, whatever its
    hash.
    """
    side = Side(memory, **POLICIES[policy])
    code_hash = identify(subprocess.run, Scope()).hash
    assert side.registry.get_class_hash(subprocess.run) == code_hash
    mark = tmp_path / "mark"
    node = {"object": ["call", {"code": 0}, 0, {"tuple": [["touch", str(mark)]]}]}
    head = orjson.dumps({"shipped": [[["subprocess.run", code_hash]], node]})
    with pytest.raises(CodeError):
        side.serializers.decode("tree", head, [])
    assert not mark.exists()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", ("registered", "in a registered module", "in main"))
def test_local_classes_are_subject_to_the_policy(memory, module, defined, monkeypatch, policy, way):
    """A registered class, or one of ``__main__``, is used only if the policy would let it be
    pulled.
    """
    side = Side(memory, **POLICIES[policy])
    if way == "in main":
        cls = defined("class F: pass")
        monkeypatch.setattr("__main__.F", cls, raising=False)
    else:
        shop = module("class F: pass")
        cls = shop.F
        side.registry.register(cls if way == "registered" else shop)
    pair = [f"{cls.__module__}.F", side.registry.get_class_hash(cls)]
    head = orjson.dumps({"shipped": [[pair], {"code": 0}]})
    allowed = policy in ("trusted", "signed")
    if policy == "signed":
        with pytest.raises(CodeError):  # without a signature
            side.serializers.decode("tree", head, [])
        Side(memory, **POLICIES[policy]).registry.push(cls)
    if allowed:
        assert side.serializers.decode("tree", head, []) is cls
    else:
        with pytest.raises(CodeRefused):
            side.serializers.decode("tree", head, [])


@pytest.mark.parametrize(
    "node",
    (
        {"object": ["new", 0, 0]},
        {"object": ["call", {"code": 0}, 0, {"tuple": [1]}]},
        {"object": ["new", 1, 0, None, None, None, [1]]},
        {"object": ["new", 1, 0, None, None, None, None, [["k", 1]]]},
        {"object": ["call", {"bound": [{"code": 1}, "make"]}, 0]},
        {"object": ["call", {"bound": [{"object": ["new", 1, 0]}, "run"]}, 0]},
        {"object": ["call", {"partial": [{"code": 0}, {"tuple": []}, {"dict": [[], []]}]}, 0]},
        {"bound": [{"object": ["new", 1, 0]}, "shown"]},
        {"bound": [{"object": ["new", 1, 0]}, "table"]},
        {"bound": [{"object": ["new", 1, 0]}, "__init_subclass__"]},
        {"bound": [{"code": 3}, "made"]},
        {"bound": [{"code": 1}, "mro"]},
        {"object": ["new", 2, 0]},
        {"object": ["call", {"code": 3}, 0]},
        {"object": ["call", {"code": 4}, 0, {"tuple": ["X", {"tuple": []}, {"dict": [[], []]}]}]},
        {"object": ["new", 4, 0, {"tuple": ["X", {"tuple": []}, {"dict": [[], []]}]}]},
        {"alias": [{"code": 1}, {"type": "int"}]},
        {"alias": [{"code": 3}, {"type": "int"}]},
        {"partial": [{"code": 0}, {"tuple": []}, {"dict": [[], []]}]},
        {"partial": [{"bound": [frame(), "eval"]}, {"tuple": ["1"]}, {"dict": [[], []]}]},
        {"bound": [frame(), "eval"]},
        {"bound": [frame(), "to_csv"]},
        {"bound": ["text", "upper"]},
        {"bound": [[], "append"]},
        {"bound": [{"type": "int"}, "from_bytes"]},
        {"object": ["call", {"bound": [frame(), "to_csv"]}, 0, {"tuple": ["/nowhere"]}]},
        {"object": ["call", {"type": "list"}, 0]},
        {"object": ["call", {"code": 5}, 0, [1], None, {"dict": [["_value_"], [2]]}]},
        {"object": ["new", 5, 0, [1], None, {"dict": [["_value_"], [2]]}]},
        {"object": ["call", {"code": 6}, 0, ["New", ["a"]]]},
        {"object": ["call", {"code": 6}, 0, ["New"], {"dict": [["names"], [["a"]]]}]},
        {"object": ["call", {"code": 7}, 0, None, None, {"dict": [["__wrapped__"], [2]]}]},
        {"object": ["call", {"code": 8}, 0, None, None, None, None, [["a", 2]]]},
        {"alias": [{"code": 9}, "__import__('os')"]},
        {"alias": [{"type": "list"}, "__import__('os')"]},
        {"defaultdict": [{"bound": [frame(), "eval"]}, [], []]},
        {"defaultdict": [{"partial": [{"code": 0}, {"tuple": []}, {"dict": [[], []]}]}, [], []]},
    ),
    ids=str,
)
def test_with_code_allowed_no_code_of_a_library_is_called(memory, module, defined, node):
    """Neither a method of a decoded value nor one that a shipped class inherits from a library is
    called.
    """
    library, side, head = prepared(memory, module, defined, node)
    with pytest.raises(OffloadError):
        side.serializers.decode("tree", head, [])
    assert library.calls == []


@pytest.mark.parametrize(
    "state",
    ({"dict": [["shown"], [1]]}, {"tuple": [None, {"dict": [["shown"], [1]]}]}),
    ids=("attributes", "slots"),
)
def test_attributes_are_set_without_code_of_a_library(memory, module, defined, state):
    """Neither ``__setstate__`` nor ``__setattr__`` nor a property of a base class is called."""
    node = {"object": ["new", 1, 0, None, None, state]}
    library, side, head = prepared(memory, module, defined, node)
    assert vars(side.serializers.decode("tree", head, [])) == {"shown": 1}
    assert library.calls == []


def test_with_code_allowed_a_shipped_class_s_own_methods_are_called(memory, module, defined):
    """The constructor, methods, and class methods that a shipped class defines are called."""
    module(LIBRARY, name="library_of_others")
    side = Side(memory)
    cls = defined(MINE, "Plain")
    made = {"object": ["call", {"bound": [{"code": 0}, "of"]}, 0]}
    head = tree(side.registry, [cls], {"bound": [made, "own"]})
    bound = side.serializers.decode("tree", head, [])
    assert type(bound.__self__) is cls
    assert bound() == "own"


def test_instances_of_a_library_s_subclass_travel_by_their_attributes(memory, module, defined):
    """A subclass of a library's class is restored by its attributes, without calling the library's
    ``__setstate__``.
    """
    library = module(
        """
        calls = []
        class Base:
            __slots__ = ("__dict__", "size")
            def __getstate__(self): return {"packed": vars(self), "size": self.size}
            def __setstate__(self, state): calls.append(state)
        """,
        name="library_of_others",
    )
    side = Side(memory)
    cls = defined("import library_of_others\nclass F(library_of_others.Base): pass")
    value = cls()
    value.a, value.size = [1], 3
    arrived = side.read(side.write(value))
    assert (type(arrived), arrived.a, arrived.size) == (cls, [1], 3)
    assert not library.calls


@pytest.mark.parametrize(
    "parts",
    (
        [{"range": [0, 10**7, 1]}],
        [None, None, None, {"range": [0, 10**7, 1]}],
        [None, None, None, None, {"range": [0, 10**7, 1]}],
    ),
    ids=("arguments", "items", "pairs"),
)
def test_arguments_and_items_are_lists(memory, defined, parts):
    """A range in place of an instance's arguments, items, or pairs isn't expanded."""
    side = Side(memory)
    cls = defined("class F(list):\n    def extend(self, items): super().extend(items)")
    head = tree(side.registry, [cls], {"object": ["call", {"code": 0}, 0, *parts]})
    tracemalloc.start()
    try:
        with pytest.raises(OffloadError, match="not a list"):
            side.serializers.decode("tree", head, [])
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_name_leads_through_modules_and_classes_only(memory, monkeypatch):
    """Looking up a local class reads no attributes of objects in ``__main__``."""

    class Asking:
        def __getattribute__(self, name):
            raise AssertionError(name)

    monkeypatch.setattr("__main__.thing", Asking(), raising=False)
    head = orjson.dumps({"shipped": [[["__main__.thing.F", "0" * 64]], {"code": 0}]})
    with pytest.raises(CodeError):
        Side(memory).serializers.decode("tree", head, [])


def test_a_preview_makes_nothing_of_code(memory):
    """Pages and commands that show a malicious tree read only its outline."""
    evil = {"object": ["call", {"bound": [frame(), "eval"]}, 0, {"tuple": ["1"]}]}
    names = {"values": {"objects": [evil]}, "names": [None]}
    node = {"pandas": {"frame": [{"columns": []}, {"range": [0, 1, 1]}, names, None, False]}}
    shown = preview("tree", orjson.dumps(node), [], lambda _number, _limit: b"", 100)
    assert shown.facts.get("columns") in (None, [])
