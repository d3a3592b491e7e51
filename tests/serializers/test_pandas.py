"""pandas values arrive as sent, or are refused with the column named."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from offload.errors import SerializationError
from offload.serializers import Registry

N = 40
BERLIN = "Europe/Berlin"
CELLS = [
    *(1, "a", (1, 2), {1, 2}, None, float("nan"), {"a": [1]}, dt.date(2020, 1, 1)),
    *(Decimal("1.10"), pd.NaT, pd.NA, pd.Timestamp("2020", tz="UTC"), b"x"),
    *(UUID(int=5), pd.Timedelta(1), np.float32(2), [1, 2], [3, 4], "\ud800", 2**80),
]
COLUMNS = {
    **{f"numpy {t}": np.arange(N).astype(t) for t in ("i1", "u8", ">i4", "f2", "f4", "g", "D")},
    "bool": np.arange(N) % 2 == 0,
    "float": np.r_[np.arange(N - 2.0), np.nan, -0.0],
    **{f"datetime {u}": pd.date_range("2020", periods=N, unit=u) for u in ("s", "ms", "us", "ns")},
    "datetime NaT": pd.Series([pd.Timestamp("2020"), pd.NaT] * (N // 2)),
    "datetime zone": pd.date_range("2020-10-24", periods=N, freq="h", tz=BERLIN),
    "datetime UTC": pd.date_range("2020", periods=N, tz="UTC"),
    "datetime fixed": pd.date_range("2020", periods=N, tz=dt.timezone(dt.timedelta(hours=2))),
    "timedelta": pd.timedelta_range("1D", periods=N),
    "category": pd.Categorical(["a", "b", None, "a"] * 10, categories=["b", "a", "unused"]),
    "category ordered": pd.Categorical([3, 1, 2, 3] * 10, [3, 2, 1], ordered=True),
    "category times": pd.Categorical(pd.date_range("2020", periods=N)),
    "category objects": pd.Categorical([(1, 2), "x"] * 20),
    "period": pd.period_range("2020", periods=N, freq="M"),
    "interval": pd.interval_range(0, N, closed="left"),
    "interval times": pd.interval_range(pd.Timestamp("2020"), periods=N),
    **{t: pd.array([1, None] * 20, dtype=t) for t in ("Int8", "UInt64", "Float32", "boolean")},
    "str": ["x", None, "zz", "é"] * 10,
    "string NA": pd.array(["x", None] * 20, dtype="string"),
    "string python": pd.array(["x", None] * 20, dtype=pd.StringDtype("python")),
    "arrow int": pd.array([1, None] * 20, dtype="int32[pyarrow]"),
    "arrow string": pd.Series(["1", None] * 20, dtype=pd.ArrowDtype(pa.string())),
    "arrow list": pd.Series([[1], None] * 20, dtype=pd.ArrowDtype(pa.list_(pa.int8()))),
    "arrow time": pd.Series([None] * N, dtype=pd.ArrowDtype(pa.timestamp("us", "UTC"))),
    "objects": pd.Series(CELLS * 2, dtype=object),
    "object strings": pd.Series(["a", "b"] * 20, dtype=object),
    "object bools": pd.Series([True, None] * 20, dtype=object),
}
PANDAS = tuple(map(int, pd.__version__.split(".")[:2]))
if PANDAS >= (2, 3):  # earlier versions had only one kind of missing text
    COLUMNS["string python nan"] = pd.array(["x", None] * 20, pd.StringDtype("python", np.nan))
NO_INDEX = {"numpy f2", "numpy g", "numpy >i4"}


def frame(*args, attrs=None, **kwargs):
    made = pd.DataFrame(*args, **kwargs)
    made.attrs = attrs or {}
    return made


FRAMES = {
    "all columns": frame({k: pd.Series(v) for k, v in COLUMNS.items()}),
    "empty": frame(),
    "only an index": frame(index=[1, 2]),
    "only columns": frame(columns=["a", "b"]),
    "no rows": frame({k: pd.Series(v)[:0] for k, v in COLUMNS.items()}),
    "duplicate names": frame([[1, "x", 2.5]], columns=["a", "a", "b"]),
    "one block, C": frame(np.random.default_rng(0).random((50, 4))),
    "one block, F": frame(np.asfortranarray(np.ones((50, 4)))),
    "one block of times": frame(np.arange(6).reshape(3, 2).astype("M8[s]")),
    "strided": frame({"a": np.arange(99), "b": np.ones(99)}).iloc[::3],
    "named axes": frame({"a": [1]}).rename_axis(columns="cn", index="in"),
    "tuple names": frame({("a", 1): [1], ("b", 2): [2]}),
    "mixed names": frame({1: [1], "a": [2], None: [3], 1.5: [4]}),
    "MultiIndex": frame(
        {"v": [1, 2]}, index=pd.MultiIndex.from_tuples([(1, "a"), (2, "b")], names=["n", None])
    ),
    "MultiIndex of many kinds": frame(
        {"v": range(4)},
        index=pd.MultiIndex.from_product(
            [pd.date_range("2020", periods=2, tz=BERLIN), pd.Categorical(["x", "y"])]
        ),
    ),
    "MultiIndex with a gap": frame(
        {"v": [1, 2]}, index=pd.MultiIndex.from_tuples([(1, None), (2, "b")])
    ).iloc[:1],
    "MultiIndex columns": frame([[1, 2.0]], columns=pd.MultiIndex.from_product([["a"], [1, 2]])),
    "business days": frame({"v": range(5)}, index=pd.date_range("2020", periods=5, freq="B")),
    "hours": frame({"v": range(5)}, index=pd.date_range("2020", periods=5, freq="3h", tz=BERLIN)),
    "month ends": frame(index=pd.date_range("2020", periods=5, freq="ME", name="when")),
    "dates as columns": frame([[1, 2]], columns=pd.date_range("2020", periods=2)),
    "timedeltas": frame({"v": range(3)}, index=pd.timedelta_range("1h", periods=3)),
    "categories": frame({"v": [1, 2]}, index=pd.CategoricalIndex(["a", "b"], ordered=True)),
    "periods": frame({"v": [1, 2]}, index=pd.period_range("2020Q1", periods=2, freq="Q-NOV")),
    "intervals": frame({"v": [1, 2]}, index=pd.interval_range(0, 2)),
    "odd range": frame({"v": [1, 2]}, index=pd.RangeIndex(7, 1, -3)),
    "attrs": frame({"a": [1]}, attrs={"source": (1, {"x"}), "deep": {"f": 1.5}}),
    "flags": frame({"a": [1]}).set_flags(allows_duplicate_labels=False),
}


@pytest.mark.parametrize("accept", (("json",), ("json", "pickle")), ids=("data", "pickle"))
@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_arrives_the_same(help_, name, accept):
    """Data frames arrive unchanged in values, dtypes, index, columns, and attributes."""
    assert help_.same(help_.through(FRAMES[name], "json", accept), FRAMES[name])


@pytest.mark.parametrize("accept", (("json",), ("json", "pickle")), ids=("data", "pickle"))
@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_every_dtype_arrives_the_same(help_, name, accept):
    """Series of every dtype arrive unchanged: whole, strided, empty, and of one row."""
    series = pd.Series(COLUMNS[name], name=("name", 1))
    for sent in (series, series.iloc[::2], series.iloc[:0], series.iloc[5:6]):
        assert help_.same(help_.through(sent, "json", accept), sent)


@pytest.mark.parametrize("name", sorted(set(COLUMNS) - NO_INDEX))
def test_an_index_of_every_dtype_arrives_the_same(help_, name):
    """An index of every dtype that can be one arrives unchanged."""
    index = pd.Index(pd.Series(COLUMNS[name]), name="n")
    assert help_.same(help_.through(index), index)


@pytest.mark.parametrize("name", COLUMNS)
def test_an_extension_array_arrives_the_same(help_, name):
    """The array of a column of every dtype arrives unchanged."""
    array = pd.Series(COLUMNS[name]).array
    assert help_.same(help_.through(array), array)


@pytest.mark.parametrize(
    ("value", "named"),
    (
        (frame({"ok": [1], "bad": pd.arrays.SparseArray([0])}), "Sparse.* at \\['bad'\\]"),
        (frame({"ok": [1], "bad": [object()]}), "type object at \\['bad'\\]\\[0\\]"),
        (frame({"bad": pd.Series(["\ud800"], dtype=pd.StringDtype("python"))}), "\\['bad'\\]"),
        (
            frame(
                index=pd.DatetimeIndex(
                    ["2020-01-02"], freq=pd.offsets.CustomBusinessDay(holidays=["2020-01-01"])
                )
            ),
            "frequency",
        ),
        (type("GeoFrame", (pd.DataFrame,), {})({"a": [1]}), "type GeoFrame"),
        (frame({"a": [1]}, attrs={"x": object()}), "type object at \\['x'\\]"),
    ),
    ids=("sparse", "object", "surrogate", "frequency", "subclass", "attrs"),
)
def test_values_that_would_change_are_refused_by_name(help_, value, named):
    """Values that would change raise SerializationError naming the column, type, or attribute."""
    with pytest.raises(SerializationError, match=named):
        help_.through(value)


@pytest.mark.parametrize("accept", (("json",), ("json", "pickle")), ids=("data", "pickle"))
@pytest.mark.parametrize(
    "sent",
    (
        frame({"a": np.ones(5000), "b": np.arange(5000)}),
        frame(np.ones((5000, 3))),
        frame({"t": pd.date_range("2020", periods=5000)}),
    ),
    ids=("columns", "one block", "times"),
)
def test_a_frame_of_numbers_is_neither_copied_out_nor_in(sent, accept):
    """A frame's numbers share memory with its payload, and a read frame's with the buffers."""
    registry = Registry(accept)
    payload = registry.encode(sent, "json")
    column = np.asarray(sent.iloc[:, 0])
    views = [np.frombuffer(view, "u1") for view in payload.buffers]
    assert any(np.shares_memory(view, column) for view in views)
    memory = [np.array(view) for view in views]
    got = registry.decode(payload.serializer, payload.head, [memoryview(m) for m in memory])
    before = [m.tobytes() for m in memory]
    got.iloc[0, 0] = got.iloc[1, 0] * 2 if sent.dtypes.iloc[0].kind == "f" else pd.NaT
    assert [m.tobytes() for m in memory] != before
