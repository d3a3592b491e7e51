"""numpy arrays arrive as sent, writable, and without copies."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from offload.errors import SerializationError
from offload.serializers import Registry

DTYPES = {
    *("?", "i1", "u1", "<i2", ">i2", "<u4", ">u4", "<i8", ">i8", "<f2", ">f2", "<f4", ">f8"),
    *("g", "F", "D", "G", ">c8", "S5", "U3", ">U3", "V8", "V0", "S0", "U0"),
    *("M8[D]", "M8[ns]", ">M8[us]", "M8[25s]", "M8", "m8[h]", "m8[ns]", "m8"),
    "i4,f8",
}
STRUCTURED = {
    "nested": np.dtype([("a", "<i2"), ("b", [("c", "f4"), ("d", "S3")]), ("e", "u1", (2, 3))]),
    "aligned": np.dtype([("a", "i1"), ("b", "f8"), ("c", "i2")], align=True),
    "titles": np.dtype([(("Title", "a"), "i4"), ("b", "f8")]),
    "gaps": np.dtype({"names": ["x", "y"], "formats": ["i4", "f4"], "offsets": [8, 0]}),
    "padded": np.dtype({"names": ["x"], "formats": ["i4"], "offsets": [4], "itemsize": 16}),
    "overlap": np.dtype({"names": ["x", "y"], "formats": ["i4", "i2"], "offsets": [0, 0]}),
    "record": np.dtype((np.record, [("a", "i4"), ("b", "f8")])),
    "no fields": np.dtype([]),
    "no width": np.dtype([("a", "<U0"), ("b", "i4"), ("c", "S0"), ("d", "V0")]),
    "no width at all": np.dtype([("a", "<U0")]),
    "times": np.dtype([("t", "M8[ms]"), ("d", "m8[D]")]),
}
LAYOUTS = {
    "C": lambda a: a,
    "F": lambda a: np.asfortranarray(a),
    "transposed": lambda a: a.T,
    "strided": lambda a: a[::2, 1:],
    "reversed": lambda a: a[::-1],
    "0-d": lambda a: a[1:2, 1].reshape(()),
    "empty": lambda a: a[:0],
    "broadcast": lambda a: np.broadcast_to(a[:1], (5, a.shape[1])),
}


def array_of(dtype):
    dtype = np.dtype(dtype)
    shape = (4, 6)
    size = shape[0] * shape[1] * dtype.itemsize
    values = np.random.default_rng(0).integers(0, 2, size, dtype="u1")
    if not size:
        return np.zeros(shape, dtype)
    return np.ndarray(shape, dtype, values.tobytes()).copy()


@pytest.mark.parametrize("native", ("json", "pickle", "msgpack"))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", (*sorted(DTYPES), *STRUCTURED))
def test_every_dtype_in_every_layout_arrives_the_same(help_, dtype, layout, native):
    """Arrays of every dtype and memory layout arrive unchanged and writable."""
    array = LAYOUTS[layout](array_of(STRUCTURED.get(dtype, dtype)))
    got = help_.through(array, native, {native})
    # Pickle converts foreign byte orders to the machine's.
    expected = help_.plain_celery(array, native) if native == "pickle" else array
    assert help_.same(got, expected)
    assert got.flags.writeable


@pytest.mark.parametrize("dtype", sorted(DTYPES - {"V0", "S0", "U0"}))
def test_every_scalar_that_json_cannot_carry_arrives_the_same(help_, dtype):
    """NumPy scalars of every dtype arrive with their value and type."""
    scalar = array_of(dtype)[0, 0]
    sent = [scalar, {1}]  # the set makes JSON unable to serialize it in its own way
    if isinstance(scalar, (np.float64, np.complex128, np.str_, np.bytes_)):
        assert help_.same(help_.through(sent)[0], scalar)
    else:
        assert help_.same(help_.through(scalar), scalar)


@pytest.mark.parametrize("native", ("json", "pickle"))
def test_a_column_of_zero_width_arrives_the_same(help_, native):
    """numpy tends to turn items of zero width into items of one byte."""
    column = np.zeros(300, [("a", "<U0"), ("b", "i4")])["a"]
    got = help_.through([column, {1}], native, {native})[0]
    assert (got.dtype, got.shape, got.nbytes) == (np.dtype("<U0"), (300,), 0)


@pytest.mark.parametrize(
    "value",
    (
        np.matrix([[1, 2], [3, 4]]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]).view(np.recarray),
        np.ma.array([1.0, 2.0], mask=[True, False], fill_value=7),
        np.ma.array([1, 2]),
        np.ma.array([1, 2], mask=[0, 1], hard_mask=True),
        np.ma.array([(1, 2.0)], mask=[(0, 1)], dtype=[("a", "i4"), ("b", "f8")]),
        np.dtype([("a", "<i2")]),
    ),
    ids=lambda v: type(v).__name__,
)
def test_numpys_own_subclasses_arrive_as_themselves(help_, value):
    """Matrices, record arrays, masked arrays, and dtypes arrive as what they were."""
    assert help_.same(help_.through(value), value)


def test_a_memory_mapped_array_arrives_as_its_content(help_, tmp_path):
    """A memory-mapped array arrives as a memmap with its content."""
    mapped = np.memmap(tmp_path / "array", dtype="f8", mode="w+", shape=(3,))
    mapped[:] = 1.5
    got = help_.through(mapped)
    assert type(got) is np.memmap
    assert got.tolist() == [1.5] * 3


@pytest.mark.parametrize(
    "value",
    (
        np.array([1, "a"], dtype=object),
        np.array([(1, None)], dtype=[("a", "i4"), ("o", object)]),
        np.zeros(2, np.dtype("f8", metadata={"unit": "m"})),
        type("Own", (np.ndarray,), {})((2,)),
    ),
    ids=("objects", "objects within", "metadata", "subclass"),
)
def test_other_memory_layouts_are_left_to_pickle(help_, value):
    """Object arrays, dtype metadata, and users' subclasses are refused without pickle."""
    with pytest.raises(SerializationError, match="add 'pickle'"):
        help_.through(value)


@pytest.mark.parametrize("order", ("C", "F"))
@pytest.mark.parametrize("native", ("json", "pickle"))
@pytest.mark.parametrize("wrap", (False, True), ids=("array", "within"))
def test_an_array_is_neither_copied_out_nor_in(native, wrap, order):
    """A serialized array shares memory with the original, and a read one with its buffer."""
    array = np.ones((300, 200), order=order)
    registry = Registry({"json", "pickle"})
    payload = registry.encode({"a": array} if wrap else array, native)
    [view] = payload.buffers
    assert np.shares_memory(np.frombuffer(view, "u1"), array)
    memory = mmap.mmap(-1, view.nbytes)
    memory[:] = bytes(view)
    got = registry.decode(payload.serializer, payload.head, [memoryview(memory)])
    got = got["a"] if wrap else got
    got[0, 0] = 5.0
    assert np.frombuffer(memory)[0] == 5.0


@pytest.mark.parametrize("native", ("json", "pickle"))
@pytest.mark.parametrize("wrap", (False, True), ids=("array", "within"))
def test_a_read_only_array_is_not_copied_and_arrives_writable(help_, native, wrap):
    """A read-only array is serialized without a copy, and only the one that arrives is writable."""
    array = np.ones(5000)
    array.flags.writeable = False
    sent = [array] if wrap else array
    payload = Registry({"json", "pickle"}).encode(sent, native)
    [view] = payload.buffers
    assert np.shares_memory(np.frombuffer(view, "u1"), array)
    got = help_.through(sent, native, {"json", "pickle"})
    assert (got[0] if wrap else got).flags.writeable
    assert not array.flags.writeable


def test_the_buffers_keep_their_array_alive():
    """A payload's buffers stay valid after the last other reference to the array is gone."""
    import gc

    array = np.arange(50_000)
    array.flags.writeable = False
    payload = Registry({"pickle"}).encode([array], "pickle")
    expected = array.tobytes()
    del array
    gc.collect()
    junk = [np.zeros(50_000, "i8") for _ in range(20)]
    assert bytes(payload.buffers[0]) == expected
    del junk


def test_pickle_keeps_small_arrays_inside():
    """Small arrays are pickled within the head, without buffers of their own."""
    payload = Registry({"pickle"}).encode([np.zeros(4)] * 3, "pickle")
    assert not payload.buffers


def test_a_copy_has_no_data_in_its_padding():
    """Padding of a copied structured array is zero and discloses no memory."""
    dtype = np.dtype([("a", "u1"), ("b", "f8")], align=True)
    array = np.full(dtype.itemsize * 200, 0xFF, "u1").view(dtype)[::2]
    [view] = Registry({"json"}).encode(array, "json").buffers
    assert np.frombuffer(view, "u1").reshape(-1, dtype.itemsize)[:, 1:8].sum() == 0
