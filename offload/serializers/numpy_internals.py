"""numpy: the function in its pickles, and the fill value of masked arrays.

`tests/serializers/test_internals.py` checks both against the installed numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ("array_maker", "fill_value")


def array_maker() -> Callable[..., Any]:
    """Return the function in numpy's pickles: (buffer, dtype, shape, order) to array."""
    reduced: Any = np.zeros(1).__reduce_ex__(5)
    make: Callable[..., Any] = reduced[0]
    return make


def fill_value(array: Any) -> Any:
    """Return the fill value that was set; None if none was. (``fill_value`` sets the default.)"""
    return array._fill_value
