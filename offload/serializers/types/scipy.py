"""scipy's sparse matrices and arrays, in all formats."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from offload.serializers.types.registry import NotDecoded, RegisteredType, as_list

_COMPRESSED = ("bsr", "csc", "csr")
_FORMATS = (*_COMPRESSED, "coo", "dia", "dok", "lil")
_MAX_DIMENSIONS = 64


def _encode_compressed(value: Any) -> Any:
    return [list(value.shape), value.data, value.indices, value.indptr]


def _decode_compressed(kind: Any, data: Any, version: int) -> Any:
    shape, content, indices, indptr = data
    _check_content(content)
    _check_arrays(indices, indptr)
    made = kind((content, indices, indptr), shape=_shape(shape), copy=False)
    made.indices, made.indptr = indices, indptr  # the constructor may convert them to a copy
    made.check_format(full_check=True)  # scipy accesses any memory that wrong indices point to
    return made


def _coords(value: Any) -> list[Any]:
    return list(value.coords if hasattr(value, "coords") else (value.row, value.col))


def _encode_coo(value: Any) -> Any:
    return [list(value.shape), value.data, _coords(value)]


def _decode_coo(kind: Any, data: Any, version: int) -> Any:
    shape, content, coords = data
    shape = _shape(shape)
    _check_content(content)
    _check_arrays(*as_list(coords))
    if len(coords) != len(shape) or any(len(each) != len(content) for each in coords):
        raise NotDecoded("its coordinates don't fit its shape")
    for each, most in zip(coords, shape, strict=True):
        if len(each) and not 0 <= each.min() <= each.max() < most:
            raise NotDecoded("a coordinate is outside its shape")
    made = kind((content, tuple(coords)), shape=shape, copy=False)
    if hasattr(made, "coords"):
        made.coords = tuple(coords)
    else:
        made.row, made.col = coords
    return made


def _encode_dia(value: Any) -> Any:
    return [list(value.shape), value.data, value.offsets]


def _decode_dia(kind: Any, data: Any, version: int) -> Any:
    shape, content, offsets = data
    _check_content(content)
    _check_arrays(offsets)
    if content.ndim != 2 or len(content) != len(offsets):
        raise NotDecoded("its diagonals don't fit its offsets")
    made = kind((content, offsets), shape=_shape(shape), copy=False)
    made.offsets = offsets
    return made


def _encode_dok(value: Any) -> Any:
    keys = np.array([*value.keys()], np.int64).reshape(-1, len(value.shape))
    return [list(value.shape), np.array([*value.values()], value.dtype), keys]


def _decode_dok(kind: Any, data: Any, version: int) -> Any:
    shape, content, keys = data
    shape = _shape(shape)
    if not isinstance(keys, np.ndarray) or keys.dtype != np.int64 or keys.ndim != 2:
        raise NotDecoded("its keys aren't an array of numbers")
    coo = _decode_coo(
        sp.coo_matrix if issubclass(kind, sp.spmatrix) else sp.coo_array,
        [list(shape), content, list(keys.T)],
        1,
    )
    return kind(coo)


def _encode_lil(value: Any) -> Any:
    lengths = np.array([len(row) for row in value.rows], np.int64)
    columns = np.array([at for row in value.rows for at in row], np.int64)
    content = np.array([each for row in value.data for each in row], value.dtype)
    return [list(value.shape), content, columns, np.concatenate([[0], lengths.cumsum()])]


def _decode_lil(kind: Any, data: Any, version: int) -> Any:
    # An array of rows bounds their number by the data's size: scipy makes two lists for each.
    if not isinstance(data[3], np.ndarray) or data[3].dtype != np.int64:
        raise NotDecoded("its rows aren't an array of numbers")
    csr = sp.csr_matrix if issubclass(kind, sp.spmatrix) else sp.csr_array
    return kind(_decode_compressed(csr, data, version))


def _shape(shape: Any) -> tuple[int, ...]:
    if type(shape) is not list or not 1 <= len(shape) <= _MAX_DIMENSIONS:
        raise NotDecoded("not a shape")
    if any(type(n) is not int or not 0 <= n < 2**63 for n in shape):
        raise NotDecoded("not a shape")
    return tuple(shape)


def _check_content(content: Any) -> None:
    if not isinstance(content, np.ndarray):  # scipy would expand a range
        raise NotDecoded("its content isn't an array")


def _check_arrays(*arrays: Any) -> None:
    for each in arrays:
        if not isinstance(each, np.ndarray) or each.dtype.kind not in "iu" or each.ndim != 1:
            raise NotDecoded("its indices aren't an array of numbers")


_ENCODE: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(_COMPRESSED, _encode_compressed),
    "coo": _encode_coo,
    "dia": _encode_dia,
    "dok": _encode_dok,
    "lil": _encode_lil,
}
_DECODE: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_COMPRESSED, _decode_compressed),
    "coo": _decode_coo,
    "dia": _decode_dia,
    "dok": _decode_dok,
    "lil": _decode_lil,
}


def _types() -> list[RegisteredType]:
    names = [f"{form}_{kind}" for form in _FORMATS for kind in ("array", "matrix")]
    return [
        RegisteredType(
            getattr(sp, name),
            f"scipy.sparse.{name}",
            1,
            _ENCODE[name[:3]],
            partial(_DECODE[name[:3]], getattr(sp, name)),
            "offload[scipy]",
            built_in=True,
        )
        for name in names
        if hasattr(sp, name)
    ]


TYPES = _types()
