"""CPython: its undocumented parts that the class registry uses are what it takes them for."""

from __future__ import annotations

import dataclasses
import reprlib

import pytest

from offload.registry.cpython_internals import dataclass_constant, is_repr_guard


@dataclasses.dataclass
class Point:
    x: int


class Shown:
    @reprlib.recursive_repr()
    def __repr__(self):
        return "Shown"


@pytest.mark.parametrize("cls", (Point, Shown))
def test_cpython_guards_a_recursive_repr_by_the_set_we_recognize(cls):
    """CPython's wrapper of __repr__ has one set of reprs in progress, whatever its file name."""
    code, cells = cls.__repr__.__code__, cls.__repr__.__closure__
    copied = code.replace(co_filename="<elsewhere>", co_firstlineno=1)
    found = {n: c.cell_contents for n, c in zip(code.co_freevars, cells, strict=True)}
    assert [n for n in found if is_repr_guard(copied, n)] == ["repr_running"]
    assert found["repr_running"] == set()


def test_cpython_compares_these_constants_of_dataclasses_by_identity():
    """CPython's dataclasses know constants by identity: all that a class has are in our list."""
    (field,) = dataclasses.fields(Point)
    assert dataclass_constant(field.default) == "MISSING"
    assert dataclass_constant(field._field_type) == "_FIELD"
    kinds = {type(each) for each in (field.default, field._field_type, dataclasses.KW_ONLY)}
    kinds.add(type(dataclasses._HAS_DEFAULT_FACTORY))
    theirs = {name for name, each in vars(dataclasses).items() if type(each) in kinds}
    assert {dataclass_constant(getattr(dataclasses, name)) for name in theirs} == theirs
