"""Values arrive as plain Celery delivers them, or else as they were sent."""

from __future__ import annotations

import collections
import dataclasses
import enum
import ipaddress
import pathlib
import zoneinfo
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from uuid import UUID

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.exceptions import DecodeError, EncodeError

from offload.errors import DeserializationError, SerializationError
from offload.serializers import Registry
from offload.serializers.choose import certainly_small

NATIVES = ("json", "pickle", "msgpack", "yaml")


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Point:
    x: int
    y: list


class Model(pydantic.BaseModel):
    name: str
    when: datetime


Pair = collections.namedtuple("Pair", "left right")  # noqa: PYI024 - this is what is tested


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Own:
    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return type(other) is Own and other.value == self.value

    __hash__ = None


class SaysJson:
    def __json__(self):
        return {"said": (1, 2)}

    def __eq__(self, other):
        return type(other) is SaysJson

    __hash__ = None


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
FIXED = timezone(timedelta(hours=-3, minutes=-30), "NST")

VALUES = {
    "None": None,
    "bools": [True, False],
    "ints": [0, -1, 2**31, 2**53 + 1, -(2**63), 2**63 - 1, 2**64 - 1],
    "wide ints": [2**64, -(2**63) - 1, 10**400],
    "floats": [0.0, -0.0, 1.5, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 1e22],
    "not finite": [float("nan"), float("inf"), float("-inf")],
    "a NaN": float("nan"),
    "minus zero": -0.0,
    "complex": 1 - 2j,
    "complex odd": complex(-0.0, float("nan")),
    "str": "text",
    "str empty": "",
    "str long": "some text " * 5000,
    "str wide": "é€😀\x00\x7f\x85\u2028\ufeff" * 3000,
    "str NUL": "a\x00b",
    "str surrogate": "a\ud800b",
    "str surrogate pair": "\ud83d\ude00",
    "str in a list": ["\ud83d\ude00", "\udfff", "x"],
    "str subclass": Text("sub"),
    "int subclass": Number(7),
    "bytes": b"\x00\xff\xfe",
    "bytes text": b"text",
    "bytes empty": b"",
    "bytes long": bytes(range(256)) * 500,
    "bytes within": {"a": [b"\xff", b"x"]},
    "bytearray": bytearray(b"ab\xff"),
    "bytearray within": [bytearray(b"ab")],
    "memoryview": memoryview(b"abcd"),
    "memoryview shaped": memoryview(bytes(24)).cast("I", (2, 3)),
    "memoryview strided": memoryview(b"abcdef")[::2],
    "memoryview empty": memoryview(b""),
    "list": [1, [2, [3, []]]],
    "list empty": [],
    "tuple": (1, (2, "x"), [3]),
    "tuple empty": (),
    "set": {1, 2, 3},
    "set empty": set(),
    "set of text": {"a", "b", "c"},
    "set mixed": {1, "a", None, (1, "b"), 2.5, frozenset({1})},
    "frozenset": frozenset({"x", "y"}),
    "dict": {"z": 1, "a": {"c": [1.5, None], "b": "x"}},
    "dict empty": {},
    "dict of int keys": {1: "a", 2: "b"},
    "dict of bool keys": {True: 1, False: 0},
    "dict of None key": {None: 1},
    "dict of float keys": {1.5: 1, float("inf"): 2},
    "dict of mixed keys": {"a": 1, 2: 2, None: 3},
    "dict of tuple keys": {(1, 2): "a"},
    "dict of bytes keys": {b"x": 1},
    "dict of keys that clash": {1: "int", "1": "str"},
    "dict of str subclass keys": {Text("k"): 1},
    "dict subclass": collections.OrderedDict([("b", 1), ("a", 2)]),
    "defaultdict": collections.defaultdict(int, a=1),
    "Counter": collections.Counter("abca"),
    "defaultdict of code": [collections.defaultdict(lambda: 1, a=1), {1}],
    "dict types beside a set": [
        *(collections.OrderedDict([("b", 1), (2, (3,))]), collections.Counter("abca")),
        *(collections.defaultdict(list, a=[1]), collections.defaultdict(None), {1}),
    ],
    "deque": [collections.deque([1, (2,)]), collections.deque([1], maxlen=3)],
    "looks like kombu's": {"__type__": "uuid", "__value__": {"hex": "0" * 32}},
    "looks like kombu's, unknown": [{"__type__": "nonsense", "__value__": 1}],
    "looks like kombu's, not quite": {"__type__": "uuid", "__value__": 1, "more": 2},
    "datetime": datetime(2026, 2, 28, 23, 59, 59, 999999),
    "datetime UTC": datetime(2026, 1, 1, tzinfo=timezone.utc),
    "datetime fixed": datetime(2026, 1, 1, tzinfo=FIXED),
    "datetime zone": datetime(2026, 7, 1, 12, tzinfo=BERLIN),
    "datetime fold": datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
    "datetime in a set": {datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1)},
    "datetimes beside a set": [datetime(2026, 1, 1, tzinfo=FIXED), datetime(1, 1, 1), {1}],
    "date": date(2026, 1, 31),
    "time": time(12, 30, 1, 5),
    "time zone": time(12, 30, tzinfo=timezone.utc),
    "timedelta": timedelta(days=-1, microseconds=5),
    "timezone": FIXED,
    "ZoneInfo": BERLIN,
    "Decimal": Decimal("1.10"),
    "Decimal odd": [Decimal("NaN"), Decimal("-Infinity"), Decimal("1E+50"), Decimal("-0")],
    "Decimals beside a set": [Decimal("-0.00"), {1}],
    "UUID": UUID("12345678123456781234567812345678"),
    "Fraction": [Fraction(1, 3), Fraction(-(2**80), 3)],
    "range": [range(3), range(5, -(2**70), -2)],
    "slice": [slice(1, 2), slice(None, {1}, "x")],
    "paths": [
        pathlib.Path("a/../b"),
        pathlib.PurePosixPath("/x"),
        pathlib.PureWindowsPath("C:\\y"),
    ],
    "addresses": [ipaddress.ip_address("10.0.0.1"), ipaddress.ip_interface("fe80::1/64")],
    "networks": {ipaddress.ip_network("10.0.0.0/8"): ipaddress.ip_network("fe80::/64")},
    "Ellipsis": ...,
    "Enum": Colour.RED,
    "IntEnum": Level.LOW,
    "dataclass": Point(1, [2]),
    "namedtuple": Pair(1, (2,)),
    "pydantic": Model(name="x", when=datetime(2026, 1, 1)),
    "own class": Own([1, 2]),
    "own class within": {"a": [Own(1)]},
    "says how it is JSON": SaysJson(),
    "class": Own,
    "function": zoneinfo.available_timezones,
    "exception": KeyError,
    "numpy array": np.arange(12.0).reshape(3, 4),
    "numpy within": {"a": [np.arange(3), (1, 2)], 5: np.zeros((0, 2)), "t": (1,)},
    "numpy float64": np.float64(1.5),
    "numpy float32": np.float32(1.5),
    "numpy int64": np.int64(5),
    "numpy bool": np.bool_(True),
    "numpy str": np.str_("x"),
    "numpy bytes": np.bytes_(b"x"),
    "numpy datetime": np.datetime64("2026-01-01", "D"),
    "numpy objects": np.array([1, "a", None], dtype=object),
    "pandas frame": pd.DataFrame({"a": [1, 2], "b": ["x", None]}),
    "pandas within": [pd.DataFrame({"a": [1.5]}), {"s": pd.Series([1, 2], name="n")}],
    "pandas Timestamp": pd.Timestamp("2026-01-01 10:00", tz="Europe/Berlin"),
    "pandas sparse": pd.DataFrame({"s": pd.arrays.SparseArray([0, 0, 1])}),
    "polars frame": pl.DataFrame({"a": [1, None], "s": ["x", "y"]}),
    "pyarrow table": pa.table({"a": [1, None], "s": ["x", "y"]}),
    "plain beside odd": [{"a": 1, "b": [1, 2]}, {"wide": 2**70}, {1, 2}, {"s": "\ud800"}],
    "rows and an odd one": [{"a": i, "b": "x"} for i in range(50)] + [{"a": {1}}],
}

ONLY_PICKLE = {
    *("Ellipsis", "Enum", "dataclass", "pydantic"),
    *("own class", "own class within", "class", "function", "exception"),
    *("defaultdict of code", "str subclass", "int subclass"),
    *("dict of str subclass keys", "IntEnum", "namedtuple", "says how it is JSON"),
    *("numpy objects", "pandas sparse"),
}
"""Values that only pickle supports if the message's serializer can't."""


def test_values_that_only_pickle_carries_are_in_the_table():
    """All values listed as carried only by pickle are in the table of tested values."""
    assert set(VALUES) >= ONLY_PICKLE


@pytest.mark.parametrize("pickle_too", (False, True), ids=("", "or pickle"))
@pytest.mark.parametrize("native", NATIVES)
@pytest.mark.parametrize("name", VALUES)
def test_arrives_as_plain_celery_delivers_it_else_as_sent(help_, name, native, pickle_too):
    """A value arrives as plain Celery delivers it; one that Celery can't send arrives unchanged."""
    value = VALUES[name]
    accept = {native, "pickle"} if pickle_too else {native}
    try:
        expected = help_.plain_celery(value, native)
    except EncodeError:
        if name in ONLY_PICKLE and "pickle" not in accept:
            with pytest.raises(SerializationError, match="add 'pickle' to accept_content"):
                help_.through(value, native, accept)
            return
        expected = value
    except DecodeError:
        with pytest.raises(DeserializationError):
            help_.through(value, native, accept)
        return
    assert help_.same(help_.through(value, native, accept), expected)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters() | st.sampled_from("\ud800\udfff\ud83d\ude00"), max_size=8),
    st.binary(max_size=8),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.datetimes(timezones=st.none() | st.just(timezone.utc)),
    st.dates(),
    st.times(),
)
keys = st.one_of(st.text(max_size=4), st.integers(-3, 3), st.booleans(), st.none(), st.floats())
text_keys = st.text(max_size=4) | st.sampled_from(["__type__", "__value__"])
nested = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(text_keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("native", NATIVES)
def test_any_nest_of_plain_values_arrives_as_plain_celery_delivers_it(help_, native):
    """Random nests of plain values arrive as plain Celery delivers them, or unchanged."""

    @settings(max_examples=400, deadline=None)
    @given(nested)
    def holds(value):
        try:
            expected = help_.plain_celery(value, native)
        except EncodeError:
            expected = value
        except DecodeError:
            with pytest.raises(DeserializationError):
                help_.through(value, native, {native})
            return
        assert help_.same(help_.through(value, native, {native}), expected)

    holds()


odd = st.recursive(
    scalars | st.complex_numbers() | st.timedeltas(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(odd)
def test_beside_a_value_that_json_cannot_carry_all_arrives_as_sent(help_, value):
    """Next to a value that JSON doesn't support, all others arrive unchanged too."""
    sent = [value, {1}, {"rows": [value, value]}]
    assert help_.same(help_.through(sent), sent)


@pytest.mark.parametrize("native", NATIVES)
def test_values_that_can_skip_are_within_the_limit(native):
    """Values that are certainly small are carried by the serializer within the limit."""

    @settings(max_examples=400, deadline=None)
    @given(nested, st.integers(0, 2000))
    def holds(value, limit):
        registry = Registry({native})
        if certainly_small(value, limit, native):
            assert registry.leaves_to_celery(value, native)
            assert registry.encode(value, native).size <= limit
            content = registry.encode([value], native)
            assert content.size <= limit + 64

    holds()


def test_shared_and_circular_references_survive_pickle(help_):
    """With pickle, shared and circular references stay shared and circular."""
    inner = [1]
    got = help_.through([inner, inner], "pickle", {"pickle"})
    assert got[0] is got[1]
    circle = []
    circle.append(circle)
    got = help_.through(circle, "pickle", {"pickle"})
    assert got[0] is got


@pytest.mark.parametrize("width", (1, 2))
def test_a_circular_list_is_an_error_at_once_without_pickle(help_, width):
    """Without pickle, a circular list raises SerializationError and doesn't recurse."""
    circle = []
    circle.extend([circle] * width)
    with pytest.raises(SerializationError, match="contains itself"):
        help_.through(circle)


def test_a_custom_serializer_registered_with_kombu_is_used_as_it_is(help_):
    """Values of an app with its own kombu serializer are encoded by that serializer."""
    from kombu.serialization import register, unregister

    register("shouting", lambda v: repr(v).upper(), lambda b: bytes(b).decode(), "text/loud")
    try:
        assert help_.through("a", "shouting", {"shouting"}) == "'A'"
        assert help_.through([1, "b"], "shouting", {"shouting"}) == "[1, 'B']"
    finally:
        unregister("shouting")


def test_json_that_an_app_replaced_is_not_second_guessed(help_, monkeypatch):
    """If an app replaced kombu's JSON encoder, values are encoded by the replacement."""
    from kombu import serialization

    codecs = dict(serialization.registry._encoders)
    codecs["json"] = codecs["json"]._replace(encoder=lambda value: '"replaced"')
    monkeypatch.setattr(serialization.registry, "_encoders", codecs)
    assert help_.through([1, 2]) == "replaced"


def test_a_type_registered_with_kombus_json_arrives_as_registered(help_):
    """Types registered with kombu's JSON arrive as their registered decoder returns them."""
    from kombu.utils import json

    json.register_type(Fraction, "fraction", str, Fraction)
    json.register_type(np.ndarray, "array", lambda a: a.tolist(), tuple)
    try:
        assert help_.through(Fraction(1, 3)) == Fraction(1, 3)
        assert help_.through(np.arange(2)) == (0, 1)
    finally:
        for kind, marker in ((Fraction, "fraction"), (np.ndarray, "array")):
            del json._encoders[kind], json._decoders[marker]
