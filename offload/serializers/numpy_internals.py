"""numpy: the private attribute of masked arrays that holds their fill value.

`tests/serializers/test_internals.py` checks it against the installed numpy.
"""

from __future__ import annotations

from typing import Any

__all__ = ("fill_value",)


def fill_value(array: Any) -> Any:
    """Return the fill value that was set; None if none was. (``fill_value`` sets the default.)"""
    return array._fill_value
