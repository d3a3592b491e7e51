"""Private parts of kombu, numpy, and pandas that serializers need.

`tests/serializers/test_internals.py` checks them against the installed versions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombu.serialization import registry


def codec(name: str) -> tuple[Any, Any] | None:
    """Return the encoder and decoder registered with kombu under a name; None if unknown."""
    found = registry._encoders.get(name)
    return None if found is None else (found.encoder, registry._decoders.get(found.content_type))


def json_types() -> list[str]:
    """Return the markers of types that apps registered with kombu's JSON.

    Omits Python's types, which kombu registers itself, and offload's.
    """
    from kombu.utils import json

    own = {"offload", "datetime", "date", "time", "uuid", "decimal", "bytes", "base64"}
    return sorted(marker for marker in getattr(json, "_decoders", {}) if marker not in own)


def array_maker() -> Callable[..., Any]:
    """Return the function in numpy's pickles that takes (buffer, dtype, shape, order)."""
    import numpy as np

    reduced: Any = np.zeros(1).__reduce_ex__(5)
    make: Callable[..., Any] = reduced[0]
    return make


def fill_value(array: Any) -> Any:
    """Return the fill value set on a masked numpy array; None if none was set.

    Reading the public attribute ``fill_value`` would set the default.
    """
    return array._fill_value


def data_and_mask(array: Any) -> tuple[Any, Any]:
    """Return the values and the mask of a nullable pandas array."""
    return array._data, array._mask


def index_hashes(index: Any) -> Any:
    """Return the 32-bit hashes by which pandas compares an index's items.

    Return None if an attacker can't choose items with equal hashes: items of less than 64 bits have
    different hashes, and those of strings are random.
    """
    import numpy as np

    values: Any
    if hasattr(index, "levels"):
        values = index._engine.values  # a number for each row, composed of its codes
    elif hasattr(index.array, "codes"):
        values = index.array.codes
    elif hasattr(index.array, "asi8"):
        values = index.array.asi8
    else:
        values = index.array._data if hasattr(index.array, "_mask") else index.to_numpy()
    found: Any
    if values.dtype == object:
        found = np.fromiter(map(hash, values), np.int64, len(values)).view(np.uint64)
        return (found >> 32 ^ found).astype(np.uint32)
    if values.dtype.kind == "f" and values.itemsize == 8:
        return _hash_floats(values)
    if values.dtype.kind == "c":
        return _hash_floats(values.real.copy()) ^ _hash_floats(values.imag.copy())
    if values.dtype.kind in "iumM" and values.itemsize == 8:
        found = np.ascontiguousarray(values).view(np.uint64)
        return (found >> 33 ^ found ^ found << 11).astype(np.uint32)
    return None


def _hash_floats(values: Any) -> Any:
    """Return MurmurHash2 of floats as pandas applies it."""
    import numpy as np

    factor = np.uint32(0x5BD1E995)
    found: Any = np.full(len(values), (0xC70F6907 ^ 4) & 0xFFFFFFFF, np.uint32)
    values = np.ascontiguousarray(values) + values.dtype.type(0.0)  # -0.0 equals 0.0
    words = values.view(np.uint32 if values.itemsize == 4 else np.uint64)
    for word in (words >> at for at in range(0, 8 * values.itemsize, 32)):
        mixed = word.astype(np.uint32) * factor
        found = found * factor ^ (mixed ^ mixed >> 24) * factor
    found = (found ^ found >> 13) * factor
    return found ^ found >> 15
