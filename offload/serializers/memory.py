"""The memory of immutable objects as buffers, without a copy."""

from __future__ import annotations

import ctypes
import platform
from pickle import PickleBuffer
from typing import Any

__all__ = ("alias", "utf8")

_CPYTHON = platform.python_implementation() == "CPython"
_WORTH_IT = 16 * 1024

if _CPYTHON:
    _as_utf8 = ctypes.pythonapi.PyUnicode_AsUTF8AndSize
    _as_utf8.argtypes = (ctypes.py_object, ctypes.POINTER(ctypes.c_ssize_t))
    _as_utf8.restype = ctypes.c_void_p


def alias(address: int, size: int, owner: Any) -> memoryview:
    """Return a writable view of *owner*'s memory that keeps *owner* alive.

    Writable only by its flags: nobody may write to it.
    """
    array = (ctypes.c_ubyte * size).from_address(address)
    array._owner = owner  # type: ignore[attr-defined]  # noqa: SLF001 (ours)
    return PickleBuffer(array).raw()


def utf8(text: str) -> memoryview:
    """Return *text* in UTF-8; ASCII, which CPython keeps as exactly that, uncopied.

    Raises UnicodeEncodeError for lone surrogates.
    """
    if _CPYTHON and len(text) >= _WORTH_IT and text.isascii():
        size = ctypes.c_ssize_t()
        address = _as_utf8(text, ctypes.byref(size))
        if address and size.value == len(text):
            return alias(address, size.value, text).toreadonly()
    return memoryview(text.encode("utf-8"))
