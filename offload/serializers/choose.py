"""Choose the serializer for a value.

A decoded value equals, in value and type, what plain Celery would deliver with the message's
own serializer. If that serializer doesn't support the value, it arrives as sent: as data if it
consists of data, else through pickle if the app accepts pickle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from offload.errors import DeserializationError, SerializationError, SerializerNotAccepted
from offload.serializers import kombu
from offload.serializers.base import CREATE_IN_TASK, Code, NotData, Payload, Serializer
from offload.serializers.pickle import Pickle
from offload.serializers.plain import Json, Raw, is_plain
from offload.serializers.tree import Tree
from offload.serializers.types.registry import holds_registered
from offload.text import type_name

_MSGPACK_LIMIT = 1 << 32
_ADVICE = "register that type, too, or let encode() return plain data"
_MOST_TIMES = 10_000  # JSON writes a container as often as it occurs
_EXACT_JSON = frozenset({list, dict})  # not tuples, which arrive as lists
_NO_SERIALIZER = "pickle"  # keeps `_as_sent` from falling back to one that changes types


class Registry:
    """The serializers that an app writes and accepts.

    Args:
        accept: names, as in kombu, of the serializers that the app accepts. offload's own
            data-only serializers are always accepted.
        code: the shipped classes; None if there are none.
    """

    def __init__(self, accept: Iterable[str], code: Code | None = None) -> None:
        self.accept = frozenset(map(kombu.name_of, accept))
        self._code = code
        self._raw = Raw()
        self._json = Json()
        # Pickle writes imports by name, without a version.
        self._tree = Tree(code, imports="pickle" not in self.accept)
        self._pickle = Pickle(code)
        all_: tuple[Serializer, ...] = (self._raw, self._json, self._tree, self._pickle)
        self._by_name: dict[str, Serializer] = {s.name: s for s in all_}

    def encode(self, value: Any, celery_serializer: str) -> Payload:
        """Serialize *value* so that it arrives as from plain Celery.

        Args:
            value: any object.
            celery_serializer: name, as in kombu, of the serializer that plain Celery would use.

        Raises:
            SerializationError: if no serializer that the app accepts supports it.
        """
        payload = self._as_celery(value, celery_serializer)
        return payload if payload is not None else self._as_sent(value, celery_serializer)

    def encode_exactly(self, value: Any) -> Payload:
        """Serialize *value* so that it arrives unchanged, even if plain Celery would change it.

        Data that JSON preserves gets the same bytes as from `encode` with JSON.

        Raises:
            SerializationError: if no serializer that the app accepts supports it.
        """
        # Text is stored raw.
        is_json = type(value) is not str and is_plain(value, _EXACT_JSON, _MOST_TIMES)
        payload = self._json.write(value) if is_json else None
        return payload if payload is not None else self._as_sent(value, _NO_SERIALIZER)

    def decode(
        self, serializer: str, head: bytes | memoryview, buffers: Sequence[memoryview]
    ) -> Any:
        """Return the value of a payload.

        Raises:
            SerializerNotAccepted: if the app doesn't accept the serializer.
            DeserializationError: if the serializer can't have written these bytes.
        """
        self.check_accepted(serializer)
        head = memoryview(head)
        if serializer.startswith(kombu.PREFIX):
            return kombu.decode(serializer[len(kombu.PREFIX) :], head, buffers)
        return self._by_name[serializer].decode(head, buffers)

    def check_accepted(self, serializer: str) -> None:
        """Raise the errors of `decode` that depend only on the name, before a value is fetched."""
        if serializer.startswith(kombu.PREFIX):
            self._check(serializer[len(kombu.PREFIX) :])
            return
        found = self._by_name.get(serializer)
        if found is None:
            raise DeserializationError(f"no serializer is named {serializer[:40]!r}")
        if not found.data_only:
            self._check(serializer)

    def leaves_to_celery(
        self, value: Any, celery_serializer: str, payload: Payload | None = None
    ) -> bool:
        """Return whether to leave *value* to plain Celery's serializer, which supports it.

        False for a value of a registered type, even if that serializer supports it.

        Args:
            payload: what `encode` returned for *value*, if it was called. In most cases, this makes
                it unnecessary to try to serialize the value.
        """
        if payload is not None and kombu.is_kombus_own(celery_serializer):
            is_json = payload.serializer == Json.name or payload.head == b"str"
            if is_json and celery_serializer == "json":
                return True  # of no registered type
            if payload.serializer == kombu.PREFIX + celery_serializer:
                return not holds_registered(value)
        return not holds_registered(value) and kombu.supports(value, celery_serializer)

    def _check(self, name: str) -> None:
        if name not in self.accept:
            raise SerializerNotAccepted(
                f"a value was serialized with {name[:40]}, which this app does not accept; "
                "if its senders are trusted, add it to accept_content or offload_accept"
            )

    def _as_celery(self, value: Any, celery_serializer: str) -> Payload | None:
        """Return a payload that arrives as from plain Celery; None if that doesn't support it."""
        if not kombu.is_kombus_own(celery_serializer):
            return kombu.encode(value, celery_serializer)
        kind = type(value)
        if celery_serializer == "pickle":
            return self._as_pickle(value)
        if kind is bytes:
            return self._raw.encode(value)
        if kind is str:
            payload = self._raw.encode(value)
            if payload is not None and payload.head == b"str":
                return payload
            # JSON joins two lone surrogates that form a pair; msgpack refuses them.
            return kombu.encode(value, celery_serializer)
        if celery_serializer == "msgpack" and kind in (bytearray, memoryview):
            fits = kind is bytearray or value.c_contiguous
            return self._raw.as_bytes(value) if fits and len(value) < _MSGPACK_LIMIT else None
        if celery_serializer == "json":
            payload = self._json.encode(value)
            if payload is not None:
                return payload
        if holds_registered(value) or (self._code is not None and _must_ship(value, self._code)):
            return None
        return kombu.encode(value, celery_serializer)

    def _as_pickle(self, value: Any) -> Payload | None:
        if type(value) in (bytes, bytearray, str):
            return self._raw.encode(value)
        if _in_band(value) or holds_registered(value):
            try:
                return self._tree.encode(value)
            except NotData as error:
                if error.final:
                    raise _cannot(value, error, error.advice or _ADVICE) from None
        return self._pickle.encode(value, as_celery=True)

    def _as_sent(self, value: Any, celery_serializer: str) -> Payload:
        pickles = "pickle" in self.accept
        payload = self._raw.encode(value)
        if payload is None and pickles and _is_of(value, "pandas") and not holds_registered(value):
            payload = self._pickle.encode(value)
        if payload is not None:
            return payload
        try:
            payload = self._tree.encode(value)
        except NotData as error:
            reason, advice = error, error.advice
            if error.final:
                raise _cannot(value, error, advice or _ADVICE) from None
        if payload is None and pickles:
            payload = self._pickle.encode(value)
        if payload is not None:
            return payload
        if self._code is not None and celery_serializer != "pickle":
            # The value mixes an instance that must be shipped with one that only Celery supports.
            payload = kombu.encode(value, celery_serializer)
        if payload is not None:
            return payload
        advised = [advice or "send plain data"]
        if pickles or Pickle().encode(value) is None:
            advised = [advice or CREATE_IN_TASK]
        elif not advice.startswith(("pip ", "register it")):
            advised.append(
                "if all senders are trusted, add 'pickle' to accept_content or offload_accept"
            )
        raise _cannot(value, reason, "; or, ".join(advised))


def _cannot(value: Any, reason: NotData, advice: str) -> SerializationError:
    # Only the type and the path: logs and results must not show values.
    where = f" at {reason.path}" if reason.path else ""
    return SerializationError(
        f"cannot serialize {type_name(value)}: {reason.reason}{where}; {advice}"
    )


def _is_of(value: Any, *packages: str) -> bool:
    return type(value).__module__.partition(".")[0] in packages


def _in_band(value: Any) -> bool:
    """Return whether pickle would copy memory that the tree doesn't."""
    if _is_of(value, "polars", "pyarrow"):
        return True
    # Celery's pickle would convert foreign byte orders to the machine's.
    return _is_of(value, "numpy") and type(value).__name__ == "ndarray" and value.dtype.isnative


# -- instances that Celery's serializer would simplify

_SIMPLE = (str, bytes, int, float, list, tuple, dict)
"""The types to which JSON and msgpack simplify instances of subclasses."""
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
_EXACT = frozenset({*_SIMPLE, *_CONTAINERS, bool, type(None)})


def _must_ship(value: Any, code: Code) -> bool:
    """Return whether *value* is or contains an instance that Celery's serializer would simplify
    and whose class must be kept.
    """
    known: dict[type, bool] = dict.fromkeys(_EXACT, False)
    waiting = [value]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        kind = type(each)
        must_ship = known.get(kind)
        if must_ship is None:
            must_ship = known[kind] = issubclass(kind, _SIMPLE) and code.must_ship(kind)
        if must_ship:
            return True
        if kind in _CONTAINERS and id(each) not in seen:
            seen.add(id(each))
            waiting += each
            if kind is dict:
                waiting += each.values()
    return False


# -- small values, recognized without serializing them

_CHARACTER = 6
"""Maximum bytes of an ASCII character: JSON escapes some by their number."""

_ANY_CHARACTER = 12
"""Maximum bytes of a character in JSON, which takes 12 for one outside the basic plane."""

_NUMBER = 32
_ITEM = 64
"""Maximum bytes that quotes, tags, and indents add to an item."""

_DEEPEST = 8
_WIDEST = 64


def certainly_small(value: Any, limit: int, celery_serializer: str) -> bool:
    """Return whether *celery_serializer* certainly writes at most *limit* bytes for *value*.

    False means unknown. This is called for every argument of every task: it takes a fraction of a
    microsecond for scalars, and stops at the first sign that a container is large.
    """
    return _left(value, limit, celery_serializer, _DEEPEST) >= 0


def _left(value: Any, limit: int, celery_serializer: str, depth: int) -> int:
    """Return how much of *limit* certainly remains after writing *value*; negative if unknown."""
    kind = type(value)
    if kind is int:
        wide = value > 0x7FFFFFFFFFFFFFFF or value < -0x8000000000000000
        return -1 if wide else limit - _NUMBER
    if kind is str:
        if value.isascii():
            return limit - _ITEM - _CHARACTER * len(value)
        # Other text may contain lone surrogates, which not every serializer supports.
        return limit - _ITEM - _ANY_CHARACTER * len(value) if celery_serializer == "json" else -1
    if value is None or kind is bool or kind is float:
        return limit - _NUMBER
    if kind is dict:
        if not depth or len(value) > _WIDEST:
            return -1
        limit -= _ITEM
        for key, item in value.items():
            if type(key) is not str:
                return -1
            if key.isascii():
                limit -= _ITEM + _CHARACTER * len(key)
            else:
                limit = _left(key, limit, celery_serializer, 0)
            limit = _left(item, limit, celery_serializer, depth - 1)
            if limit < 0:
                return -1
        return limit
    if kind is list or kind is tuple:
        if not depth or len(value) > _WIDEST:
            return -1
        limit -= _ITEM
        for item in value:
            limit = _left(item, limit - _ITEM, celery_serializer, depth - 1)
            if limit < 0:
                return -1
        return limit
    if kind is bytes and celery_serializer in ("json", "pickle", "msgpack", "yaml"):
        return limit - _ITEM - _CHARACTER * len(value)
    return -1
