"""What a serializer is: a value becomes a small head and buffers that are not copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ("Payload", "Serializer")


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
