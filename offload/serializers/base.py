"""What a serializer is: a value becomes a small head and buffers that are not copied."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ("CachedFunction", "Code", "Payload", "Serializer")

CachedFunction = type(functools.lru_cache(abs))
"""The type of what `functools.lru_cache` makes, which has no public name."""


@dataclass(frozen=True)
class Payload:
    """A serialised value.

    Attributes:
        serializer: name of the serializer that can read it back.
        head: what that serializer needs besides the buffers, small.
        buffers: the value's memory, in order: contiguous views of single bytes
            (format ``B``, one dimension). They *are* the value's memory wherever that
            is possible, so they must be used up before the value can change.
        type: what people are shown, such as ``DataFrame`` or ``numpy.ndarray``.
    """

    serializer: str
    head: bytes
    buffers: Sequence[memoryview] = ()
    type: str = ""
    ships_code: bool = False
    """Whether reading it needs a class or function from a `Code`."""
    size: int = field(init=False)
    """Bytes of the head and all buffers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", len(self.head) + sum(b.nbytes for b in self.buffers))


class Serializer(Protocol):
    """Writes and reads values of some types.

    Attributes:
        name: as it stands in references and in ``offload_accept``.
        data_only: whether decoding can never run code that the bytes choose.
    """

    name: str
    data_only: bool

    def encode(self, value: Any) -> Payload | None:
        """Return *value* serialised, or None if it is none of this serializer's.

        None means that another may try; SerializationError that none should. What is
        returned reads back equal in value and type.
        """

    def decode(self, head: memoryview, buffers: Sequence[memoryview]) -> Any:
        """Return the value again.

        The buffers are writable, private to this value and begin on 64-byte
        boundaries: the value may be built on top of them without a copy. Raises
        DeserializationError for bytes that are not what `encode` makes; never
        reserves memory by what untrusted lengths claim.
        """


class Code(Protocol):
    """Classes and functions that are shipped: known by a name and a hash, not by an import."""

    def shipped(self, obj: Any) -> tuple[str, str] | None:
        """Return name and hash of a class or function, after which it can be loaded by them.

        None for one that is to be imported where it is needed.
        """

    def claims(self, kind: type) -> bool:
        """Return whether instances of a class are to arrive as such also where plain Celery's
        serializer would make something simpler of them, as a list of a named tuple.
        """

    def importer(self, obj: Any) -> Any:
        """Return the function to be shipped that imports a library's *obj*; None if none can."""

    def imported(self, getter: Any) -> Any:
        """Return what a loaded function that `importer` gave imports; raises TypeError for
        another one.
        """

    def advice(self, kind: type) -> str:
        """Return how to have instances of a class shipped that are not; "" if they cannot be."""

    def reduced(self, obj: Any) -> tuple[Any, ...] | None:
        """Return what pickle writes for it, or for a cached function of the kind; else None."""

    def named_in(self, pickled: bytes) -> bool:
        """Return whether plain pickle may have written an import of something that is shipped."""

    @property
    def may_load(self) -> bool:
        """Whether the operator lets this process load any code at all."""

    def check_name(self, name: str, code_hash: str) -> None:
        """Raise CodeRefused if the operator excludes this version, whoever signed it."""

    def is_version(self, cls: type) -> bool:
        """Return whether a class is itself shipped, and not only a base that one imports."""

    def load(self, name: str, code_hash: str) -> Any:
        """Return what has this name and hash; raises CodeError if that may not be."""

    def loading(self) -> AbstractContextManager[None]:
        """Within this, pickle reads what `reduced` gave."""
