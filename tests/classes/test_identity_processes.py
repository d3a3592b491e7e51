"""A class has the same hash in every process, whatever its hash seed and kind of module."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.classes.changes import CHANGES, CONSTANTS, SAME, change, possible
from tests.support.processes import JsonProcess

HASH = re.compile("[0-9a-f]{64}")
SEEDS = {"script": "1", "module": "2", "notebook": "3"}


class HashingProcess(JsonProcess):
    """A process of ``hashing.py`` that defines classes in *where*."""

    def __init__(self, where, seed):
        command = [sys.executable, str(Path(__file__).with_name("hashing.py"))]
        super().__init__(command, {**os.environ, "PYTHONHASHSEED": seed})
        self._where = where

    def ask(self, **question):
        self.send({"where": self._where, **question})


@pytest.fixture(scope="module")
def processes():
    """Processes with different hash seeds that define classes in different places."""
    made = [HashingProcess(where, seed) for where, seed in SEEDS.items()]
    yield made
    for process in made:
        process.close()


def answers(processes, sources):
    """Return the hashes of each source in each process."""
    found = []
    for source in sources:
        for process in processes:
            process.ask(source=source)
        found.append([process.receive() for process in processes])
    return found


def all_sources():
    for each in (*possible(CHANGES).values(), *possible(SAME).values()):
        yield from (each.before, each.after)
    for value, _ in CONSTANTS.values():
        yield change(
            f"X = {value}\nclass F:\n    y = {value}\n    def f(self): return X", ""
        ).before


def test_processes_agree(processes):
    """Every class in the tables has the same hash in scripts, modules, and notebooks."""
    sources = list(all_sources())
    for source, found in zip(sources, answers(processes, sources), strict=True):
        assert len(set(found)) == 1, (found, source)
        assert HASH.fullmatch(found[0]), (found, source)


def test_a_class_loaded_in_another_process_has_the_same_hash(processes, tmp_path):
    """A process that loads a version from a store computes the hash that it was pushed with."""
    url = f"file://{tmp_path}/store?fsync=false"
    here, _, there = processes
    for source in all_sources():
        here.ask(source=source, url=url)
        name, code_hash = pair = here.receive()
        there.ask(url=url, pair=pair)
        assert there.receive() == code_hash, (name, source)


# -- random classes

NAMES = st.sampled_from(["a", "b", "value", "_hidden", "__mangled", "état"])
ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4),
    st.binary(max_size=4),
)
HASHABLE = st.recursive(
    ATOMS, lambda inner: st.tuples(inner) | st.frozensets(inner, max_size=4), max_leaves=4
)
VALUES = st.recursive(
    HASHABLE | st.sets(HASHABLE, max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HASHABLE, inner, max_size=3),
    max_leaves=6,
)
EXPRESSIONS = st.sampled_from(
    [
        "x in {{'p', 'q', 'r', {0!r}}}",
        "{{y: helper(y) for y in x if y != {0!r}}}",
        "[LIMIT, {0!r}, *x]",
        "(lambda z={0!r}: z or self)()",
        "{0!r} if x else super().__repr__()",
        "x and {{1, 2}} or {0!r}",
        "Other({0!r}) if isinstance(x, Other) else F",
        "f'{{x!r:>{{len(x)}}}}' * {0!r}",
    ]
)
DECORATORS = st.sampled_from(
    ["", "@staticmethod", "@property", "@functools.cache", "@wrapped({0!r})", "@classmethod"]
)
BASES = st.sampled_from(["object", "Base", "Generic[T]", "Base, Generic[T]", "abc.ABC", "dict"])


@st.composite
def methods(draw):
    value = draw(ATOMS)
    decorator = draw(DECORATORS).format(value)
    arguments = "self" if decorator == "@property" else f"self, x={draw(HASHABLE)!r}, *y, z: T = 1"
    body = f"x = {draw(HASHABLE)!r}\n        return {draw(EXPRESSIONS).format(value)}"
    if draw(st.booleans()):
        body = (
            f"try:\n            pass\n        finally:\n            y = {value!r}\n        {body}"
        )
    if draw(st.booleans()):
        body = f"'''A docstring.'''\n        {body}"
    return f"    {decorator}\n    def {draw(NAMES)}({arguments}):\n        {body}\n"


@st.composite
def sources(draw):
    kept = [f"    {draw(NAMES)} = {draw(VALUES)!r}\n" for _ in range(draw(st.integers(0, 3)))]
    own = draw(st.lists(methods(), max_size=4))
    made = "@dataclass\n" if draw(st.booleans()) else ""
    fields = "    first: int = 1\n    more: set = field(default_factory=set)\n" if made else ""
    source = f"""
T = TypeVar("T")
LIMIT = {draw(VALUES)!r}
def wrapped(by):
    def wrap(function):
        @functools.wraps(function)
        def wrapper(*args): return function(*args), by
        return wrapper
    return wrap
def helper(x): return x, LIMIT, {draw(HASHABLE)!r}
class Base:
    x = {draw(VALUES)!r}
    def get(self): return F, self.x
class Other(Base):
    __slots__ = ("a",)
{made}class F({draw(BASES)}):
    '''About F.'''
{fields}{"".join(kept)}{"".join(own)}    pass
"""
    return change(source, "").before


@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(source=sources())
def test_processes_agree_on_any_class(processes, source):
    """Every process computes the same hash of a random class."""
    [found] = answers(processes, [source])
    assert len(set(found)) == 1
    assert HASH.fullmatch(found[0])
