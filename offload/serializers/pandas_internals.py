"""pandas: the private attributes of arrays with a mask, which have no public view of both parts.

`tests/serializers/test_internals.py` checks them against the installed pandas.
"""

from __future__ import annotations

from typing import Any

__all__ = ("data_and_mask",)


def data_and_mask(array: Any) -> tuple[Any, Any]:
    """Return the values and the mask that a nullable array consists of."""
    return array._data, array._mask
