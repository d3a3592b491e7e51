"""Arrow tables and arrays, and polars frames, arrive as sent."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pytest

from offload.errors import DeserializationError, SerializationError
from offload.serializers import Registry


class Tagged(pa.ExtensionType):
    """A user's own type."""

    def __init__(self):
        super().__init__(pa.binary(16), "offload.tests.tagged")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, _storage_type, _serialized):
        READ.append(cls)
        return cls()


READ = []


UUIDS = pa.ExtensionArray.from_storage(Tagged(), pa.array([bytes(16)], pa.binary(16)))
NOW = dt.datetime(2026, 1, 1, 10)
ARRAYS = {
    **{
        str(t): pa.array([1, None, 3], t)
        for t in (
            *(pa.int8(), pa.uint64(), pa.float32(), pa.date32(), pa.time64("ns")),
            *(pa.timestamp("us", "Europe/Berlin"), pa.duration("ms"), pa.decimal128(10, 2)),
            pa.decimal256(40, 1),
        )
    },
    "half": pa.array([np.float16(1.5), None], pa.float16()),
    "bool": pa.array([True, None, False] * 5),
    "null": pa.nulls(5),
    "string": pa.array(["a", None, "ccc", ""]),
    "large_string": pa.array(["a", None], pa.large_string()),
    "binary": pa.array([b"a", None, b"\xff"]),
    "large_binary": pa.array([b"a", None], pa.large_binary()),
    "fixed binary": pa.array([b"abc", None], pa.binary(3)),
    "string_view": pa.array(["short", "longer than twelve bytes", None], pa.string_view()),
    "binary_view": pa.array([b"short", None], pa.binary_view()),
    "dictionary": pa.array(["x", "y", None, "x"]).dictionary_encode(),
    "dictionary ordered": pa.DictionaryArray.from_arrays([0, 1], ["lo", "hi"], ordered=True),
    "list": pa.array([[1, 2], None, [], [3]]),
    "list of list": pa.array([[["a"], None], [], [["b", "c"], []]]),
    "large_list": pa.array([[1], None], pa.large_list(pa.int8())),
    "fixed list": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)),
    "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}]),
    "struct empty": pa.array([{}, None], pa.struct([])),
    "map": pa.array([[("a", 1)], None, [("b", 2), ("c", None)]], pa.map_(pa.string(), pa.int8())),
    "interval": pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
    "empty": pa.array([], pa.string()),
    "empty list": pa.array([], pa.list_(pa.string())),
}
FIELD = pa.field("f", pa.int8(), nullable=False, metadata={"unit": "m"})
TABLES = {
    "all": pa.table({k: pa.chunked_array([v, v[1:]]) for k, v in ARRAYS.items() if len(v) == 3}),
    "empty": pa.table({}),
    "no rows": pa.table({"a": pa.array([], pa.string())}),
    "no chunks": pa.table({"a": pa.chunked_array([], pa.int8())}),
    "metadata": pa.table([pa.array([1], pa.int8())], pa.schema([FIELD], metadata={"k": "v"})),
    "same names": pa.table([[1], ["x"]], names=["a", "a"]),
    "batch": pa.record_batch({"a": [1, None], "s": ["x", "y"]}),
    "batch of nothing": pa.record_batch({"a": pa.array([], pa.int8())}),
}
POLARS = {
    "int": pl.Series([1, None, 3]),
    "float": pl.Series([1.5, float("nan"), None]),
    "bool": pl.Series([True, None, False]),
    "str": pl.Series(["a", None, "longer than twelve bytes"]),
    "binary": pl.Series([b"a", None, b"\xff"]),
    "categorical": pl.Series(["a", "b", "a"], dtype=pl.Categorical),
    "enum": pl.Series(["a", None, "b"], dtype=pl.Enum(["b", "a"])),
    "list": pl.Series([[1, 2], None, []]),
    "list of str": pl.Series([["a", None], None, []]),
    "array": pl.Series([[1, 2], None, [3, 4]], dtype=pl.Array(pl.Int8, 2)),
    "struct": pl.Series([{"a": 1}, None, {"a": 3}]),
    "datetime": pl.Series([NOW, None, NOW], dtype=pl.Datetime("ns", "Europe/Berlin")),
    "date": pl.Series([NOW.date(), None, NOW.date()]),
    "time": pl.Series([dt.time(1), None, dt.time(2)]),
    "duration": pl.Series([dt.timedelta(1), None, dt.timedelta(2)]),
    "decimal": pl.Series([Decimal("1.20"), None, Decimal("3.00")]),
    "null": pl.Series([None, None, None]),
}


@pytest.mark.parametrize("native", ("json", "pickle"))
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_every_type_arrives_the_same_sliced_or_whole(help_, name, native):
    """Arrow arrays of every type arrive unchanged: whole, sliced, empty, and chunked."""
    array = ARRAYS[name]
    for sent in (array, array[1:], array[1:2], array[:0], pa.chunked_array([array, array[1:]])):
        assert help_.same(help_.through(sent, native, {native}), sent)


@pytest.mark.parametrize("native", ("json", "pickle"))
@pytest.mark.parametrize("name", TABLES)
def test_a_table_arrives_the_same(help_, name, native):
    """Arrow tables arrive unchanged."""
    assert help_.same(help_.through(TABLES[name], native, {native}), TABLES[name])


@pytest.mark.parametrize("native", ("json", "pickle"))
@pytest.mark.parametrize("name", POLARS)
def test_a_polars_series_of_every_dtype_arrives_the_same(help_, name, native):
    """Polars series of every dtype arrive unchanged: sliced, empty, unnamed, and in a frame."""
    series = POLARS[name].alias("n")
    empty_name = series.alias("")
    for sent in (series, series[1:], series[:0], empty_name, empty_name.to_frame()):
        assert help_.same(help_.through(sent, native, {native}), sent)
    for sent in (series.to_frame(), series.append(series)):
        assert help_.same(help_.through(sent, native, {native}), sent)


@pytest.mark.parametrize("sent", (pl.DataFrame(), pl.DataFrame(POLARS)), ids=("empty", "all"))
def test_a_polars_frame_arrives_the_same(help_, sent):
    """A polars frame arrives unchanged, empty or with a column of every dtype."""
    assert help_.same(help_.through(sent), sent)


@pytest.mark.parametrize(
    ("value", "reason"),
    (
        (pl.DataFrame({"bad": [object()]}), "'bad' is of dtype Object"),
        (pl.DataFrame({"a": [1]}).lazy(), "of type LazyFrame"),
        (pl.DataFrame({"bad": [1]}, schema={"bad": pl.Int128}), "doesn't support"),
        (pa.int8(), "DataType"),
        (pa.table({"bad": UUIDS}), "'bad' .* ext"),
        (pa.scalar(1), "Int64Scalar"),
    ),
    ids=("object", "lazy", "Int128", "type", "extension", "scalar"),
)
def test_values_that_arrow_changes_are_refused(help_, value, reason):
    """Values that Arrow would change raise SerializationError naming the column or type."""
    with pytest.raises(SerializationError, match=reason):
        help_.through(value)


@pytest.mark.parametrize("registered", (True, False))
@pytest.mark.parametrize(
    "nested",
    (
        lambda kind: kind,
        pa.list_,
        lambda kind: pa.struct([("a", pa.int8()), ("b", kind)]),
        lambda kind: pa.map_(pa.string(), kind),
        lambda kind: pa.list_(pa.list_(kind, 2)),
    ),
    ids=("alone", "list", "struct", "map", "lists"),
)
@pytest.mark.parametrize("kind", (Tagged(), pa.uuid()), ids=("own", "canonical"))
@pytest.mark.parametrize("container", ("Array", "Table", "pandas"))
def test_an_extension_type_is_not_read(registered, nested, kind, container):
    """An extension type's name in a schema would run its code, so the schema isn't even parsed."""
    node = {"schema": 0, "chunks": [], "columns": [[]], "rows": 0, "kind": container}
    head = {"pyarrow": node} if container != "pandas" else {"pandas": {"values": {"arrow": node}}}
    schema = bytearray(pa.schema([("", nested(kind))]).serialize())
    if registered:
        pa.register_extension_type(Tagged())
    READ.clear()
    try:
        with pytest.raises(DeserializationError, match="extension type"):
            Registry(()).decode("tree", orjson.dumps(head), [memoryview(schema)])
    finally:
        if registered:
            pa.unregister_extension_type("offload.tests.tagged")
    assert not READ


def test_columns_are_neither_copied_out_nor_in():
    """Serialized columns share memory with the table, and read ones with the buffers."""
    numbers = np.arange(10_000.0)
    texts = pa.array(["text"] * 10_000)
    table = pa.table({"n": numbers, "s": texts})
    registry = Registry({"json"})
    payload = registry.encode(table, "json")
    views = [np.frombuffer(b, "u1") for b in payload.buffers]
    assert any(np.shares_memory(v, numbers) for v in views)
    assert any(np.shares_memory(v, np.frombuffer(texts.buffers()[2], "u1")) for v in views)
    memory = [np.array(v) for v in views]
    got = registry.decode(payload.serializer, payload.head, [memoryview(m) for m in memory])
    for column in got.columns:
        buffer = np.frombuffer(column.chunk(0).buffers()[-1], "u1")
        assert any(np.shares_memory(buffer, m) for m in memory)


def test_a_slice_is_stored_without_the_rest():
    """The payload of a slice has about the slice's size, not the whole table's."""
    table = pa.table({"s": ["text"] * 100_000, "l": [[1, 2]] * 100_000}).slice(500, 10)
    assert Registry({"json"}).encode(table, "json").size < 2000
