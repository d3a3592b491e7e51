"""CPython, kombu, numpy, and pandas still have the undocumented parts that serializers use."""

from __future__ import annotations

import marshal

import numpy as np
import pytest
from kombu.utils import json

from offload.serializers.library_internals import (
    array_maker,
    codec,
    data_and_mask,
    fill_value,
    index_hashes,
)


@pytest.mark.parametrize("kind", (int, float, str, list, tuple, dict, set, frozenset))
def test_cpython_marshals_no_subclass_of_its_types(kind):
    """marshal writes instances of Python's own types, and refuses those of subclasses, of which it
    would otherwise lose the type.
    """
    marshal.dumps([kind()])
    with pytest.raises(ValueError, match="unmarshallable"):
        marshal.dumps([type("Sub", (kind,), {})()])


def test_kombu_returns_encoders_and_decoders():
    """kombu's registry of serializers returns both functions for a name, and none for unknown
    names.
    """
    assert codec("json") == (json.dumps, json.loads)
    assert codec("not-there") is None


def test_numpy_pickles_an_array_by_a_function_that_takes_its_buffer():
    """numpy's pickles of protocol 5 create arrays from a buffer, a dtype, a shape, and an order."""
    made = array_maker()(bytearray(range(6)), np.dtype("u1"), (2, 3), "F")
    assert made.tolist() == [[0, 2, 4], [1, 3, 5]]


def test_numpy_keeps_the_fill_value_that_was_set():
    """numpy's masked array has no fill value until one is set or read."""
    array = np.ma.masked_array([1, 2], [True, False])
    assert fill_value(array) is None
    array.fill_value = 7
    assert fill_value(array) == 7


@pytest.mark.parametrize(
    ("items", "has_hashes"),
    (
        (np.arange(9), True),
        (np.arange(9.0), True),
        (np.arange(9, dtype="c16"), True),
        (np.arange(9, dtype="c8"), True),
        (np.arange(9).astype("M8[s]"), True),
        (np.array(["a", 1, None], object), True),
        (np.arange(9, dtype="i4"), False),
        (np.array([True, False]), False),
    ),
    ids=lambda each: str(getattr(each, "dtype", "")),
)
def test_pandas_hashes_items_of_64_bits_to_32(items, has_hashes):
    """Equal hashes of pandas' items are counted where anyone can choose items that have them: of 64
    bits, or objects.
    """
    pd = pytest.importorskip("pandas")
    hashes = index_hashes(pd.Index(items))
    assert (hashes is not None) == has_hashes
    assert hashes is None or len(set(hashes.tolist())) == len(items) == len(hashes)


def test_pandas_compares_rows_by_one_number():
    """pandas' engine of a MultiIndex has a number for each row, of 64 bits for long levels."""
    pd = pytest.importorskip("pandas")
    rows = pd.MultiIndex([pd.RangeIndex(2**17)] * 2, [np.arange(9), np.arange(9)])
    hashes = index_hashes(rows)
    assert len(set(hashes.tolist())) == len(rows) == len(hashes)
    assert index_hashes(pd.MultiIndex.from_arrays([[1, 2], [1, 2]])) is None


@pytest.mark.parametrize("dtype", ("Int64", "Float64", "boolean"))
def test_pandas_keeps_nullable_values_and_their_mask(dtype):
    """pandas' nullable arrays consist of a numpy array of values and one of booleans."""
    pd = pytest.importorskip("pandas")
    data, mask = data_and_mask(pd.array([1, None, 0], dtype=dtype))
    assert isinstance(data, np.ndarray)
    assert list(data[[0, 2]]) == [1, 0]
    assert list(mask) == [False, True, False]
