"""Previews of values that nobody decodes, whoever wrote them."""

from __future__ import annotations

import pickle
from datetime import datetime

import numpy as np
import orjson
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.inspect.preview import holds_code, preview, type_of
from offload.serializers.choose import Registry

TAGS = (
    *("numpy", "pandas", "polars", "pyarrow", "json", "dict", "tuple", "set", "raw", "shipped"),
    *("object", "code", "frame", "kind", "array", "dtype", "shape", "names", "base", "float"),
    *("columns", "block", "range", "index", "values", "schema", "rows", "DataFrame", "Table"),
)
NODES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 9) | st.sampled_from(TAGS) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(TAGS), inner),
    max_leaves=30,
)


def previewed(value, limit=200):
    payload = Registry(["json", "pickle"]).encode(value, "json")
    buffers = [bytes(buffer) for buffer in payload.buffers]
    sizes = [len(buffer) for buffer in buffers]
    return preview(
        payload.serializer, payload.head, sizes, lambda n, size: buffers[n][:size], limit
    )


@given(NODES)
def test_any_head_has_a_preview(node):
    """Any JSON in place of a tree's head has a bounded preview."""
    head = orjson.dumps(node)
    assert isinstance(type_of("tree", head, b""), str)
    found = preview("tree", head, [], lambda _number, _size: b"", 100)
    assert found.text is None or len(found.text) <= 100


@pytest.mark.parametrize("part", (b"[", b'{"tuple":[', b'{"shipped":[[],', b'{"json":'))
def test_a_deep_head_has_a_preview(part):
    """JSON nested as deeply as possible, or deeper, doesn't crash the process."""
    for depth in (100, 800, 100_000):
        closing = {b"[": b"]", b'{"json":': b"}"}.get(part, b"]}")
        head = part * depth + b"1" + closing * depth
        assert type_of("tree", head, b"") is not None
        preview("tree", head, [], lambda _number, _size: b"", 100)


@pytest.mark.parametrize(
    ("value", "shown", "text"),
    (
        ("text" * 100, "str", "text" * 50),
        (b"\x00\xff" * 200, "bytes", r"\x00\xff"),
        ([1, {"a": None}], "list", '[1,{"a":null}]'),
        ({"a": 1}, "dict", '{"a":1}'),
        (None, "None", "null"),
        (12, "number", "12"),
        ({1, 2}, "set", "{1, 2}"),
    ),
)
def test_the_start_of_a_value_is_shown(value, shown, text):
    """Texts and data are shown as written, and bytes as in Python."""
    found = previewed(value)
    assert found.kind == shown
    assert found.text.startswith(text)
    assert len(found.text) <= 800


@pytest.mark.parametrize(
    ("serializer", "may"),
    (
        *(("raw", False), ("json", False), ("tree", False), ("native:json", False)),
        *(("native:yaml", False), ("native:msgpack", False)),
        *(("pickle", True), ("native:pickle", True), ("native:own", True), ("unknown", True)),
    ),
)
def test_pickles_are_not_read(serializer, may):
    """Nothing of a pickle, or of a value with an unknown serializer, is read."""
    read = []
    found = preview(serializer, b"", [5], lambda number, _size: read.append(number) or b"", 100)
    assert holds_code(serializer) is may
    if may:
        assert (found.text, read) == (None, [])
        assert found.why


class Own:
    """A class that a pickle names."""


@pytest.mark.parametrize("protocol", (2, 4, 5))
@pytest.mark.parametrize(
    ("value", "shown"),
    (
        (pd.DataFrame({"a": [1]}), "DataFrame"),
        (np.arange(9), "ndarray"),
        (Own(), "Own"),
        (datetime(2026, 1, 1), "datetime"),
        ({"frame": pd.DataFrame({"a": [1]})}, "dict"),
        ([Own()], "list"),
        ("pandas.core.frame DataFrame", "pickle"),
        ((1, pd.DataFrame()), "pickle"),
        (7, "pickle"),
    ),
)
def test_the_type_of_a_pickle_is_read_without_running_it(value, shown, protocol):
    """The class of a pickled value is read from its instructions; nothing in it runs."""
    buffers = []
    options = {"buffer_callback": buffers.append} if protocol >= 5 else {}
    written = pickle.dumps(value, protocol, **options)
    assert type_of("pickle", written, b"") == shown
    assert type_of("native:pickle", None, written) == shown


@pytest.mark.parametrize("start", (b"", b"\x80", b"\x80\x05\xff" * 9, b"cos\nsystem\n(S'x'\ntR."))
def test_the_type_of_a_hostile_pickle(start):
    """A damaged or hostile pickle has a type that is a short name, and nothing happens."""
    assert type_of("pickle", start, b"") in ("pickle", "system")
    assert len(type_of("pickle", b"c" + b"m" * 2000 + b"\n" + b"n" * 2000 + b"\n.", b"")) <= 40
