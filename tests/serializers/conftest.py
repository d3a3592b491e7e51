"""Shared parts of the serializers' tests: round trips and a strict comparison."""

from __future__ import annotations

import math

import pytest
from kombu.serialization import dumps, loads

from offload.serializers import Registry
from offload.serializers.types import register, registry


def plain_celery(value, native):
    """Return what plain Celery delivers: the value after a trip through a message's body."""
    content_type, encoding, body = dumps([value], serializer=native)
    if isinstance(body, str):
        body = body.encode(encoding)
    [delivered] = loads(body, content_type, encoding, accept={content_type})
    return delivered


def through(value, native="json", accept=("json",)):
    """Return the value after a trip through storage, which returns private, writable buffers."""
    registry = Registry(frozenset(accept))
    payload = registry.encode(value, native)
    return registry.decode(payload.serializer, payload.head, stored(payload))


def stored(payload):
    for buffer in payload.buffers:
        assert buffer.ndim == 1
        assert buffer.format == "B"
        assert buffer.c_contiguous
    return [memoryview(bytearray(buffer)) for buffer in payload.buffers]


def same(one, other):
    """Whether *one*, which arrived, equals *other* in value, type, and order at every level."""
    if type(one) is not type(other):
        return False
    compare = _COMPARE.get(type(one))
    if compare is not None:
        return compare(one, other)
    package = type(one).__module__.partition(".")[0]
    if package in _COMPARE_OF:
        return _COMPARE_OF[package](one, other)
    return one == other


def _items(one, other):
    return len(one) == len(other) and all(map(same, one, other))


def _floats(one, other):
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return one == other and math.copysign(1, one) == math.copysign(1, other)


def _dicts(one, other):
    return _items(list(one), list(other)) and _items(list(one.values()), list(other.values()))


def _sets(one, other):
    return _items(sorted(one, key=repr), sorted(other, key=repr))


def _times(one, other):
    zones = (one.tzinfo, other.tzinfo)
    if type(zones[0]) is not type(zones[1]) or str(zones[0]) != str(zones[1]):
        return False
    return one == other and one.fold == other.fold


def _numpy(one, other):
    import numpy as np

    if isinstance(one, np.dtype):
        return one == other and one.isalignedstruct == other.isalignedstruct
    if not same(one.dtype, other.dtype) or one.shape != other.shape:
        return False
    if one.dtype.names:
        # Field by field, because padding is arbitrary.
        return all(same(np.asarray(one[n]), np.asarray(other[n])) for n in one.dtype.names)
    if one.dtype.char in "gG":
        return repr(one.tolist()) == repr(other.tolist())
    if isinstance(one, np.generic):
        return one.tobytes() == other.tobytes()
    orders = [(a.flags.c_contiguous, a.flags.fnc) for a in (one, other)]
    if other.flags.forc and other.nbytes and orders[0] != orders[1]:
        return False
    if isinstance(one, np.ma.MaskedArray):
        parts = [(a.data, np.ma.getmask(a), a.fill_value, a.hardmask) for a in (one, other)]
        (data, mask, *rest), (data2, mask2, *rest2) = parts
        return same(data, data2) and (mask is mask2 or same(mask, mask2)) and rest == rest2
    if one.dtype.hasobject:
        return _items(one.ravel().tolist(), other.ravel().tolist())
    return one.tobytes() == other.tobytes()


def _pandas(one, other):
    import numpy as np
    import pandas as pd
    import pandas.testing as pt

    if isinstance(one, pd.DataFrame):
        pt.assert_frame_equal(one, other, check_exact=True, check_freq=True, check_flags=True)
        columns = range(one.shape[1])
        assert list(one.dtypes) == list(other.dtypes)
        assert all(same(one.iloc[:, i].array, other.iloc[:, i].array) for i in columns)
        assert same(one.columns, other.columns)
        assert same(one.index, other.index)
        return same(one.attrs, other.attrs)
    if isinstance(one, pd.Series):
        pt.assert_series_equal(one, other, check_exact=True, check_freq=True, check_flags=True)
        assert same(one.array, other.array)
        assert same(one.index, other.index)
        return same(one.attrs, other.attrs) and same(one.name, other.name)
    if isinstance(one, pd.MultiIndex):
        return one.identical(other) and _items(list(one.levels), list(other.levels))
    if isinstance(one, pd.Index):
        freqs = [getattr(i, "freq", None) for i in (one, other)]
        return one.identical(other) and freqs[0] == freqs[1] and same(one.array, other.array)
    if isinstance(one, pd.api.extensions.ExtensionArray):
        if one.dtype != other.dtype:
            return False
        if one.dtype == object:
            return _items(list(one), list(other))
        numbers = isinstance(one, pd.arrays.NumpyExtensionArray)
        if numbers:
            return same(np.asarray(one), np.asarray(other))
        pt.assert_extension_array_equal(one, other, check_exact=True)
        return True
    return (one is other) or (one == other and repr(one) == repr(other))


def _polars(one, other):
    import polars.testing as pt

    if hasattr(one, "columns"):
        pt.assert_frame_equal(one, other, check_exact=True)
        return one.schema == other.schema
    pt.assert_series_equal(one, other, check_exact=True)
    return True


def _pyarrow(one, other):
    if hasattr(one, "schema"):
        assert one.schema.equals(other.schema, check_metadata=True)
    if hasattr(one, "chunks"):
        assert len(one.chunks) == len(other.chunks)
    other.validate(full=True)
    return one.equals(other) or (one.type == other.type and str(one) == str(other))


_COMPARE = {
    float: _floats,
    complex: lambda a, b: _floats(a.real, b.real) and _floats(a.imag, b.imag),
    list: _items,
    tuple: _items,
    dict: _dicts,
    set: _sets,
    frozenset: _sets,
    memoryview: lambda a, b: (a.format, a.shape, a.tobytes()) == (b.format, b.shape, b.tobytes()),
}
_COMPARE_OF = {
    "numpy": _numpy,
    "pandas": _pandas,
    "polars": _polars,
    "pyarrow": _pyarrow,
    "datetime": lambda a, b: _times(a, b) if hasattr(a, "fold") else a == b,
    "decimal": lambda a, b: str(a) == str(b),
}


class Helpers:
    """The functions above, for tests in other files."""

    plain_celery = staticmethod(plain_celery)
    same = staticmethod(same)
    stored = staticmethod(stored)
    through = staticmethod(through)


@pytest.fixture(scope="session")
def help_():
    return Helpers


class Types:
    """The registered types of this process, of which a test's own are forgotten."""

    def __init__(self):
        self._before = self._state()

    @staticmethod
    def _state():
        tables = registry._by_type, registry._by_name, registry._active
        return [dict(table) for table in tables], list(registry._pending)

    def clear(self):
        """Forget what the test has registered; `restore` brings it back."""
        self._own = self._state()
        self._set(self._before)

    def restore(self):
        self._set(self._own)

    @staticmethod
    def _set(state):
        tables, pending = state
        # With `_active`: packages whose types were first used in the test are found again later.
        current = registry._by_type, registry._by_name, registry._active
        for now, wanted in zip(current, tables, strict=True):
            now.clear()
            now.update(wanted)
        registry._pending[:] = pending
        register._loading.clear()


@pytest.fixture
def types():
    found = Types()
    yield found
    found.clear()
