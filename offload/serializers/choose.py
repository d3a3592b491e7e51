"""Which serializer carries which value.

What is decoded equals, in value and type, what plain Celery would deliver by the
message's own serializer. Where that one cannot carry a value, it arrives as sent: as
data if it is made of data, else by pickle if the app accepts pickle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from offload.errors import DeserializationError, SerializationError, SerializerNotAccepted
from offload.serializers import native as kombu_native
from offload.serializers.advice import IN_THE_TASK
from offload.serializers.base import Code, Payload, Serializer
from offload.serializers.claimed import holds_claimed
from offload.serializers.json import Json
from offload.serializers.pickle import Pickle
from offload.serializers.raw import Raw
from offload.serializers.small import certainly_small
from offload.serializers.tree import NotData, Tree
from offload.text import type_name

__all__ = ("Registry",)

_MSGPACK_LIMIT = 1 << 32


class Registry:
    """The serializers an app writes and accepts.

    Args:
        accept: names of the content serializers that the app accepts, as kombu knows
            them. Our own that are data only are accepted in any case.
        code: gives the classes that are shipped; None: none are.
    """

    def __init__(self, accept: Iterable[str], code: Code | None = None) -> None:
        self.accept = frozenset(map(kombu_native.name_of, accept))
        self._code = code
        self._raw = Raw()
        self._json = Json()
        # Pickle names what is imported, which needs no version.
        self._tree = Tree(code, imports="pickle" not in self.accept)
        self._pickle = Pickle(code)
        all_: tuple[Serializer, ...] = (self._raw, self._json, self._tree, self._pickle)
        self._by_name: dict[str, Serializer] = {s.name: s for s in all_}

    def encode(self, value: Any, native: str) -> Payload:
        """Return *value* serialised.

        Args:
            value: any object.
            native: kombu's name of the serializer that plain Celery would use for it.

        Raises:
            SerializationError: if nothing that the app accepts can carry it.
        """
        payload = self._as_celery(value, native)
        return payload if payload is not None else self._as_sent(value, native)

    def decode(
        self, serializer: str, head: bytes | memoryview, buffers: Sequence[memoryview]
    ) -> Any:
        """Return the value again.

        Raises:
            SerializerNotAccepted: if the app does not accept the serializer.
            DeserializationError: if the bytes are not what the serializer writes.
        """
        self.check_accepted(serializer)
        head = memoryview(head)
        if serializer.startswith(kombu_native.PREFIX):
            return kombu_native.decode(serializer[len(kombu_native.PREFIX) :], head, buffers)
        return self._by_name[serializer].decode(head, buffers)

    def check_accepted(self, serializer: str) -> None:
        """Raise what `decode` would raise for the name alone, before anything is fetched."""
        if serializer.startswith(kombu_native.PREFIX):
            self._check(serializer[len(kombu_native.PREFIX) :])
            return
        found = self._by_name.get(serializer)
        if found is None:
            raise DeserializationError(f"there is no serializer named {serializer[:40]!r}")
        if not found.data_only:
            self._check(serializer)

    def carries(self, value: Any, native: str) -> bool:
        """Return whether plain Celery's serializer carries *value*; costs writing it."""
        return kombu_native.carries(value, native)

    certainly_small = staticmethod(certainly_small)

    def _check(self, name: str) -> None:
        if name not in self.accept:
            raise SerializerNotAccepted(
                f"a value was serialised with {name[:40]}, which this app does not accept; "
                "if its senders are trusted, add it to accept_content or offload_accept"
            )

    def _as_celery(self, value: Any, native: str) -> Payload | None:
        """Return what decodes to what plain Celery would deliver, or None if it cannot."""
        if not kombu_native.is_kombus_own(native):
            return kombu_native.encode(value, native)
        kind = type(value)
        if native == "pickle":
            return self._as_pickle(value)
        if kind is bytes:
            return self._raw.encode(value)
        if kind is str:
            payload = self._raw.encode(value)
            if payload is not None and payload.head == b"str":
                return payload
            # JSON joins lone surrogates that make a pair; msgpack refuses them.
            return kombu_native.encode(value, native)
        if native == "msgpack" and kind in (bytearray, memoryview):
            fits = kind is bytearray or value.c_contiguous
            return self._raw.as_bytes(value) if fits and len(value) < _MSGPACK_LIMIT else None
        if native == "json":
            payload = self._json.encode(value)
            if payload is not None:
                return payload
        if self._code is not None and holds_claimed(value, self._code):
            return None
        return kombu_native.encode(value, native)

    def _as_pickle(self, value: Any) -> Payload | None:
        if type(value) in (bytes, bytearray, str):
            return self._raw.encode(value)
        if _in_band(value):
            try:
                return self._tree.encode(value)
            except NotData:
                pass
        return self._pickle.encode(value, as_celery=True)

    def _as_sent(self, value: Any, native: str) -> Payload:
        pickles = "pickle" in self.accept
        payload = self._raw.encode(value)
        if payload is None and pickles and _is_of(value, "pandas"):
            payload = self._pickle.encode(value)
        if payload is not None:
            return payload
        try:
            payload = self._tree.encode(value)
        except NotData as error:
            where = f" at {error.path}" if error.path else ""
            reason, advice = f"{error.reason}{where}", error.advice
        if payload is None and pickles:
            payload = self._pickle.encode(value)
        if payload is not None:
            return payload
        if self._code is not None and native != "pickle":
            # What is claimed stands beside what only plain Celery makes something of.
            payload = kombu_native.encode(value, native)
        if payload is not None:
            return payload
        advised = [advice or "send plain data"]
        if pickles or Pickle().encode(value) is None:
            advised = [advice or IN_THE_TASK]
        elif not advice.startswith(("pip ", "register it")):
            advised.append(
                "if all senders are trusted, add 'pickle' to accept_content or offload_accept"
            )
        # The type and the place only: neither logs nor results may show what is in a value.
        raise SerializationError(
            f"cannot serialize {type_name(value)}: {reason}; {'; or, '.join(advised)}"
        )


def _is_of(value: Any, *packages: str) -> bool:
    return type(value).__module__.partition(".")[0] in packages


def _in_band(value: Any) -> bool:
    """Return whether pickle would copy memory that the tree leaves where it is."""
    if _is_of(value, "polars", "pyarrow"):
        return True
    # Celery's pickle would bring foreign byte orders into the machine's.
    return _is_of(value, "numpy") and type(value).__name__ == "ndarray" and value.dtype.isnative
