"""pandas: frames, series, and indexes, column by column, preserved exactly or refused.

Columns of numbers and times are written as numpy arrays, and strings as Arrow arrays, without
copying. Cells of an ``object`` column are written like any other value. A column that would arrive
changed, such as a sparse one, is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import tzinfo
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.extensions import ExtensionArray
from pandas.tseries.frequencies import to_offset

from offload.serializers.base import NotData, check_written
from offload.serializers.library_internals import data_and_mask, index_hashes
from offload.serializers.scalars import Node, text
from offload.serializers.tree import COLLIDING, Reader, Writer
from offload.text import type_name

_Plain: Any = pd.arrays.NumpyExtensionArray
_MASKED = {
    "IntegerArray": pd.arrays.IntegerArray,
    "FloatingArray": pd.arrays.FloatingArray,
    "BooleanArray": pd.arrays.BooleanArray,
}
_LONGEST = 100  # maximum characters of a frequency's name
_PLAIN_INDEXES = (
    pd.Index,
    pd.DatetimeIndex,
    pd.TimedeltaIndex,
    pd.PeriodIndex,
    pd.IntervalIndex,
    pd.CategoricalIndex,
)


def write(value: Any, writer: Writer) -> Node:
    """Return the node of a pandas object. Raises NotData."""
    kind = type(value)
    if kind is pd.DataFrame:
        return _write_frame(value, writer)
    if kind is pd.Series:
        return _write_series(value, writer)
    if isinstance(value, pd.Index):
        return {"index": _write_index(value, writer)}
    if isinstance(value, ExtensionArray):
        return {"values": _write_values(value, writer)}
    if value is pd.NaT or value is pd.NA:
        return {"missing": "NaT" if value is pd.NaT else "NA"}
    if kind is pd.Timestamp:
        moment = value.asm8
        return {
            "Timestamp": [int(moment.view("i8")), value.unit, _write_zone(value.tzinfo, writer)]
        }
    if kind is pd.Timedelta:
        return {"Timedelta": [int(value.asm8.view("i8")), value.unit]}
    raise NotData(f"no accepted serializer supports values of type {type_name(value)}")


def read(body: Node, reader: Reader) -> Any:
    """Return the object of a node; it uses the buffers' memory."""
    [(kind, node)] = body.items()
    return _READERS[kind](node, reader)


# -- frames and series ------------------------------------------------------------------


def _write_frame(frame: Any, writer: Writer) -> Node:
    block = _one_block(frame)
    if block is not None:
        values: Node = {"block": writer.node(block)}
    else:
        columns = []
        for i, name in enumerate(frame.columns):
            try:
                columns.append(_write_values(frame.iloc[:, i].array, writer))
            except NotData as error:
                raise error.below(name) from None
        values = {"columns": columns}
    index = _write_index(frame.index, writer)
    names = _write_index(frame.columns, writer)
    return {"frame": [values, index, names, *_write_extras(frame, writer)]}


def _read_frame(body: Node, reader: Reader) -> Any:
    values, index_node, names_node, attrs, unique = body
    # Read in the order of writing, because each buffer can be read only once.
    block = reader.value(values["block"]) if "block" in values else None
    if block is not None and (type(block) is not np.ndarray or block.ndim != 2):
        raise TypeError("not a two-dimensional array")
    columns = [_read_values(node, reader) for node in values.get("columns", ())]
    index, names = read_index(index_node, reader), read_index(names_node, reader)
    if block is not None:
        frame = pd.DataFrame(block, index=index, copy=False)
    else:
        series = {i: _series(values, index) for i, values in enumerate(columns)}
        frame = pd.DataFrame(series, index=index, columns=range(len(series)), copy=False)
    frame.columns = names
    return _read_extras(frame, attrs, unique, reader)


def _one_block(frame: Any) -> Any:
    """Return the array of a frame that consists of one with contiguous rows; else None.

    Columns of such a frame are strided, so writing them one by one would copy each.
    """
    dtypes = set(frame.dtypes)
    if len(dtypes) != 1 or frame.shape[1] < 2:
        return None
    [dtype] = dtypes
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        return None
    return None if frame.iloc[:, 0].to_numpy().flags.c_contiguous else frame.to_numpy()


def _write_series(series: Any, writer: Writer) -> Node:
    values = _write_values(series.array, writer)
    index = _write_index(series.index, writer)
    name = writer.node(series.name)
    return {"series": [values, index, name, *_write_extras(series, writer)]}


def _read_series(body: Node, reader: Reader) -> Any:
    values_node, index_node, name, attrs, unique = body
    values = _read_values(values_node, reader)
    series = _series(values, read_index(index_node, reader))
    series.name = reader.value(name)
    return _read_extras(series, attrs, unique, reader)


def _series(values: Any, index: Any) -> Any:
    # Pass the dtype: otherwise pandas converts an object array of strings to its str dtype.
    return pd.Series(values, index=index, dtype=values.dtype, copy=False)


def _write_extras(value: Any, writer: Writer) -> list[Node]:
    if not value.flags.allows_duplicate_labels:
        check_written(_check_collisions, *value.axes)
    return [writer.node(value.attrs), not value.flags.allows_duplicate_labels]


def _read_extras(value: Any, attrs: Node, unique: Node, reader: Reader) -> Any:
    value.attrs = reader.value(attrs)
    if unique:
        _check_collisions(*value.axes)
        value.flags.allows_duplicate_labels = False
    return value


# -- indexes ----------------------------------------------------------------------------


def _write_index(index: Any, writer: Writer) -> Node:
    """Return the node of an index, after checking that an empty one arrives unchanged."""
    node = _index_node(index, writer)
    empty, spare = index[:0], Writer()
    back = read_index(_index_node(empty, spare), spare.reader())
    if type(back) is not type(empty) or not back.identical(empty):
        raise NotData(f"its {type_name(index)} of dtype {index.dtype} would arrive changed")
    return node


def _index_node(index: Any, writer: Writer) -> Node:
    names = [writer.node(name) for name in index.names]
    kind = type(index)
    if kind is pd.RangeIndex:
        return {"range": [index.start, index.stop, index.step], "names": names}
    if kind is pd.MultiIndex:
        check_written(_check_collisions, *index.levels)
        writer.spend(sum(len(each) for each in index.levels if type(each) is pd.RangeIndex))
        return {
            "levels": [_index_node(level, writer) for level in index.levels],
            "codes": [writer.node(np.asarray(codes)) for codes in index.codes],
            "names": names,
        }
    if kind not in _PLAIN_INDEXES:
        raise NotData(f"its index is of type {type_name(index)}")
    node = {"values": _write_values(index.array, writer), "names": names}
    freq = getattr(index, "freq", None)
    if freq is not None and kind is not pd.PeriodIndex:
        try:
            same = to_offset(freq.freqstr) == freq
        except ValueError:
            same = False
        if not same:
            raise NotData(f"its index has the frequency {freq!r:.60}")
        node["freq"] = freq.freqstr
    return node


def read_index(node: Node, reader: Reader) -> Any:
    names = reader.items(node["names"])
    if "range" in node:
        start, stop, step = node["range"]
        return pd.RangeIndex(start, stop, step).set_names(names)
    if "levels" in node:
        levels = [read_index(level, reader) for level in node["levels"]]
        # pandas allocates memory for ranges here.
        reader.spend(sum(len(each) for each in levels if type(each) is pd.RangeIndex))
        _check_collisions(*levels)
        codes = [_read_codes(body, reader) for body in node["codes"]]
        return pd.MultiIndex(levels, codes, names=names)
    values = _read_values(node["values"], reader)
    index: Any = pd.Index(values, dtype=values.dtype, copy=False).set_names(names)
    if "freq" in node:
        index.freq = to_offset(_short(node["freq"]))
    return index


def _check_collisions(*indexes: Any) -> None:
    """Raise ValueError if pandas would take quadratic time to find out whether items are unique."""
    for index in indexes:
        if len(index) <= COLLIDING or type(index) is pd.RangeIndex:
            continue
        if type(index) is pd.IntervalIndex:
            _check_collisions(_distinct(index.left), _distinct(index.right))
        hashes = index_hashes(index)
        if hashes is not None and np.unique(hashes, return_counts=True)[1].max() > COLLIDING:
            raise ValueError(f"more than {COLLIDING} items have the same hash")


def _distinct(index: Any) -> Any:
    """Return the distinct items of an index; sort them, as hashing might take quadratic time."""
    ordered = index.dropna().sort_values()
    is_new = np.ones(len(ordered), bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_new]


# -- columns ----------------------------------------------------------------------------


def _write_values(values: Any, writer: Writer) -> Node:
    """Return the node of a column, after checking that an empty one arrives unchanged."""
    node = _values_node(values, writer)
    if type(values) is not _Plain:
        empty, spare = values[:0], Writer()
        back = _read_values(_values_node(empty, spare), spare.reader())
        if type(back) is not type(empty) or back.dtype != empty.dtype:
            raise NotData(f"it would arrive with dtype {back.dtype}, not {empty.dtype}")
    return node


def _write_zone(zone: Any, writer: Writer) -> Node:
    """Return the node of a time zone, which is from pytz before pandas 3."""
    name = getattr(zone, "zone", None)
    if type(zone).__module__.partition(".")[0] == "pytz" and isinstance(name, str):
        return {"pytz": name}
    return writer.node(zone)


def _values_node(values: Any, writer: Writer) -> Node:
    kind = type(values)
    if kind is _Plain:
        array = values.to_numpy()
        if array.dtype == object:
            return {"objects": writer.items(list(array))}
        if not array.dtype.itemsize:
            writer.spend(len(array))
        return {"numpy": writer.node(array)}
    if kind is pd.arrays.DatetimeArray or kind is pd.arrays.TimedeltaArray:
        letter = "M" if kind is pd.arrays.DatetimeArray else "m"
        zone = _write_zone(values.tz, writer) if letter == "M" else None
        array = values.asi8.view(f"{letter}8[{values.unit}]")
        return {"times": [writer.node(array), zone]}
    if kind is pd.Categorical:
        check_written(_check_collisions, values.categories)
        categories = _write_index(values.categories, writer)
        return {"codes": [categories, writer.node(np.asarray(values.codes)), values.ordered]}
    if kind is pd.arrays.PeriodArray:
        return {"periods": [writer.node(values.asi8), str(values.dtype)]}
    if kind is pd.arrays.IntervalArray:
        ends = [_write_index(end, writer) for end in (values.left, values.right)]
        return {"intervals": [*ends, values.closed]}
    if _MASKED.get(kind.__name__) is kind:
        return {"masked": [kind.__name__, *map(writer.node, data_and_mask(values))]}
    if isinstance(values.dtype, pd.StringDtype):
        return {"strings": [_strings(values.dtype), _write_arrow(values, writer)]}
    if isinstance(values.dtype, pd.ArrowDtype):
        return {"arrow": _write_arrow(values, writer)}
    raise NotData(f"it is of dtype {values.dtype}")


def _write_arrow(values: Any, writer: Writer) -> Node:
    import pyarrow as pa

    from offload.serializers.arrow import write_chunks

    try:
        column = pa.array(values, from_pandas=True)
    except (pa.ArrowException, ValueError) as error:
        raise NotData(f"Arrow doesn't support it ({type(error).__name__})") from None
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return write_chunks(column.type, chunks, writer)


def _strings(dtype: Any) -> list[str]:
    missing = "NA" if dtype.na_value is pd.NA else "nan"
    return [dtype.storage, missing]


def _read_values(node: Node, reader: Reader) -> Any:
    [(kind, body)] = node.items()
    return _VALUES[kind](body, reader)


def _read_array(node: Node, reader: Reader) -> Any:
    values = _read_values(node, reader)
    return _Plain(values) if type(values) is np.ndarray else values


def _read_numpy(body: Node, reader: Reader) -> Any:
    array = reader.value(body)
    if type(array) is not np.ndarray or array.ndim != 1:
        raise TypeError("not a one-dimensional array")
    if array.dtype.names is not None:  # pandas makes an object of each field of each item
        raise TypeError("not a column of single items")
    if not array.dtype.itemsize:
        reader.spend(len(array))  # pandas creates an object for each item
    return array


def _read_objects(body: Node, reader: Reader) -> Any:
    values = reader.items(body)
    return np.fromiter(values, dtype=object, count=len(values))


def _read_times(body: Node, reader: Reader) -> Any:
    array, zone = _read_numpy(body[0], reader), _read_zone(body[1], reader)
    if array.dtype.kind == "m" and zone is None:
        return pd.TimedeltaIndex(array, copy=False).array
    if array.dtype.kind != "M":
        raise ValueError("not times")
    if zone is None:
        return pd.DatetimeIndex(array, copy=False).array
    return pd.DatetimeIndex(array, tz="UTC", copy=False).tz_convert(zone).array


def _read_zone(node: Node, reader: Reader) -> tzinfo | None:
    zone = reader.value(node)
    if zone is not None and not isinstance(zone, tzinfo):  # pandas opens files that a string names
        raise TypeError("not a time zone")
    return zone


def _read_codes(body: Node, reader: Reader) -> Any:
    codes = _read_numpy(body, reader)
    if codes.dtype.kind != "i":
        raise TypeError("not codes")
    return codes


def _read_categories(body: Node, reader: Reader) -> Any:
    categories_node, codes, ordered = body
    categories = read_index(categories_node, reader)
    _check_collisions(categories)
    dtype = pd.CategoricalDtype(categories, bool(ordered))
    return pd.Categorical.from_codes(_read_codes(codes, reader), dtype=dtype)


def _short(node: Node) -> str:
    """Return a frequency's name if it isn't long: pandas takes quadratic time to parse it."""
    if len(text(node)) > _LONGEST:
        raise ValueError("too long for a frequency")
    return text(node)


def _read_periods(body: Node, reader: Reader) -> Any:
    ordinals, name = body
    dtype = pd.PeriodDtype(_short(name).removeprefix("period[").removesuffix("]"))
    return pd.arrays.PeriodArray(_read_numpy(ordinals, reader), dtype=dtype)


def _read_intervals(body: Node, reader: Reader) -> Any:
    left, right, closed = body
    ends = read_index(left, reader), read_index(right, reader)
    if any(type(end) in (pd.RangeIndex, pd.CategoricalIndex) for end in ends):
        raise TypeError("ends of intervals can't be ranges or categories")  # pandas expands them
    return pd.arrays.IntervalArray.from_arrays(*ends, closed=closed)


def _read_masked(body: Node, reader: Reader) -> Any:
    name, data, mask = body
    return _MASKED[name](_read_numpy(data, reader), _read_numpy(mask, reader), copy=False)


def _read_strings(body: Node, reader: Reader) -> Any:
    import pyarrow as pa

    from offload.serializers.arrow import read_chunks

    (storage, missing), chunks = body
    make: Any = pd.StringDtype
    # Before pandas 2.3, the storage alone determines the dtype.
    dtype = make(storage, na_value=np.nan) if missing == "nan" else make(storage)
    column = read_chunks(chunks, reader)
    # A column of nulls would create as many objects as it claims to have.
    if column.type not in (pa.string(), pa.large_string()):
        raise TypeError("not strings")
    array = dtype.__from_arrow__(column)
    if type(array) is dtype.construct_array_type():
        return array
    return pd.array(array.to_numpy(), dtype=dtype)  # without this, pandas 2.3 changes the dtype


def _read_arrow(body: Node, reader: Reader) -> Any:
    from offload.serializers.arrow import read_chunks

    return pd.arrays.ArrowExtensionArray(read_chunks(body, reader))


def _read_timestamp(body: Node, reader: Reader) -> Any:
    ticks, unit, zone = body
    moment = pd.Timestamp(np.datetime64(ticks, unit))
    zone = _read_zone(zone, reader)
    return moment if zone is None else moment.tz_localize("UTC").tz_convert(zone)


_VALUES: dict[str, Callable[[Node, Reader], Any]] = {
    "numpy": _read_numpy,
    "objects": _read_objects,
    "times": _read_times,
    "codes": _read_categories,
    "periods": _read_periods,
    "intervals": _read_intervals,
    "masked": _read_masked,
    "strings": _read_strings,
    "arrow": _read_arrow,
}

_READERS: dict[str, Callable[[Node, Reader], Any]] = {
    "frame": _read_frame,
    "series": _read_series,
    "index": read_index,
    "values": _read_array,
    "missing": lambda body, _: {"NaT": pd.NaT, "NA": pd.NA}[body],
    "Timestamp": _read_timestamp,
    "Timedelta": lambda body, _: pd.Timedelta(np.timedelta64(*body)),
}
