"""xarray variables, data arrays, and datasets: data, coordinates, their indexes, and attributes.

``encoding``, which describes the file that an object was read from, isn't sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from xarray.indexes import PandasIndex, PandasMultiIndex

from offload.serializers.base import NotData
from offload.serializers.types.registry import NotDecoded, RegisteredType, as_list
from offload.text import type_name


def _encode_variable(value: Any) -> Any:
    return [list(value.dims), _encode_data(value), dict(value.attrs)]


def _encode_data(value: Any) -> Any:
    data = value.values if isinstance(value, xr.IndexVariable) else value.data  # noqa: PD011
    if type(data) is not np.ndarray:
        raise NotData(f"its data is a {type_name(data)}", advice="send .compute() of it")
    if data.dtype != object:
        return data
    return [list(data.shape), data.ravel().tolist()]  # objects, mostly strings


def _decode_variable(data: Any, version: int, kind: Any = xr.Variable) -> Any:
    dims, content, attrs = data
    return kind(tuple(as_list(dims)), _decode_data(content), attrs)


def _decode_data(content: Any) -> Any:
    if isinstance(content, np.ndarray):
        return content
    shape, items = content
    array = np.empty(len(as_list(items)), object)
    array[:] = items
    return array.reshape(shape)


def _encode_dtype(dtype: Any) -> Any:
    """Return the dtype of an index's coordinate; None for a dtype that only pandas has."""
    if not isinstance(dtype, np.dtype):
        return None
    return "object" if dtype.hasobject else dtype


def _decode_dtype(dtype: Any) -> Any:
    if type(dtype) is str and dtype == "object":
        return np.dtype(object)
    if dtype is not None and not isinstance(dtype, np.dtype):
        raise NotDecoded("not a dtype")
    return dtype


def _encode_coords(coords: Any) -> Any:
    indexes = coords.xindexes
    found = {}
    own = []
    for index, members in indexes.group_by_index():
        names = list(members)
        dtypes = [_encode_dtype(members[name].dtype) for name in names]
        if type(index) is PandasMultiIndex:
            own.append(["multi", names, index.index, index.dim, dtypes])
        elif type(index) is PandasIndex:
            own.append(["index", names, index.index, index.dim, dtypes])
        else:
            raise NotData(f"it has a {type_name(index)}")
    for name, coordinate in coords.variables.items():
        found[name] = (
            _encode_variable(coordinate)
            if name not in indexes
            else [list(coordinate.dims), None, dict(coordinate.attrs)]
        )
    return [found, own]


def _decode_coords(data: Any) -> Any:
    found, own = data
    variables: dict[Any, Any] = {}
    indexes: dict[Any, Any] = {}
    for how, labels, content, dim, dtypes in as_list(own):
        if not isinstance(content, pd.Index):  # xarray would expand a range or a list
            raise NotDecoded("an index is missing")
        names = as_list(labels)
        known = [_decode_dtype(dtype) for dtype in as_list(dtypes)]
        index = (
            PandasMultiIndex(content, dim, dict(zip(names, known, strict=True)))
            if how == "multi"
            else PandasIndex(content, dim, *known)
        )
        made = index.create_variables()
        if set(made) != set(names) and len(names) == 1 == len(made):
            made = {names[0]: next(iter(made.values()))}
        for name in names:
            variables[name], indexes[name] = made[name], index
    ordered = {}
    for name, (dims, content, attrs) in found.items():
        if content is None:
            ordered[name] = variables[name]
            ordered[name].attrs = attrs
        else:
            ordered[name] = _decode_variable([dims, content, attrs], 1)
    return xr.Coordinates(ordered, indexes=indexes)


def _encode_array(value: Any) -> Any:
    return [_encode_variable(value.variable), _encode_coords(value.coords), value.name]


def _decode_array(data: Any, version: int) -> Any:
    variable, coords, name = data
    made = _decode_variable(variable, version)
    return xr.DataArray(made, coords=_decode_coords(coords), name=name, fastpath=False)


def _encode_dataset(value: Any) -> Any:
    variables: Mapping[Any, Any] = value.data_vars
    return [
        {name: _encode_variable(each.variable) for name, each in variables.items()},
        _encode_coords(value.coords),
        dict(value.attrs),
    ]


def _decode_dataset(data: Any, version: int) -> Any:
    variables, coords, attrs = data
    if type(variables) is not dict:
        raise NotDecoded("its variables aren't a dict")
    made = {name: _decode_variable(each, version) for name, each in variables.items()}
    return xr.Dataset(made, coords=_decode_coords(coords), attrs=attrs)


TYPES = [
    RegisteredType(kind, name, 1, encode, decode, "offload[xarray]", built_in=True)
    for kind, name, encode, decode in (
        (xr.Variable, "xarray.Variable", _encode_variable, _decode_variable),
        (xr.DataArray, "xarray.DataArray", _encode_array, _decode_array),
        (xr.Dataset, "xarray.Dataset", _encode_dataset, _decode_dataset),
    )
]
