"""Reading arbitrary bytes raises offload's error or returns harmless data."""

from __future__ import annotations

import base64
import itertools
import json
import pickle
import random
import tracemalloc
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import contextmanager
from fractions import Fraction
from ipaddress import ip_network
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.errors import DeserializationError, SerializationError, SerializerNotAccepted
from offload.serializers import Registry

REGISTRY = Registry({"json"})
SAMPLES = {
    "raw": memoryview(bytes(24)).cast("I", (2, 3)),
    "text": "some text",
    "json": [{"a": 1}, [2.5]],
    "containers": [{1: (2, {3})}, b"x" * 300, 2**70, "\ud800", 1j],
    "values": [Path("a/b"), Fraction(1, 3), range(2**70), ip_network("fe80::/64"), slice(None)],
    "dicts": [Counter("ab"), OrderedDict(a=1), defaultdict(list, a=[1]), deque([1], 3), {1}],
    "array": np.arange(90.0).reshape(9, 10),
    "structured": np.zeros(50, [("a", "i4"), ("b", "f8", (2,))]),
    "masked": np.ma.array(np.arange(80), mask=np.arange(80) % 2),
    "table": pa.table(
        {
            "n": list(range(99)),
            "s": [str(i) * 5 for i in range(99)],
            "l": [[i, None] for i in range(99)],
            "d": pa.array(["x", "y", "z"] * 33).dictionary_encode(),
            "st": [{"a": i, "b": str(i)} for i in range(99)],
        }
    ),
    "polars": pl.DataFrame({"s": [str(i) for i in range(99)], "l": [["a", "b"]] * 99}),
    "frame": pd.DataFrame(
        {
            "f": np.arange(99.0),
            "t": pd.date_range("2020", periods=99, tz="Europe/Berlin"),
            "c": pd.Categorical(["a", "b", "c"] * 33),
            "s": ["x"] * 99,
            "o": [(1, 2)] * 99,
            "i": pd.array([1, None, 3] * 33, dtype="Int64"),
        },
        index=pd.period_range("2020", periods=99, freq="D"),
    ),
}


def read(serializer, head, buffers):
    """Read, allowing only offload's own error."""
    try:
        return REGISTRY.decode(serializer, head, buffers)
    except DeserializationError:
        return None


def parts(name):
    payload = REGISTRY.encode(SAMPLES[name], "json")
    return payload.serializer, bytearray(payload.head), [bytearray(b) for b in payload.buffers]


@pytest.mark.parametrize("name", SAMPLES)
def test_changed_bytes_never_raise_anything_but_our_error(name):
    """Payloads with changed, cut, or inserted bytes raise DeserializationError or are read."""
    serializer, head, buffers = parts(name)
    chance = random.Random(name)
    for _ in range(400):
        targets = [bytearray(head), *map(bytearray, buffers)]
        for _ in range(chance.choice((1, 1, 3))):
            target = chance.choice(targets)
            if not target:
                continue
            at = chance.randrange(len(target))
            change = chance.randrange(4)
            if change == 0:
                target[at] = chance.randrange(256)
            elif change == 1:
                target[at : at + 1] = b"0123456789-"[chance.randrange(11) :][:1]
            elif change == 2:
                del target[at:]
            else:
                target[at:at] = bytes(chance.randrange(256) for _ in range(8))
        got = read(serializer, targets[0], list(map(memoryview, targets[1:])))
        if got is not None:
            repr(got)


numbers = st.sampled_from((0, 1, -1, 2**31, 2**62, 2**63 - 1, 10**30, 1.5, True, None))
words = st.sampled_from(("", "<f8", "|O", "O8", "C", "F", "array", "a", "AAAA", "json", "nan"))
words |= st.sampled_from(("numpy", "pandas", "pyarrow", "polars", "tuple", "dict", "raw", "set"))
words |= st.sampled_from(("Fraction", "range", "path", "PosixPath", "address", "IPv4Network"))
words |= st.sampled_from(("slice", "deque", "OrderedDict", "Counter", "defaultdict", "list"))
words |= st.sampled_from(("kind", "dtype", "shape", "order", "data", "frame", "values", "schema"))
nodes = st.recursive(
    numbers | words,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(words, inner, max_size=1),
        st.dictionaries(words, inner, max_size=4),
        st.fixed_dictionaries(
            {
                "numpy": st.fixed_dictionaries(
                    {
                        "kind": st.sampled_from(("array", "scalar", "matrix", "masked", "dtype")),
                        "dtype": words | inner,
                        "shape": st.lists(numbers, max_size=3),
                        "order": words,
                        "data": st.just(0) | inner,
                    }
                )
            }
        ),
    ),
    max_leaves=15,
)


@settings(max_examples=1500, deadline=None)
@given(nodes, st.binary(max_size=40))
def test_heads_of_any_shape_never_raise_anything_but_our_error(node, content):
    """Tree heads of any shape raise DeserializationError or are read."""

    def readable(value):
        return json.dumps(value).encode()

    repr(read("tree", readable(node), [memoryview(bytearray(content))]))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(("raw", "json", "tree", "native:json", "nonsense", "native:nonsense", "")),
    st.binary(max_size=60),
    st.lists(st.binary(max_size=30), max_size=3),
)
def test_random_bytes_never_raise_anything_but_our_error(serializer, head, buffers):
    """Random bytes under any serializer's name raise DeserializationError or are read."""
    read(serializer, head, [memoryview(bytearray(b)) for b in buffers])


@pytest.mark.parametrize(
    "dtype",
    (
        *("O", "|O", "O8", ">O", "object", "f8,O", "T", "U1,i4", "(2,)O"),
        {"base": "O", "shape": [2]},
        {"names": ["a"], "formats": ["|O"], "offsets": [0], "itemsize": 8, "aligned": 0},
    ),
    ids=str,
)
def test_an_array_of_object_pointers_is_never_built(dtype):
    """A dtype with object pointers, however written, raises DeserializationError."""
    body = {"kind": "array", "dtype": dtype, "shape": [1], "order": "C", "data": "A" * 8 + "AAA="}
    with pytest.raises(DeserializationError):
        REGISTRY.decode("tree", json.dumps({"numpy": body}).encode(), [])


def of_size(shape, dtype="<f8", data=0):
    body = {"kind": "array", "dtype": dtype, "shape": shape, "order": "C", "data": data}
    return json.dumps({"numpy": body}).encode()


@pytest.mark.parametrize(
    ("head", "buffer"),
    (
        (of_size([10**9]), b"x" * 8),
        (of_size([2**62, 4]), b""),
        (of_size([-1, -8]), b"x" * 64),
        (of_size([1], "S2000000000"), b""),
        (of_size([1], {"base": "<f8", "shape": [10**9]}), b""),
        (b'{"raw": ["memoryview Q 1000000000000", 0]}', b""),
        (b'[{"raw": ["bytes", 0]}' + b', {"raw": ["bytes", 0]}' * 1000 + b"]", b"x" * 10**6),
    ),
    ids=("length", "product", "negative", "itemsize", "subarray", "memoryview", "again and again"),
)
def test_claims_in_a_head_allocate_no_memory(head, buffer):
    """Sizes that a head claims beyond its buffers are refused before memory is allocated."""
    with pytest.raises(DeserializationError), at_most(8_000_000):
        REGISTRY.decode("tree", head, [memoryview(bytearray(buffer))])


@contextmanager
def at_most(size):
    """Limit the memory that this block allocates at once, also in pyarrow."""
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    try:
        yield
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak + pa.total_allocated_bytes() - before < size


def column(kind, length, buffers, parts=()):
    """Return the node of an array that claims *length* items."""
    schema = base64.b64encode(pa.schema([pa.field("", kind)]).serialize().to_pybytes()).decode()
    array = {"length": length, "nulls": 0, "buffers": buffers, "parts": list(parts)}
    return {"schema": schema, "chunks": [array]}


def empty(length, buffers=1):
    return {"length": length, "nulls": 0, "buffers": [None] * buffers, "parts": []}


MANY = 2**31 - 1
RANGE = {"range": [0, 10**9, 1], "names": [None]}
CLAIMS = {
    "nulls": {"pyarrow": {"kind": "Array", **column(pa.null(), MANY, [None])}},
    "structs": {"pyarrow": {"kind": "Array", **column(pa.struct([]), MANY, [None])}},
    "no bytes": {"pyarrow": {"kind": "Array", **column(pa.binary(0), MANY, [None, ""])}},
    "empty lists": {
        "pyarrow": {
            "kind": "Array",
            **column(pa.list_(pa.null(), 0), MANY, [None], [empty(0)]),
        }
    },
    "a list of nulls": {
        "pyarrow": {
            "kind": "Array",
            **column(pa.list_(pa.null(), MANY), 1, [None], [empty(MANY)]),
        }
    },
    "runs": {
        "pyarrow": {
            "kind": "Array",
            **column(
                pa.run_end_encoded(pa.int32(), pa.null()), MANY, [None], [empty(1, 2), empty(1)]
            ),
        }
    },
    "list view": {
        "pyarrow": {
            "kind": "Array",
            **column(pa.list_view(pa.null()), 1, [None, "AAAAAA==", "////fw=="], [empty(1 << 20)]),
        }
    },
    "texts of nulls": {
        "pandas": {"values": {"strings": [["python", "nan"], column(pa.null(), 1 << 20, [None])]}}
    },
    "levels": {"pandas": {"index": {"levels": [RANGE], "codes": [], "names": [None]}}},
    "many levels": [
        {
            "pandas": {
                "index": {
                    "levels": [{"range": [0, 10**6, 1], "names": [None]}],
                    "codes": [orjson.loads(of_size([0], "<i8", ""))],
                    "names": [None],
                }
            }
        }
    ]
    * 9,
    "ends": {
        "pandas": {
            "values": {
                "intervals": [
                    {"range": [0, 10**8, 1], "names": [None]},
                    {"range": [1, 10**8 + 1, 1], "names": [None]},
                    "right",
                ]
            }
        }
    },
    "items of no width": {
        "pandas": {
            "series": [{"numpy": orjson.loads(of_size([MANY], "S0", ""))}, RANGE, None, {}, False]
        }
    },
}


def array(shape, dtype="<f8", data=""):
    return orjson.loads(of_size(shape, dtype, data))


def masked(values, mask=None, fill=None):
    return {"numpy": {"kind": "masked", "array": values, "mask": mask, "fill": fill, "hard": False}}


def levels(codes):
    level = {"range": [0, 10**6, 1], "names": [None]}
    return {"pandas": {"index": {"levels": [level], "codes": [codes], "names": [None]}}}


def zeros(count, dtype):
    return array([count], dtype, base64.b64encode(bytes(count)).decode())


WIDE = {
    "names": ["a"],
    "formats": ["|S30000000"],
    "offsets": [0],
    "itemsize": 30_000_000,
    "aligned": 0,
    "record": 0,
}
NAMES = {"range": [0, 10**7, 1], "names": [None]}
CATEGORIES = {"values": {"codes": [NAMES, zeros(1, "|i1"), False]}, "names": [None]}
EXPANDED = {
    "a mask": masked(array([3 * 10**7], "S0")["numpy"], mask=zeros(1, "|b1")["numpy"]),
    "a fill value": masked(
        array([0], "|S30000000")["numpy"], fill=array([], "|S1", "AA==")["numpy"]
    ),
    "codes of a range": levels({"range": [0, 10**6, 1]}),
    "a default fill value": masked(array([0], WIDE)["numpy"]),
    "ends of categories": {"pandas": {"values": {"intervals": [CATEGORIES] * 2 + ["right"]}}},
}


@pytest.mark.parametrize("claim", EXPANDED)
def test_what_takes_no_memory_is_not_expanded(claim):
    """Ranges and items without width are refused wherever a library would make an item of each."""
    with pytest.raises(DeserializationError), at_most(16_000_000):
        REGISTRY.decode("tree", orjson.dumps(EXPANDED[claim]), [])


def test_a_column_has_single_items():
    """A structured array is no column: pandas would make an object of each field of each item."""
    fields = {"names": ["a", "b"], "formats": ["|i1"] * 2, "offsets": [0, 0], "itemsize": 1}
    values = {"numpy": zeros(9, {**fields, "aligned": 0, "record": 0})}
    node = {"pandas": {"index": {"values": values, "names": [None]}}}
    with pytest.raises(DeserializationError, match="single items"):
        REGISTRY.decode("tree", orjson.dumps(node), [])


def dictionary(kind, values):
    """Return the node of a polars frame with a column that names one item a thousand times."""
    many = base64.b64encode(bytes(1000)).decode()
    index = {"length": 1000, "nulls": 0, "buffers": [None, many], "parts": []}
    made = column(pa.dictionary(pa.int8(), kind), 0, [])
    chunks = [[{"parts": [index, values]}]]
    return {**made, "kind": "DataFrame", "columns": chunks, "rows": 1000, "names": ["a"]}


def test_a_dictionary_of_lists_is_not_repeated():
    """A frame of polars whose dictionary has lists is refused: polars would copy one for each row,
    and end the process if it runs out of memory.
    """
    content = base64.b64encode(bytes(1000)).decode()
    ends = base64.b64encode((0).to_bytes(4, "little") + (1000).to_bytes(4, "little")).decode()
    items = {"length": 1000, "nulls": 0, "buffers": [None, content], "parts": []}
    lists = {"length": 1, "nulls": 0, "buffers": [None, ends], "parts": [items]}
    nested = {"length": 1, "nulls": 0, "buffers": [None], "parts": [lists]}
    for kind, values in (
        (pa.list_(pa.int8()), lists),
        (pa.struct([("a", pa.list_(pa.int8()))]), nested),
    ):
        node = {"polars": dictionary(kind, values)}
        with pytest.raises(DeserializationError, match="whose items aren't strings"):
            REGISTRY.decode("tree", orjson.dumps(node), [])
    texts = {"length": 1, "nulls": 0, "buffers": [None, ends, content], "parts": []}
    node = {"polars": dictionary(pa.string(), texts)}
    assert len(REGISTRY.decode("tree", orjson.dumps(node), [])) == 1000


@pytest.mark.parametrize("zone", ("dateutil//etc/passwd", "Europe/Berlin", "tzlocal()", 5, []))
@pytest.mark.parametrize("kind", ("Timestamp", "times"))
def test_a_text_is_no_time_zone(kind, zone):
    """A text in a time zone's place is refused: pandas would open the file that it names."""
    times = array([1], "<M8[ns]", base64.b64encode(bytes(8)).decode())
    node = (
        {"Timestamp": [0, "ns", zone]}
        if kind == "Timestamp"
        else {"values": {"times": [times, zone]}}
    )
    with pytest.raises(DeserializationError, match="not a time zone"):
        REGISTRY.decode("tree", orjson.dumps({"pandas": node}), [])


@pytest.mark.parametrize("claim", CLAIMS)
def test_null_items_are_bounded_by_the_values_size(claim):
    """Rows of nulls cost no bytes, so they are counted; expanding too many is refused."""
    with pytest.raises(DeserializationError), at_most(16_000_000):
        REGISTRY.decode("tree", orjson.dumps(CLAIMS[claim]), [])


def test_an_array_of_zero_width_takes_no_memory():
    """numpy would allocate one byte per item of zero width, however many a head claims."""
    with at_most(1_000_000):
        got = REGISTRY.decode("tree", of_size([3 * 10**9], "S0", ""), [])
    assert (got.dtype, got.nbytes) == (np.dtype("S0"), 0)


@pytest.mark.parametrize(
    "value",
    (
        pa.nulls(3_000_000),
        pl.DataFrame({"a": pl.Series([[]], dtype=pl.Array(pl.Int8, 0))}),
        pd.MultiIndex([pd.RangeIndex(3_000_000)], [[1]]),
        {k * (2**61 - 1) for k in range(300)},
        {uuid.UUID(int=k * (2**61 - 1)): 1 for k in range(300)},
    ),
    ids=("nulls", "polars panics", "levels", "set", "dict"),
)
def test_unreadable_values_are_refused_by_the_sender(value):
    """A value that costs more than its bytes justify fails in ``.delay()``, not on the worker."""
    with pytest.raises(SerializationError):
        REGISTRY.encode(value, "json")


def test_nulls_next_to_real_columns_are_read(help_):
    """Columns of nulls next to real ones, and a million rows of nulls alone, are read."""
    for sent in (
        pa.table({"n": range(2_000_000), **{str(i): pa.nulls(2_000_000) for i in range(20)}}),
        pa.nulls(1_000_000),
    ):
        assert help_.same(help_.through(sent), sent)


@pytest.mark.parametrize(
    "key",
    (
        lambda k: {"int": hex(k)},
        lambda k: {"UUID": f"{k:032x}"},
        lambda k: {"Decimal": str(k)},
        lambda k: {"tuple": [{"int": hex(k)}]},
    ),
    ids=("int", "UUID", "Decimal", "tuple"),
)
@pytest.mark.parametrize("form", ("set", "frozenset", "dict"))
def test_keys_that_collide_are_refused(key, form):
    """A dict whose keys have one hash is refused, as building it takes quadratic time."""
    keys = [key(k * (2**61 - 1)) for k in range(1, 301)]
    if form == "dict":
        keys = [keys, [0] * len(keys)]
    with pytest.raises(DeserializationError, match="same hash"):
        REGISTRY.decode("tree", orjson.dumps({form: keys}), [])


def colliding(kind):
    """Return an index of 400 items that pandas compares by one hash."""
    high = np.arange(1, 401, dtype=np.uint64)
    low = high
    for _ in range(3):  # solves low ^ low << 11 == high, in 32 bits
        low = (high ^ low << np.uint64(11)) & np.uint64(2**32 - 1)
    numbers = np.random.default_rng(1).permutation(high << np.uint64(33) | low)
    if kind == "floats":
        factor, words = 0x5BD1E995, []
        inverse = pow(factor, -1, 2**32)
        for first in range(1, 401):
            mixed = first * factor % 2**32
            mixed = (mixed ^ mixed >> 24) * factor % 2**32
            start = (0xC70F6907 ^ 4) * factor % 2**32
            wanted = (start ^ mixed) * factor % 2**32 * inverse % 2**32
            words.append(first | (wanted ^ wanted >> 24) * inverse % 2**32 << 32)
        floats = np.array(words, np.uint64).view(np.float64)
        return pd.Index(floats[np.isfinite(floats)][::-1])
    if kind in ("complex64", "complex128"):
        # The hashes of both parts are combined by an exclusive or.
        return pd.Index((1 + 1j) * np.random.default_rng(1).permutation(400), dtype=kind)
    if kind == "objects":
        return pd.Index([k * (2**61 - 1) for k in range(400, 0, -1)], dtype=object)
    if kind == "times":
        return pd.DatetimeIndex(numbers.astype(np.int64).view("M8[ns]"))
    if kind == "intervals":
        return pd.IntervalIndex.from_arrays(numbers.astype(np.int64), np.arange(400) + 2**60)
    if kind == "rows":  # pandas compares them by 16 bits of each code, plus 2
        codes = [(numbers >> np.uint64(at) & np.uint64(2**16 - 1)) - 2 for at in (32, 16, 0)]
        kept = np.all([each < 2**16 - 2 for each in codes], axis=0)
        levels = [pd.RangeIndex(2**16 - 2)] * 3
        return pd.MultiIndex(levels, [each[kept].astype(np.int64) for each in codes])
    return pd.Index(numbers.astype(np.int64), dtype={"masked": "Int64"}.get(kind, "int64"))


KINDS = ("integers", "floats", "complex64", "complex128", "times", "masked", "objects", "intervals")


@pytest.mark.parametrize(
    ("kind", "form"),
    (*itertools.product(KINDS, ("categories", "level", "labels")), ("rows", "labels")),
)
def test_items_that_pandas_compares_by_one_hash_are_refused(monkeypatch, help_, kind, form):
    """Categories, levels, and labels without duplicates whose hashes collide are refused, by the
    sender, too: pandas takes quadratic time to compare them. Others arrive.
    """

    def made(index):
        if form == "categories":
            return pd.Series(pd.Categorical.from_codes([0], index))
        if form == "level":
            return pd.MultiIndex([index], [[0]])
        return pd.Series(range(len(index)), index=index).set_flags(allows_duplicate_labels=False)

    sent = made(colliding(kind))
    with pytest.raises(SerializationError, match="same hash"):
        REGISTRY.encode(sent, "json")
    with monkeypatch.context() as patch:
        patch.setattr("offload.serializers.pandas._check_collisions", lambda *_: None)
        payload = REGISTRY.encode(sent, "json")
    with pytest.raises(DeserializationError, match="same hash"):
        REGISTRY.decode("tree", payload.head, list(payload.buffers))
    numbers = np.random.default_rng(2).permutation(1000)
    if kind == "intervals":  # the ends of several may be equal
        fine = pd.IntervalIndex.from_arrays(numbers // 500, numbers + 2)
    elif kind == "rows":
        fine = pd.MultiIndex.from_arrays([numbers // 500, numbers])
    else:
        fine = pd.Index(numbers, dtype=None if kind == "objects" else colliding(kind).dtype)
    assert help_.same(help_.through(made(fine)), made(fine))


@pytest.mark.parametrize("kind", ("freq", "periods"))
def test_a_frequency_is_short(kind):
    """A long frequency is refused, as pandas parses it in quadratic time."""
    times = {"numpy": {"kind": "array", "dtype": "<i8", "shape": [0], "order": "C", "data": ""}}
    values = {"periods": [times, " " * 500_000]} if kind == "periods" else {"objects": []}
    node = {"values": values, "names": [None], **({"freq": "1D" * 200} if kind == "freq" else {})}
    with pytest.raises(DeserializationError, match="too long for a frequency"):
        REGISTRY.decode("tree", orjson.dumps({"pandas": {"index": node}}), [])


def test_a_panic_of_polars_becomes_an_offload_error():
    """A panic of polars, a BaseException that would stop the worker, becomes offload's error."""
    table = column(pa.list_(pa.int8(), 0), 3, [None], [empty(0, 2)])
    node = {**table, "kind": "DataFrame", "columns": [table["chunks"]], "rows": 3, "names": ["a"]}
    with pytest.raises(DeserializationError, match="polars cannot read it"):
        REGISTRY.decode("tree", orjson.dumps({"polars": node}), [])


@pytest.mark.parametrize("opening", (b"[", b'{"tuple":[', b'{"dict":[['))
def test_deep_nesting_is_an_offload_error(opening):
    """Nesting 100,000 levels deep raises DeserializationError, not RecursionError."""
    with pytest.raises(DeserializationError):
        REGISTRY.decode("tree", opening * 100_000, [])
    closing = b"]" * 900 if opening == b"[" else b"]}" * 400
    read("tree", opening * (900 if opening == b"[" else 400) + closing, [])


@pytest.mark.parametrize("serializer", ("pickle", "native:pickle", "native:yaml", "native:msgpack"))
def test_refused_serializers_are_not_read(serializer):
    """Content of a serializer that isn't accepted is refused without being read."""
    bomb = pickle.dumps(pytest.fail)
    with pytest.raises(SerializerNotAccepted, match="accept_content"):
        REGISTRY.decode(serializer, bomb, [memoryview(bomb)])


@pytest.mark.parametrize("serializer", ("nonsense", "native:nonsense", "", "native:"))
def test_an_unknown_serializer_is_an_offload_error(serializer):
    """An unknown serializer raises DeserializationError, even if its name is accepted."""
    with pytest.raises(DeserializationError):
        Registry({"json", "nonsense", ""}).decode(serializer, b"", [memoryview(b"")])


def test_offsets_that_point_outside_of_a_column_are_refused():
    """An Arrow column with an offset beyond its content raises DeserializationError."""
    serializer, head, buffers = parts("table")
    texts = next(i for i, b in enumerate(buffers) if bytes(b[:4]) == bytes(4) and len(b) == 400)
    buffers[texts][200:204] = (2**30).to_bytes(4, "little")
    with pytest.raises(DeserializationError):
        REGISTRY.decode(serializer, head, list(map(memoryview, buffers)))


def test_dictionary_indices_outside_of_the_dictionary_are_refused():
    """An Arrow index beyond its dictionary raises DeserializationError."""
    sent = pa.array(["x", "y", "z"] * 100).dictionary_encode()
    payload = REGISTRY.encode(sent, "json")
    buffers = [bytearray(b) for b in payload.buffers]
    largest = max(buffers, key=len)
    largest[:4] = (1000).to_bytes(4, "little")
    with pytest.raises(DeserializationError):
        REGISTRY.decode(payload.serializer, payload.head, list(map(memoryview, buffers)))
