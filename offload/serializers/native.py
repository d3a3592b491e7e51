"""The serializers that plain Celery uses, by their kombu names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kombu.exceptions import ContentDisallowed, SerializerNotInstalled
from kombu.serialization import registry

from offload.errors import DeserializationError, SerializationError, SerializerNotAccepted
from offload.serializers.base import Payload
from offload.serializers.kombu_internals import codec
from offload.serializers.memory import utf8
from offload.text import type_name

__all__ = ("PREFIX", "carries", "decode", "encode", "is_kombus_own", "name_of")

PREFIX = "native:"

_HOMES = {
    "json": {("kombu.utils.json", "kombu.utils.json")},
    "pickle": {("kombu.serialization", "kombu.serialization")},
    "msgpack": {("kombu.serialization", "kombu.serialization")},
    "yaml": {("yaml", "kombu.serialization"), ("yaml", "yaml")},  # the second before kombu 5.4
}


def is_kombus_own(native: str) -> bool:
    """Return whether the name still means the serializer that kombu registers itself."""
    home = _HOMES.get(native)
    found = codec(native)
    if home is None or found is None:
        return False
    encoder, decoder = (getattr(each, "__module__", None) for each in found)
    return (encoder, decoder) in home


def name_of(content_type: str) -> str:
    """Return the kombu name of a content type; names stay as they are."""
    name: str = registry.type_to_name.get(content_type, content_type)
    return name


def _dumps(value: Any, native: str) -> tuple[str, Any]:
    try:
        _, encoding, body = registry.dumps(value, serializer=native)
    except SerializerNotInstalled as error:
        raise SerializationError(str(error)) from error
    return encoding, body


def carries(value: Any, native: str) -> bool:
    """Return whether the serializer writes *value* at all (which it does to find out)."""
    try:
        _dumps(value, native)
    except SerializationError:
        raise
    except Exception:
        return False
    return True


def encode(value: Any, native: str) -> Payload | None:
    """Return what plain Celery would send for *value*, or None if it could not."""
    try:
        encoding, body = _dumps(value, native)
        buffer = utf8(body) if isinstance(body, str) else memoryview(body).cast("B")
    except SerializationError:
        raise
    except Exception:
        return None
    return Payload(PREFIX + native, encoding.encode(), [buffer], type_name(value))


def decode(native: str, head: memoryview, buffers: Sequence[memoryview]) -> Any:
    """Return what plain Celery would deliver. Whether it may is the caller's to check."""
    content_type = registry.name_to_type.get(native)
    if content_type is None:
        raise DeserializationError(f"no serializer named {native!r} is registered with kombu")
    if len(buffers) != 1 or len(head) > 64:
        raise DeserializationError(f"not what {native} writes")
    encoding = str(head, "ascii", "replace")
    body = bytes(buffers[0])
    try:
        return registry.loads(body, content_type, encoding, accept={content_type})
    except ContentDisallowed as error:
        raise SerializerNotAccepted(str(error)) from error
    except Exception as error:
        raise DeserializationError(f"{native} cannot read the value: {error}") from error
