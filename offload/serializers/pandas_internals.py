"""pandas: the data and mask of nullable arrays, which have no public names.

`tests/serializers/test_internals.py` checks them against the installed pandas.
"""

from __future__ import annotations

from typing import Any

__all__ = ("data_and_mask",)


def data_and_mask(array: Any) -> tuple[Any, Any]:
    """Return the values and the mask of a nullable array."""
    return array._data, array._mask
