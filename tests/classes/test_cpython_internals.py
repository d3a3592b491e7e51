"""CPython still has the undocumented parts that the class registry uses."""

from __future__ import annotations

import abc
import dataclasses
import enum
import reprlib
import typing

import pytest

from offload.classes.hashing.values import attributes_of
from offload.classes.library_internals import (
    abc_registry,
    dataclass_constant,
    is_repr_guard,
    protocol_init,
)


@dataclasses.dataclass
class Point:
    x: int


class Shown:
    @reprlib.recursive_repr()
    def __repr__(self):
        return "Shown"


@pytest.mark.parametrize("cls", (Point, Shown))
def test_cpython_guards_a_recursive_repr_by_the_set_we_recognize(cls):
    """CPython's wrapper of __repr__ has one set of running reprs, whatever its file name."""
    code, cells = cls.__repr__.__code__, cls.__repr__.__closure__
    copied = code.replace(co_filename="<elsewhere>", co_firstlineno=1)
    found = {n: c.cell_contents for n, c in zip(code.co_freevars, cells, strict=True)}
    assert [n for n in found if is_repr_guard(copied, n)] == ["repr_running"]
    assert found["repr_running"] == set()


def test_cpython_compares_these_constants_of_dataclasses_by_identity():
    """CPython's dataclasses compare these constants by identity, and our list has all of them."""
    (field,) = dataclasses.fields(Point)
    assert dataclass_constant(field.default) == "MISSING"
    assert dataclass_constant(field._field_type) == "_FIELD"
    kinds = {type(each) for each in (field.default, field._field_type, dataclasses.KW_ONLY)}
    kinds.add(type(dataclasses._HAS_DEFAULT_FACTORY))
    theirs = {name for name, each in vars(dataclasses).items() if type(each) in kinds}
    assert {dataclass_constant(getattr(dataclasses, name)) for name in theirs} == theirs


def test_cpython_keeps_the_registered_subclasses_of_an_abstract_class():
    """CPython's _abc returns weak references to registered classes first."""

    class Base(abc.ABC):  # noqa: B024 (nothing has to be abstract)
        pass

    Base.register(Point)
    assert [reference() for reference in abc_registry(Base)] == [Point]


def test_cpython_replaces_the_init_of_protocols():
    """CPython's typing gives each protocol without an __init__ the same one."""

    class Named(typing.Protocol):
        name: str

    assert vars(Named)["__init__"] is protocol_init()


class Plain:
    x = 1


class Generic(typing.Generic[typing.TypeVar("T")]):
    x = 1


class Abstract(abc.ABC):
    x = 1

    @abc.abstractmethod
    def run(self): ...


class Slotted:
    __slots__ = ("a",)


class Color(enum.Enum):
    RED = 1


class Shaped(typing.Protocol):
    x: int


class Pair(typing.NamedTuple):
    a: int = 1


class Item(typing.TypedDict):
    a: int


@pytest.mark.parametrize(
    ("cls", "expected"),
    (
        (Plain, {"x"}),
        (Generic, {"x"}),
        (Abstract, {"x", "run"}),
        (Slotted, {"__slots__"}),
        (Color, {*vars(enum.Enum), "_generate_next_value_"}),
        (Shaped, {"__init__", "__subclasshook__", "_is_protocol", "_is_runtime_protocol"}),
        (
            Pair,
            {"a", "_field_defaults", "_fields", "_make", "_replace", "_asdict", "__match_args__"}
            | {"__getnewargs__", "__new__", "__repr__", "__slots__", "__replace__"},
        ),
        (
            Item,
            {"__optional_keys__", "__required_keys__", "__total__"}
            | {"__closed__", "__extra_items__", "__mutable_keys__", "__readonly_keys__"},
        ),
        (
            Point,
            {"__dataclass_fields__", "__dataclass_params__", "__eq__", "__hash__", "__init__"}
            | {"__match_args__", "__replace__", "__repr__"},
        ),
    ),
    ids=lambda each: each.__name__ if isinstance(each, type) else "",
)
def test_cpython_gives_a_class_no_attributes_that_we_do_not_know(cls, expected):
    """Every attribute that CPython adds to a class affects the hash or is known to be derived."""
    isinstance(object(), cls) if cls not in (Shaped, Item) else None
    assert set(attributes_of(cls)) <= expected
