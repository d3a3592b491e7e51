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
