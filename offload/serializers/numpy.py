"""Tree nodes for numpy arrays, scalars, and dtypes without Python objects."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from offload.serializers.base import NotData
from offload.serializers.library_internals import fill_value
from offload.serializers.tree import Reader, Writer
from offload.text import type_name

_SUBCLASSES: dict[str, Any] = {"matrix": np.matrix, "memmap": np.memmap, "recarray": np.recarray}
"""Subclasses of ndarray with no state besides their memory."""

_KINDS = frozenset("biufcmMSUV")
_NUMBERS = frozenset("biufcmM")
_MAX_DIMENSIONS = 64
_NAME = re.compile(r"[<>|=]?(?:[biufcSUV][0-9]{1,10}|[mM]8(?:\[[0-9]{0,10}[A-Za-zμ]{1,7}\])?)")
"""Pattern of a dtype as in numpy's ``dtype.str``."""


def write(value: Any, writer: Writer) -> Any:
    """Return the node of a numpy array, scalar, or dtype. Raises NotData."""
    kind: Any = type(value)
    if isinstance(value, np.dtype):
        return {"kind": "dtype", "dtype": write_dtype(value)}
    if isinstance(value, np.generic):
        array: Any = np.asarray(value)
        if kind is not type(array[()]):
            raise NotData(f"no accepted serializer supports values of type {type_name(value)}")
        return {"kind": "scalar", **_write_array(array, writer)}
    if kind is np.ma.MaskedArray:
        return _write_masked(value, writer)
    if kind is np.ndarray:
        return {"kind": "array", **_write_array(value, writer)}
    name: str = kind.__name__
    if _SUBCLASSES.get(name) is not kind:
        raise NotData(f"no accepted serializer supports values of type {type_name(value)}")
    return {"kind": name, **_write_array(value.view(np.ndarray), writer)}


def read(body: Any, reader: Reader) -> Any:
    """Return the value of a node; arrays use the buffers' memory. Raises ValueError."""
    kind = body["kind"]
    if kind == "dtype":
        return read_dtype(body["dtype"])
    if kind == "masked":
        return _read_masked(body, reader)
    array = read_array(body, reader)
    if kind == "array":
        return array
    if kind == "scalar":
        if array.ndim:
            raise ValueError("a scalar has no shape")
        return array[()]
    return array.view(_SUBCLASSES[kind])


def flat_bytes(array: np.ndarray[Any, Any]) -> tuple[memoryview, str]:
    """Return an array's memory, and its order: C or F.

    Copies the array if it is contiguous in neither order.
    """
    if not array.nbytes:
        return memoryview(b""), "F" if array.flags.fnc else "C"
    if array.flags.c_contiguous:
        order = "C"
    elif array.flags.f_contiguous:
        array, order = array.T, "F"
    else:
        array, order = _contiguous(array), "C"
    return memoryview(array.reshape(-1).view(np.uint8)), order


def _contiguous(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype.names is None:
        return np.ascontiguousarray(array)
    # Start from zeros, so that gaps between fields don't expose old memory. Copy field by field,
    # because numpy 2.5 copies whole items, including the gaps.
    copy = np.zeros(array.shape, array.dtype)
    for name in array.dtype.names:
        copy[name] = array[name]
    return copy


def from_bytes(
    buffer: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], order: str
) -> np.ndarray[Any, Any]:
    """Return an array that uses the memory of *buffer*. Raises ValueError if that is impossible."""
    if dtype.hasobject or len(shape) > _MAX_DIMENSIONS or order not in ("C", "F"):
        raise ValueError("not an array of plain data")
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("not a shape")
    if math.prod(shape) * dtype.itemsize != buffer.nbytes:
        raise ValueError(f"{buffer.nbytes} bytes don't make an array of {shape} {dtype}")
    # Also do so for an empty buffer: numpy.empty would allocate memory for items of dtype S0.
    return np.ndarray(shape, dtype, buffer, order=order)  # type: ignore[arg-type]


def write_dtype(dtype: np.dtype[Any]) -> Any:
    """Return a dtype as JSON. Raises NotData if JSON can't describe it exactly."""
    if dtype.kind in _NUMBERS and not dtype.metadata:
        return dtype.str
    node = _dtype_node(dtype)
    if not _same(read_dtype(node), dtype):
        raise NotData(f"its dtype is {dtype!s:.100}")
    return node


def read_dtype(node: Any) -> np.dtype[Any]:
    """Return the dtype that a node describes. Raises ValueError."""
    if isinstance(node, str):
        if not _NAME.fullmatch(node):
            raise ValueError("not a dtype of plain data")
        return np.dtype(node)
    if "base" in node:
        shape = tuple(node["shape"])
        if any(type(n) is not int or n < 0 for n in shape):
            raise ValueError("not a shape")
        return np.dtype((read_dtype(node["base"]), shape))
    fields: dict[str, Any] = {
        "names": node["names"],
        "formats": [read_dtype(f) for f in node["formats"]],
        "offsets": node["offsets"],
        "itemsize": node["itemsize"],
    }
    if "titles" in node:
        fields["titles"] = node["titles"]
    dtype = np.dtype(fields, align=bool(node["aligned"]))  # type: ignore[call-overload]
    if node["record"]:
        dtype = np.dtype((np.record, dtype))
    return dtype  # type: ignore[no-any-return]


def _dtype_node(dtype: np.dtype[Any]) -> Any:
    if dtype.hasobject or dtype.kind not in _KINDS:
        raise NotData(f"its dtype is {dtype!s:.100}")
    if dtype.metadata:
        raise NotData("its dtype has metadata")
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": _dtype_node(base), "shape": list(shape)}
    if dtype.fields is None or dtype.names is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    node = {
        "names": list(dtype.names),
        "formats": [_dtype_node(f[0]) for f in fields],
        "offsets": [f[1] for f in fields],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
        "record": dtype.type is np.record,
    }
    titles = [f[2] if len(f) == 3 else None for f in fields]
    if any(title is not None for title in titles):
        if not all(title is None or type(title) is str for title in titles):
            raise NotData("its dtype has titles that are not strings")
        node["titles"] = titles
    return node


def _same(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    return (
        one == other
        and one.type is other.type
        and one.str == other.str
        and one.itemsize == other.itemsize
        and one.isalignedstruct == other.isalignedstruct
        and one.fields == other.fields
    )


def _write_array(array: np.ndarray[Any, Any], writer: Writer) -> dict[str, Any]:
    dtype = write_dtype(array.dtype)
    view, order = flat_bytes(array)
    shape = list(array.shape)
    return {"dtype": dtype, "shape": shape, "order": order, "data": writer.buffer(view)}


def read_array(body: Any, reader: Reader) -> np.ndarray[Any, Any]:
    """Return the array of a node's body. Raises ValueError."""
    dtype, shape = read_dtype(body["dtype"]), tuple(body["shape"])
    return from_bytes(reader.buffer(body["data"]), dtype, shape, body["order"])


def _write_masked(value: Any, writer: Writer) -> Any:
    mask, fill = value.mask, fill_value(value)
    return {
        "kind": "masked",
        "array": _write_array(np.asarray(value.data), writer),
        "mask": None if mask is np.ma.nomask else _write_array(mask, writer),
        "fill": None if fill is None else _write_array(np.asarray(fill), writer),
        "hard": bool(value.hardmask),
    }


def _read_masked(body: Any, reader: Reader) -> Any:
    array = read_array(body["array"], reader)
    mask = np.ma.nomask if body["mask"] is None else read_array(body["mask"], reader)
    fill = None if body["fill"] is None else read_array(body["fill"], reader)
    of_mask = np.ma.make_mask_descr(array.dtype)
    if array.dtype.names is not None:
        reader.spend(array.dtype.itemsize)  # of a fill value
    # numpy would allocate memory to make them fit.
    if mask is not np.ma.nomask and (mask.shape, mask.dtype) != (array.shape, of_mask):
        raise ValueError("not the mask of this array")
    if fill is not None and (fill.ndim or fill.dtype != array.dtype):
        raise ValueError("not a value of this array")
    masked: Any = np.ma.MaskedArray(array, mask=mask, hard_mask=bool(body["hard"]), copy=False)
    if fill is not None:
        masked.fill_value = fill
    return masked
