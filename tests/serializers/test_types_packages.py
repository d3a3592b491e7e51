"""Other packages' types that offload registers itself, with the real packages.

A package that isn't installed is skipped; torch and geopandas are too large for `make test`.
"""

from __future__ import annotations

import base64
import subprocess
import sys
import tracemalloc
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload import DeserializationError, SerializationError, UnknownType
from offload.serializers import Registry
from offload.serializers.types.registry import BUILT_IN, registered_types
from tests.serializers.conftest import stored

CHECKS = {"json": {"json"}, "pickle": {"json", "pickle"}}


def through(value, native="json", *, same_bytes=True):
    """Return the value, which travels as data, after a trip through storage."""
    registry = Registry(CHECKS[native])
    payload = registry.encode([value], native)
    assert payload.serializer == "tree"
    [arrived] = registry.decode("tree", payload.head, stored(payload))
    assert type(arrived) is type(value)
    again = registry.encode([arrived], native)
    if same_bytes:
        assert again.head == payload.head
        assert list(map(bytes, again.buffers)) == list(map(bytes, payload.buffers))
    return arrived


def shared(value, memory):
    """Return whether encoding and decoding *value* copy none of its memory."""
    payload = Registry({"json"}).encode(value, "json")
    views = [np.frombuffer(view, np.uint8) for view in payload.buffers]
    assert any(np.shares_memory(view, memory(value)) for view in views)
    buffers = stored(payload)
    arrived = Registry({"json"}).decode("tree", payload.head, buffers)
    return any(
        np.shares_memory(np.frombuffer(buffer, np.uint8), memory(arrived)) for buffer in buffers
    )


def refused(name, data, buffers=()):
    head = orjson.dumps({"registered": [name, 1, data]})
    with pytest.raises(DeserializationError):
        Registry({"json"}).decode("tree", head, list(buffers))


def test_a_package_that_the_app_has_not_imported_is_not_used():
    """Encoding and decoding import no package: only what the app has imported is active."""
    code = """
import sys
from offload import UnknownType
from offload.serializers import Registry
from offload.serializers.types.registry import registered_types
head = b'{"registered": ["%s", 1, null]}'
packages = {"scipy.sparse.csr_array": "scipy", "PIL.Image": "pillow", "torch.Tensor": "torch",
            "xarray.Dataset": "xarray"}
for name, extra in packages.items():
    try:
        Registry({"json"}).decode("tree", head % name.encode(), [])
    except UnknownType as exc:
        assert f"offload[{extra}]" in str(exc), exc
    else:
        raise AssertionError(name)
Registry({"json"}).encode([{1, 2}], "json")
assert registered_types() == []
assert not {"scipy", "PIL", "torch", "xarray"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_type_that_is_listed_exists():
    """The names that errors and `celery offload types` list are those that the packages have."""
    for built_in in BUILT_IN.values():
        if built_in.imported in sys.modules:
            names = {each.name for each in registered_types() if each.built_in}
            assert set(built_in.types) <= names


# -- scipy.sparse

FORMATS = [f"{form}_{kind}" for form in ("bsr", "coo", "csc", "csr", "dia", "dok", "lil")
           for kind in ("array", "matrix")]  # fmt: skip


@pytest.fixture(scope="module")
def sp():
    return pytest.importorskip("scipy.sparse")


def same_sparse(one, other):
    assert (one.shape, one.dtype, one.format) == (other.shape, other.dtype, other.format)
    assert one.nnz == other.nnz
    for name in ("data", "indices", "indptr", "offsets", "row", "col"):
        if one.format in ("dok", "lil"):
            break
        if hasattr(other, name) and one.ndim == 2:
            first, second = getattr(one, name), getattr(other, name)
            assert first.dtype == second.dtype
            assert first.tobytes() == second.tobytes()
    np.testing.assert_array_equal(one.toarray(), other.toarray())


@pytest.mark.parametrize("native", CHECKS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", ("f8", "f4", "i8", "u1", "?", "c16"))
def test_sparse_matrices_of_every_format_arrive_exactly(sp, name, dtype, native):
    """A sparse matrix or array arrives in its class, dtype, indices, and explicit zeros."""
    dense = np.array([[0, 1, 0, 2], [0, 0, 0, 0], [3, 0, 0, 0]]).astype(dtype)
    value = getattr(sp, name)(dense)
    same_sparse(through(value, native), value)
    same_sparse(
        through(getattr(sp, name)((3, 5), dtype=dtype), native),
        getattr(sp, name)((3, 5)).astype(dtype),
    )


def test_sparse_matrices_keep_what_is_unusual(sp):
    """Explicit zeros, unsorted and wide indices, blocks, and one dimension are kept."""
    wide = sp.csr_array(np.eye(3))
    wide.indices, wide.indptr = wide.indices.astype("i8"), wide.indptr.astype("i8")
    unsorted = sp.csr_matrix(([1.0, 0.0, 2.0], [2, 0, 1], [0, 2, 3]), shape=(2, 3))
    for value in (
        wide,
        unsorted,
        sp.coo_array(([1, 2], ([0, 0], [1, 1])), shape=(2, 2)),  # a duplicate
        sp.bsr_array(np.kron(np.eye(2), np.ones((2, 3))), blocksize=(2, 3)),
        sp.coo_array(([1.5], ([2],)), shape=(5,)),
        sp.csr_array(([1.5], ([2],)), shape=(5,)),
        sp.coo_array(([1], ([1], [2], [3])), shape=(2, 3, 4)),
        sp.dok_array((10**9, 10**9), dtype="f4"),
    ):
        arrived = through(value)
        if value.shape[0] < 10**6:
            same_sparse(arrived, value)
    assert through(sp.bsr_array(np.eye(4), blocksize=(2, 2))).blocksize == (2, 2)


def test_sparse_data_is_not_copied(sp):
    """The arrays of a compressed matrix share memory with the buffers on both sides."""
    value = sp.csr_matrix(np.eye(500))
    assert shared(value, lambda each: each.data)
    assert shared(value, lambda each: each.indices)


def test_sparse_indices_that_point_outside_are_refused(sp):
    """Indices that would let scipy read or write other memory are refused."""
    good = Registry({"json"}).encode(sp.csr_matrix(np.eye(500)), "json")
    for number in range(1, 3):
        buffers = stored(good)
        buffers[number][40:44] = b"\xff\xff\xff\x7f"
        with pytest.raises(DeserializationError):
            Registry({"json"}).decode("tree", good.head, buffers)
    coo = Registry({"json"}).encode(sp.coo_matrix(np.eye(500)), "json")
    buffers = stored(coo)
    buffers[1][40:44] = b"\xff\xff\xff\x7f"
    with pytest.raises(DeserializationError):
        Registry({"json"}).decode("tree", coo.head, buffers)
    refused("scipy.sparse.csr_matrix", [[2, 2], None, None, None])
    refused("scipy.sparse.dok_matrix", [[2], 1, 2])


# -- PIL.Image

MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA",
         "RGBX", "RGBa", "La", "I;16", "I;16B", "I;16L")  # fmt: skip


@pytest.fixture(scope="module")
def image():
    return pytest.importorskip("PIL.Image")


def same_image(one, other):
    assert (one.mode, one.size, one.info) == (other.mode, other.size, other.info)
    assert one.tobytes() == other.tobytes()
    assert (one.palette is None) == (other.palette is None)
    if other.palette is not None:
        assert one.palette.mode == other.palette.mode
        assert one.getpalette(one.palette.mode) == other.getpalette(other.palette.mode)
        assert one.convert("RGBA").tobytes() == other.convert("RGBA").tobytes()


@pytest.mark.parametrize("native", CHECKS)
@pytest.mark.parametrize("mode", MODES)
def test_images_of_every_mode_arrive_exactly(image, mode, native):
    """An image arrives with its mode, size, pixels, palette, and info."""
    made = image.new(mode, (13, 7))
    content = bytes(range(256)) * 4
    size = len(made.tobytes())
    made.frombytes(content[:size] if mode != "1" else b"\xaa\xa8" * 7)
    if mode in ("P", "PA"):
        made.putpalette(
            [*range(30)] if mode == "P" else [*range(40)], "RGB" if mode == "P" else "RGBA"
        )
    made.info["dpi"] = (72, 72)
    same_image(through(made, native), made)
    same_image(through(image.new(mode, (0, 5)), native), image.new(mode, (0, 5)))


def test_an_image_of_a_file_is_refused_with_advice(image, tmp_path):
    """An image that was opened from a file isn't simplified silently: advice says to copy it."""
    image.new("RGB", (5, 5)).save(tmp_path / "x.png")
    with image.open(tmp_path / "x.png") as opened:
        with pytest.raises(SerializationError, match=r"PngImageFile.*\.copy\(\)"):
            Registry({"json"}).encode(opened, "json")
        same_image(through(opened.copy()), opened.copy())


def test_an_image_larger_than_its_pixels_is_refused(image):
    """A size that doesn't fit the pixels is refused before memory is allocated."""
    refused("PIL.Image", ["RGB", [10**6, 10**6], {"raw": ["bytes", "AAAA"]}, None, {}])
    refused("PIL.Image", ["eval", [1, 1], {"raw": ["bytes", "AAAA"]}, None, {}])
    refused("PIL.Image", ["P", [1, 4], {"raw": ["bytes", "AAAAAA=="]}, ["RGB", 5], {}])


@pytest.mark.parametrize("size", ([0, 10**6], [10**6, 0], [0, 0], [0, 10]))
def test_an_empty_image_is_small(image, size):
    """Pillow allocates memory for each row, also of an image without pixels: long ones are refused,
    by the sender, too.
    """
    sent = image.new("L", size)
    if max(size) < 1000:
        assert through(sent).size == tuple(size)
        return
    with pytest.raises(SerializationError, match="too wide or high"):
        Registry({"json"}).encode([sent], "json")
    refused("PIL.Image", ["L", size, {"raw": ["bytes", ""]}, None, {"dict": [[], []]}])


# -- torch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32",
          "float64", "complex64", "complex128", "uint16", "float8_e4m3fn")  # fmt: skip


def same_tensor(one, other, torch):
    assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
    assert one.requires_grad == other.requires_grad
    assert type(one) is type(other)
    first, second = (
        (each.detach().contiguous().view(torch.uint8) for each in (one, other))
        if (one.numel() and one.ndim)
        else (one.detach(), other.detach())
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("native", CHECKS)
@pytest.mark.parametrize("name", DTYPES)
def test_tensors_of_every_dtype_arrive_exactly(torch, name, native):
    """A tensor arrives with its dtype, shape, and bits."""
    dtype = getattr(torch, name)
    value = torch.tensor([[0.0, 1.0, 2.5], [3.0, 4.0, 5.0]]).to(dtype)
    same_tensor(through(value, native), value, torch)
    same_tensor(through(value[:0], native), value[:0], torch)


def test_tensors_keep_strides_and_gradients(torch):
    """Views, transposes, expansions, gaps, and requires_grad arrive as they are."""
    base = torch.arange(24.0).reshape(4, 6)
    for value in (
        base.t(),
        base[::2],
        base[:, ::2],
        base[1:3, 2:4],
        base[0].expand(5, 6),
        base[::2].unsqueeze(0).expand(3, 2, 6),
        torch.tensor(5.0),
        torch.zeros(0, 3),
        torch.arange(4).reshape(2, 1, 2).permute(2, 1, 0),
        torch.ones(3, requires_grad=True),
        torch.nn.Parameter(torch.ones(3)),
        torch.nn.Parameter(torch.ones(3), requires_grad=False),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ):
        same_tensor(through(value), value, torch)
    assert torch.equal(through(torch.tensor([1 + 2j]).conj()), torch.tensor([1 - 2j]))


def test_tensors_send_no_memory_but_their_own(torch):
    """A view sends neither the memory beside its items nor that in the gaps between them."""
    base = torch.full((1000,), 7, dtype=torch.uint8)
    base[::2] = 1
    payload = Registry({"json"}).encode(base[::2], "json")
    [sent] = payload.buffers
    assert (len(sent), bytes(sent).count(7), bytes(sent).count(0)) == (999, 0, 499)
    payload = Registry({"json"}).encode(base[100:500], "json")
    assert [len(buffer) for buffer in payload.buffers] == [400]
    far = base.reshape(10, 100)[:, 3]
    assert Registry({"json"}).encode(far, "json").size < 400
    assert through(far).tolist() == [7] * 10


def test_tensors_are_not_copied(torch):
    """A tensor shares memory with the buffers on both sides."""
    assert shared(torch.zeros(10_000), lambda tensor: tensor.numpy())
    assert shared(torch.zeros(100, 100).t(), lambda tensor: tensor.numpy())
    assert shared(
        torch.zeros(10_000, dtype=torch.bfloat16), lambda tensor: tensor.view(torch.int16).numpy()
    )


def test_tensors_that_are_no_data_are_refused_with_advice(torch):
    """Results of a graph and sparse tensors raise an error with advice where pickle isn't used."""
    for value, advice in (
        (torch.ones(2, requires_grad=True) * 2, r"\.detach\(\)"),
        (torch.eye(2).to_sparse(), r"\.to_dense\(\)"),
        (torch.ones(2, device="meta"), r"\.cpu\(\)"),
    ):
        with pytest.raises(SerializationError, match=advice):
            Registry({"json"}).encode(value, "json")


def test_tensors_larger_than_their_memory_are_refused(torch):
    """Shapes and strides beyond the memory, and endless expansions, are refused."""
    four = {"raw": ["memoryview B 4", "AAAAAA=="]}
    for shape, strides in (
        ([2], [1]),
        ([10**12], [1]),
        ([2, 10**12], [0, 0]),
        ([2**61, 2**61], [0, 0]),
        ([1], [-1]),
        ([1, 1], [1]),
        ([True], [1]),
        ([1] * 100, [1] * 100),
    ):
        refused("torch.Tensor", ["float32", shape, strides, False, four])
    refused("torch.Tensor", ["load", [1], [1], False, four])


# -- xarray


@pytest.fixture(scope="module")
def xr():
    return pytest.importorskip("xarray")


def datasets(xr):
    import pandas as pd

    times = pd.date_range("2026-01-01", periods=3, freq="D")
    points = pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=("letter", "number"))
    yield xr.Dataset()
    yield xr.Dataset(
        {"t": (("time", "x"), np.arange(6.0).reshape(3, 2), {"units": "K"}), "n": 5},
        coords={"time": times, "x": [10, 20], "place": ("x", ["here", "there"]), "run": 7},
        attrs={"title": "test", "list": [1, 2]},
    )
    yield xr.Dataset(
        {"v": ("point", np.arange(4))},
        coords=xr.Coordinates.from_pandas_multiindex(points, "point"),
    )
    yield xr.Dataset({"v": ("x", np.array(["a", None], object))})
    yield xr.Dataset(coords={"x": ("x", [1, 2])}).drop_indexes("x")
    yield xr.Dataset({"m": ("x", np.array(["2026-01-01"], "M8[ns]"))})
    yield xr.Dataset(coords={"x": ("x", np.array([1, 2], "f4")), "y": ("y", ["é", "longer"])})
    yield (
        xr.Dataset({"a": ("x", [1, 2])}, coords={"x": [1, 2]})
        .assign_coords(x2=("x", [3, 4]))
        .set_xindex("x2")
    )


@pytest.mark.parametrize("native", CHECKS)
def test_datasets_arrive_exactly(xr, native):
    """A dataset and its arrays arrive identical, with dtypes, indexes, and attributes."""
    for value in datasets(xr):
        arrived = through(value, native, same_bytes=False)  # pandas drops a mask without nulls
        xr.testing.assert_identical(arrived, value)
        assert list(arrived.variables) == list(value.variables)
        assert dict(arrived.xindexes).keys() == dict(value.xindexes).keys()
        for name, index in value.indexes.items():
            assert arrived.indexes[name].identical(index)
            assert getattr(arrived.indexes[name], "freq", None) == getattr(index, "freq", None)
        for name, variable in value.variables.items():
            assert arrived.variables[name].dtype == variable.dtype
            assert type(arrived.variables[name]) is type(variable)
        for array in value.data_vars.values():
            xr.testing.assert_identical(through(array, native, same_bytes=False), array)
            xr.testing.assert_identical(through(array.variable, native), array.variable)
    named = xr.DataArray([1, 2], dims="x", name="named", attrs={"a": 1})
    xr.testing.assert_identical(through(named), named)


def test_the_data_of_a_dataset_is_not_copied(xr):
    """The arrays of a dataset share memory with the buffers on both sides."""
    value = xr.Dataset({"v": ("x", np.zeros(10_000))})
    assert shared(value, lambda each: each["v"].data)


def test_lazy_data_is_refused_with_advice(xr):
    """Data that isn't in memory as an array raises an error with advice."""

    class Lazy:
        shape, dtype, ndim = (2,), np.dtype("f8"), 1

        def __array_function__(self, *args):
            raise AssertionError

        def __array_ufunc__(self, *args):
            raise AssertionError

    with pytest.raises(SerializationError, match=r"\.compute\(\)"):
        Registry({"json"}).encode(xr.Variable("x", Lazy()), "json")


# -- geopandas


@pytest.fixture(scope="module")
def geo():
    return pytest.importorskip("geopandas")


def geometries():
    import shapely

    texts = (
        *("POINT (1 2)", "POINT Z (1 2 3)", "POINT EMPTY", None, "LINESTRING (0 0, 1 1)"),
        "POLYGON ((0 0, 9 0, 9 9, 0 0), (2 1, 3 1, 3 2, 2 1))",
        *("MULTIPOINT (0 0, 1 1)", "MULTILINESTRING ((0 0, 1 1), (2 2, 3 3))"),
        *("MULTIPOLYGON (((0 0, 1 0, 1 1, 0 0)))", "GEOMETRYCOLLECTION EMPTY"),
        "GEOMETRYCOLLECTION (POINT (1 1), GEOMETRYCOLLECTION (LINESTRING Z (0 0 1, 1 1 2)))",
    )
    made = [None if text is None else shapely.from_wkt(text) for text in texts]
    return [*made, shapely.set_srid(made[0], 4326)]


CRS = (None, "EPSG:4326", "OGC:CRS84", "EPSG:4326+5773", "+proj=laea +lat_0=45 +ellps=sphere")


@pytest.mark.parametrize("crs", CRS)
@pytest.mark.parametrize("native", CHECKS)
def test_series_of_geometries_arrive_exactly(geo, native, crs):
    """Geometries of every type arrive with dimensions, SRID, CRS, index, name, and attributes."""
    import pandas as pd
    import shapely

    given = geometries()
    index = pd.Index(range(5, 5 + len(given)), name="k")
    value = geo.GeoSeries(given, index=index, crs=crs, name="n")
    value.attrs = {"a": 1}
    arrived = through(value, native)
    assert [shapely.to_wkb(each, include_srid=True) for each in arrived] == [
        shapely.to_wkb(each, include_srid=True) for each in value
    ]
    assert list(map(type, arrived)) == list(map(type, value))
    assert arrived.crs == value.crs
    assert arrived.index.identical(value.index)
    assert (arrived.name, arrived.attrs) == ("n", {"a": 1})


@pytest.mark.parametrize("native", CHECKS)
def test_frames_with_geometries_arrive_exactly(geo, native):
    """A frame arrives with its columns in their order, each CRS, and the active geometry."""
    from geopandas.testing import assert_geodataframe_equal

    points = geometries()[:2]
    other = geo.GeoSeries(geometries()[5:7], crs=3857)
    frame = geo.GeoDataFrame(
        {"a": [1, 2], "geometry": points, "b": ["x", "y"], "other": other}, crs=4326
    )
    frame.attrs = {"title": "test"}
    for value in (
        *(frame, frame.set_geometry("other"), frame.rename_geometry("shape"), frame[["geometry"]]),
        *(frame.set_index("b"), frame.iloc[:0], geo.GeoDataFrame({"a": [1]}), geo.GeoDataFrame()),
    ):
        arrived = through(value, native, same_bytes=False)  # pandas drops a mask without nulls
        assert arrived.active_geometry_name == value.active_geometry_name
        assert arrived.columns.identical(value.columns)
        assert arrived.index.identical(value.index)
        assert list(arrived.dtypes) == list(value.dtypes)  # with each CRS
        assert arrived.attrs == value.attrs
        if value.active_geometry_name:
            assert_geodataframe_equal(arrived, value)


def test_geometries_that_would_end_the_process_are_refused(geo):
    """GEOS reads nested collections recursively, and overflows the stack; such data is refused, and
    so are cut, unknown, and miscounted geometries, and a CRS that names a file.
    """
    import struct

    def data(text, crs=None):
        sizes = {**ARRAY, "dtype": "<i8", "data": base64.b64encode(struct.pack("<q", len(text)))}
        sizes["data"] = sizes["data"].decode()
        content = {"raw": [f"memoryview B {len(text)}", 0]}
        return [[crs, {"numpy": sizes}, content], {"pandas": None}, None, {"dict": [[], []]}]

    point = struct.pack("<BIdd", 1, 1, 0, 0)
    nested = struct.pack("<BII", 1, 7, 1)
    for text in (
        *(nested * 16 + point, nested * 100_000 + point, nested * 3, point[:-1]),
        *(struct.pack("<BII", 1, 7, 2**32 - 1) + point, struct.pack("<BII", 1, 17, 1) + point),
        struct.pack("<BIII", 1, 3, 2**32 - 1, 2**32 - 1),
    ):
        body = data(text)[0]
        with pytest.raises(DeserializationError):
            read_geometries(body, text)
    for crs in (
        "+init=/etc/passwd:x",
        "init=epsg:4326",
        "/etc/passwd",
        "EPSG:4326:",
        5,
        "x" * 10**5,
    ):
        with pytest.raises(DeserializationError):
            read_geometries(data(point, crs)[0], point)
    assert read_geometries(data(point)[0], point)[0].wkt == "POINT (0 0)"


def read_geometries(body, text):
    node = {"registered": ["geopandas.GeoSeries", 1, [body, None, None, {"dict": [[], []]}]]}
    return Registry({"json"}).decode(
        "tree", memoryview(orjson.dumps(node)), [memoryview(bytearray(text))]
    )


def test_linear_rings_are_refused_with_advice(geo):
    """A linear ring, which would arrive as a line, raises an error with advice."""
    import shapely

    ring = shapely.LinearRing([(0, 0), (1, 0), (1, 1)])
    with pytest.raises(SerializationError, match="LineString"):
        Registry({"json"}).encode(geo.GeoSeries([ring]), "json")


# -- hostile data

MANY = {"range": [0, 10**8, 1]}
NONE = {"dict": [[], []]}


def numbers(count, dtype="<i4", data=""):
    return {
        "numpy": {"kind": "array", "dtype": dtype, "shape": [count], "order": "C", "data": data}
    }


NO_GEOMETRIES = [None, numbers(0, "<i8"), {"raw": ["memoryview B 0", ""]}]


def data_array(*index):
    return [[["x"], numbers(0), NONE], [NONE, [list(index)]], None]


@pytest.mark.parametrize(
    ("name", "data"),
    (
        ("PIL.Image", ["L", [10**4, 10**4], MANY, None, NONE]),
        ("scipy.sparse.coo_array", [[5], numbers(0), MANY]),
        ("scipy.sparse.coo_array", [[5], MANY, [numbers(0)]]),
        ("scipy.sparse.dia_array", [[5, 5], MANY, numbers(0)]),
        ("scipy.sparse.csr_array", [[1, 1], MANY, numbers(0), numbers(2, data="AAAAAAAAAAA=")]),
        ("scipy.sparse.bsr_array", [[1, 1], MANY, numbers(0), numbers(2, data="AAAAAAAAAAA=")]),
        (
            "scipy.sparse.lil_array",
            [
                [300_000, 1],
                numbers(0),
                numbers(0),
                numbers(300_001, "|i1", base64.b64encode(bytes(300_001)).decode()),
            ],
        ),
        ("geopandas.GeoSeries", [NO_GEOMETRIES, numbers(10**8, "S0"), None, NONE]),
        ("xarray.Variable", [MANY, numbers(0), NONE]),
        ("xarray.Variable", [["x"], [[10**8], MANY], NONE]),
        ("xarray.Variable", [["x"], [[10**8], numbers(10**8, "S0")], NONE]),
        ("xarray.DataArray", data_array("index", ["x"], MANY, "x", [None])),
        ("xarray.DataArray", data_array("index", MANY, {"pandas": {"index": {"values": {
            "numpy": numbers(0)}, "names": [None]}}}, "x", [None])),
    ),
    ids=str,
)  # fmt: skip
def test_what_takes_no_memory_is_not_expanded(name, data):
    """A range, or an array without width, in place of a list is refused by decoders of packages."""
    pytest.importorskip(BUILT_IN[name.partition(".")[0]].imported)
    tracemalloc.start()
    try:
        refused(name, data)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


ARRAY = {"kind": "array", "dtype": "<i4", "shape": [1], "order": "C", "data": "AAAAAA=="}
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
    | st.sampled_from(["f8", "P", "RGB", "float32", "x", "multi", "index"])
    | st.just({"raw": ["memoryview B 4", "AAAAAA=="]})
    | st.just({"numpy": ARRAY}),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=10,
)  # fmt: skip
NAMES = [name for package, each in BUILT_IN.items() if find_spec(package) for name in each.types]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(NAMES), st.lists(junk, min_size=2, max_size=5))
def test_decoders_of_packages_raise_typed_errors(name, data):
    """Whatever the data is, the decoder of a package's type returns a value or a typed error."""
    import_module(BUILT_IN[name.partition(".")[0]].imported)
    head = orjson.dumps({"registered": [name, 1, data]})
    try:
        Registry({"json"}).decode("tree", head, [])
    except DeserializationError as exc:
        assert not isinstance(exc, UnknownType)  # noqa: PT017


@settings(max_examples=150, deadline=None)
@given(st.randoms())
def test_altered_values_of_packages_raise_typed_errors(at):
    """A sparse matrix, image, or dataset with altered bytes is read, or raises a typed error."""
    for payload in samples():
        parts = [bytearray(payload.head), *(bytearray(buffer) for buffer in payload.buffers)]
        part = at.choice(parts)
        if part:
            part[at.randrange(len(part))] = at.randrange(256)
        try:
            arrived = Registry({"json"}).decode("tree", parts[0], list(map(memoryview, parts[1:])))
        except DeserializationError:
            continue
        for value in arrived if type(arrived) is list else ():
            if hasattr(value, "toarray") and len(value.shape) == 2 and max(value.shape) < 100:
                value.toarray()


SAMPLES = []


def samples():
    if not SAMPLES:
        sp, image, xr = map(pytest.importorskip, ("scipy.sparse", "PIL.Image", "xarray"))
        values = [getattr(sp, name)(np.eye(20)) for name in FORMATS]
        values += [image.new("P", (20, 20)), *datasets(xr)]
        SAMPLES.extend(Registry({"json"}).encode([value], "json") for value in values)
    return SAMPLES
