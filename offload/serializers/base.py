"""The serializer protocol, and code shared by serializers.

A serializer turns a value into a small head and buffers, which aren't copied.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pickle import PickleBuffer
from typing import Any, Protocol

from offload.ref import Ref
from offload.text import type_name

CachedFunction = type(functools.lru_cache(abs))
"""Type of functions decorated with `functools.lru_cache`; it has no public name."""


@dataclass(frozen=True)
class Payload:
    """A serialized value.

    Attributes:
        serializer: name of the serializer that reads it.
        head: a small description that the serializer needs besides the buffers.
        buffers: the value's bytes, in order, as contiguous views (format ``B``, one
            dimension). They share memory with the value if possible, so use them before the value
            can change.
        type: name of the value's type, for display, such as ``DataFrame`` or ``numpy.ndarray``.
        ships_code: whether reading it needs a class or function from a `Code`.
        salt: text that makes the stored value unique; "" lets equal values share one.
        size: bytes of the head and all buffers.
    """

    serializer: str
    head: bytes
    buffers: Sequence[memoryview] = ()
    type: str = ""
    ships_code: bool = False
    salt: str = ""
    size: int = field(init=False)

    def __post_init__(self) -> None:
        size = len(self.head)
        for buffer in self.buffers:
            size += buffer.nbytes
        object.__setattr__(self, "size", size)


class Serializer(Protocol):
    """Writes and reads values of some types.

    Attributes:
        name: its name in references and in ``offload_accept``.
        data_only: whether decoding never runs code chosen by the bytes.
    """

    name: str
    data_only: bool

    def encode(self, value: Any) -> Payload | None:
        """Serialize *value*; return None if this serializer doesn't support it.

        The decoded payload must equal *value* and have the same type. After None, the caller may
        try another serializer. Raises SerializationError if it should not.
        """

    def decode(self, head: memoryview, buffers: Sequence[memoryview]) -> Any:
        """Return the value of a payload.

        The buffers are writable, private to this value, and aligned to 64 bytes, so the value
        may use their memory without a copy. The bytes are untrusted: never allocate memory
        according to a length in them. Raises DeserializationError for bytes that `encode` doesn't
        produce.
        """


class Code(Protocol):
    """Shipped classes and functions, which are found by name and hash instead of an import."""

    def shipped(self, obj: Any) -> tuple[str, str] | None:
        """Ship a class or function and return its name and hash.

        Return None for one that readers import.
        """

    def must_ship(self, kind: type) -> bool:
        """Return whether instances of *kind* must keep their class.

        Plain Celery's serializers may simplify instances, such as a named tuple to a list.
        """

    def importer(self, obj: Any) -> Any:
        """Return a function to ship that imports a library's *obj*; None if there can't be one."""

    def imported(self, getter: Any) -> Any:
        """Return the object that *getter*, a loaded `importer` function, imports.

        Raises TypeError if *getter* is any other function.
        """

    def advice(self, kind: type) -> str:
        """Return advice on how to ship *kind* and its instances; "" if they can't be shipped."""

    def reduced(self, obj: Any) -> tuple[Any, ...] | None:
        """Return pickle's reduction of *obj* if it is shipped code; else None."""

    def named_in(self, pickled: bytes) -> bool:
        """Return whether a pickle written by plain pickle may import shipped code."""

    @property
    def may_load(self) -> bool:
        """Whether this process's settings allow loading any code."""

    def check_name(self, name: str, code_hash: str) -> None:
        """Raise CodeRefused if the settings exclude this version, no matter who signed it."""

    def is_version(self, cls: type) -> bool:
        """Return whether *cls* itself is shipped; the base of a shipped class may not be."""

    def load(self, name: str, code_hash: str) -> Any:
        """Return the class or function with this name and hash. Raises CodeError."""

    def loading(self) -> AbstractContextManager[None]:
        """Return a context in which pickle can read what `reduced` returned."""


# -- values that can't be serialized


class NotData(Exception):
    """Raised for a value that only pickle can serialize, in whole or in part.

    Attributes:
        reason: the reason, such as ``it is a generator``.
        path: path of the part within the value, such as ``['rows'][3]``.
        advice: what to do about it; "" for general advice.
        final: whether the value must not be pickled instead.
    """

    def __init__(
        self, reason: str, path: str = "", advice: str = "", *, final: bool = False
    ) -> None:
        super().__init__(reason, path, advice)
        self.final = final
        self.reason = reason
        self.path = path
        self.advice = advice

    def below(self, step: object) -> NotData:
        """Return the same error with *step* before its path, for the enclosing container.

        Strings and integers are shown; of other keys, only the type.
        """
        shown = f"{step!r:.40}" if type(step) in (str, int) else f"<{type_name(step)}>"
        return NotData(self.reason, f"[{shown}]{self.path}", self.advice, final=self.final)


def check_written(check: Callable[..., None], *values: Any) -> None:
    """Raise NotData for *values* that a reader's *check* would refuse with a ValueError."""
    try:
        check(*values)
    except ValueError as error:
        raise NotData(str(error)) from None


def is_panic(error: BaseException) -> bool:
    """Return whether a library's Rust code panicked, for which PyO3 raises no Exception."""
    return type(error).__name__ == "PanicException"


CREATE_IN_TASK = "create it in the task, or send what it is created from"
_PROCESS_MODULES = frozenset(
    {"_thread", "threading", "_io", "io", "socket", "_socket", "ssl", "_ssl", "select", "sqlite3"}
)


def advise(value: Any) -> str:
    """Return advice on how to send *value*, which isn't data; "" if there is none for its type."""
    kind = type(value)
    if isinstance(value, type):
        return ""
    if issubclass(kind, Ref):
        return "pass a Ref as an argument, or inside a list, tuple, or dict"
    if callable(getattr(kind, "model_dump", None)):
        return f"call offload.register_type({type_name(value)}), or send its .model_dump()"
    if hasattr(kind, "__attrs_attrs__"):
        return "send attrs.asdict() of it"
    if dataclasses.is_dataclass(kind):
        name = type_name(value)
        return f"call offload.register_type({name}), or send dataclasses.asdict() of it"
    package = kind.__module__.partition(".")[0]
    if package == "PIL" and hasattr(kind, "getexif"):
        return "send .copy() of it, which doesn't depend on its file"
    if package in _PROCESS_MODULES:
        return CREATE_IN_TASK
    if isinstance(value, Iterator):
        return "send a list of its items"
    return ""


# -- memory of immutable objects as buffers, without a copy

_CPYTHON = platform.python_implementation() == "CPython"
_MIN_ALIASED = 16 * 1024  # characters; encoding shorter text is as fast

if _CPYTHON:
    _as_utf8 = ctypes.pythonapi.PyUnicode_AsUTF8AndSize
    _as_utf8.argtypes = (ctypes.py_object, ctypes.POINTER(ctypes.c_ssize_t))
    _as_utf8.restype = ctypes.c_void_p


def alias(address: int, size: int, owner: Any) -> memoryview:
    """Return a view of *size* bytes at *address*, *owner*'s memory, that keeps *owner* alive.

    The view isn't read-only, but must not be written to. Nothing here is a PickleBuffer of a
    memoryview: in a reference cycle, such as a traceback, it crashes the garbage collector of
    Python before 3.11.8 and 3.12.2 (https://github.com/python/cpython/issues/77894).
    """
    array = (ctypes.c_ubyte * size).from_address(address)
    array._owner = owner  # type: ignore[attr-defined]  # noqa: SLF001 (ours)
    return PickleBuffer(array).raw()


def utf8(text: str) -> memoryview:
    """Return *text* in UTF-8.

    Long ASCII text isn't copied, because CPython already stores it as UTF-8.

    Raises UnicodeEncodeError for lone surrogates.
    """
    if _CPYTHON and len(text) >= _MIN_ALIASED and text.isascii():
        size = ctypes.c_ssize_t()
        address = _as_utf8(text, ctypes.byref(size))
        if address and size.value == len(text):
            return alias(address, size.value, text).toreadonly()
    return memoryview(text.encode("utf-8"))
